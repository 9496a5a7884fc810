"""A delta into one side of a book, such that who only applies what comes out has the same side.

The venue's cut to its depth is among the changes, and removals of levels that are not there are not.
"""

from bisect import bisect_left, insort
from itertools import repeat

from protos.book import BookSide
from protos.messages import Levels


def merge(side: BookSide, changes: dict[int, int], depth: int, is_bid: bool, undo: Levels) -> Levels:
    """Apply ``changes`` (absolute lots by ticks), then keep the best ``depth`` levels (0: all).

    The hottest of ingest: sizes are set by one `dict.update`, which shares the integers, and the loop over the levels
    makes no object, interpreted or compiled.

    Args:
        undo: Gets the levels to `BookSide.apply` to take it all back.

    Returns:
        The changes that took effect, prices ascending.
    """
    lots, prices = side.lots, side.prices
    undo.extend(zip(changes, map(lots.get, changes, repeat(0)), strict=True))
    effective = sorted(changes.items())
    gone: list[int] = []
    idle: list[int] = []
    for i, (ticks, size) in enumerate(effective):
        if ticks in lots:
            if not size:
                gone.append(ticks)
                del prices[bisect_left(prices, ticks)]
        elif size:
            insort(prices, ticks)
        else:
            gone.append(ticks)
            idle.append(i)
    lots.update(changes)
    for ticks in gone:
        del lots[ticks]
    for i in reversed(idle):
        del effective[i]
    if depth and len(prices) > depth:
        return _cut(side, prices[:-depth] if is_bid else prices[depth:], effective, undo)
    return effective


def _cut(side: BookSide, excess: list[int], effective: Levels, undo: Levels) -> Levels:
    sent, before = dict(effective), dict(undo)
    for ticks in excess:
        if before.setdefault(ticks, side.lots[ticks]):
            sent[ticks] = 0
        else:
            del sent[ticks]  # came and went within this message
    undo[:] = before.items()
    side.apply([(ticks, 0) for ticks in excess])
    return sorted(sent.items())
