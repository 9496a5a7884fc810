"""A delta into one side of a book, such that who only applies what comes out has the same side.

The venue's cut to its depth is among the changes, and removals of levels that are not there are not.
"""

from protos.ladder import END, Ladder
from protos.messages import Levels


def merge(side: Ladder, changes: Levels, depth: int, is_bid: bool, undo: Levels) -> Levels:
    """`Ladder.merge`, then keep the best ``depth`` levels (0: all); with the same arguments and result."""
    effective = side.merge(changes, undo)
    if depth and len(side) > depth:
        excess = side.part(0, -depth) if is_bid else side.part(depth, END)
        return _cut(side, excess, effective, undo)
    return effective


def _cut(side: Ladder, excess: Levels, effective: Levels, undo: Levels) -> Levels:
    sent, before = dict(effective), dict(undo)
    for ticks, lots in excess:
        if before.setdefault(ticks, lots):
            sent[ticks] = 0
        else:
            del sent[ticks]  # came and went within this message
    undo[:] = before.items()
    side.apply([(ticks, 0) for ticks, _ in excess])
    return sorted(sent.items())
