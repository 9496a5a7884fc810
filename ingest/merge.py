"""A delta into one side of a book, such that who only applies what comes out has the same side.

The venue's cut to its depth is among the changes, and removals of levels that are not there are not.

`merge_all` is the compiled build's (`native.c`), or else `merge_each`; one test holds both to the same contract.
"""

from bisect import bisect_left, insort
from collections.abc import Callable

from protos.book import BookSide
from protos.messages import Levels


def merge(side: BookSide, changes: Levels, depth: int, is_bid: bool, undo: Levels) -> Levels:
    """Apply ``changes``, then keep the best ``depth`` levels (0: all). Args and result as `merge_each`."""
    effective = merge_all(side, changes, undo)
    prices = side.prices
    if depth and len(prices) > depth:
        return _cut(side, prices[:-depth] if is_bid else prices[depth:], effective, undo)
    return effective


def merge_each(side: BookSide, changes: Levels, undo: Levels) -> Levels:
    """Apply ``changes``.

    One loop does what `BookSide.apply` and two filters would: it is the hottest of ingest.

    Args:
        changes: Absolute lots by ticks; strictly ascending.
        undo: Gets the levels to `BookSide.apply` to take it all back.

    Returns:
        The changes that took effect, prices ascending.
    """
    lots, prices = side.lots, side.prices
    effective: Levels = []
    for level in changes:
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
    return effective


merge_all: Callable[[BookSide, Levels, Levels], Levels]
try:
    from ingest.native import merge as merge_all
except ImportError:
    merge_all = merge_each


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
