"""A delta into one side of a book, such that who only applies what comes out has the same side.

The venue's cut to its depth is among the changes, and removals of levels that are not there are not.
"""

from bisect import bisect_left, insort

from protos.book import BookSide
from protos.messages import Levels


def merge(side: BookSide, changes: dict[int, int], depth: int, is_bid: bool, undo: Levels) -> Levels:
    """Apply ``changes`` (absolute lots by ticks), then keep the best ``depth`` levels (0: all).

    One loop does what `BookSide.apply` and two filters would: it is the hottest of ingest.

    Args:
        undo: Gets the levels to `BookSide.apply` to take it all back.

    Returns:
        The changes that took effect, prices ascending.
    """
    lots, prices = side.lots, side.prices
    effective: Levels = []
    for level in sorted(changes.items()):
        ticks, size = level
        before = lots.get(ticks, 0)
        if size:
            if not before:
                insort(prices, ticks)
            lots[ticks] = size
        elif before:
            del lots[ticks]
            del prices[bisect_left(prices, ticks)]
        else:
            continue
        effective.append(level)
        undo.append((ticks, before))
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
