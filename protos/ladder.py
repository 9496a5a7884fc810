"""One side of a book.

It is the compiled build's (`native.c`: numbers in one piece of memory, where a dict and a list of 1,300 objects each
are mostly waited for), or else `PlainLadder`; one set of tests holds both to one contract.
"""

import sys
from bisect import bisect_left, insort
from collections.abc import Callable
from typing import Protocol

from protos.messages import Levels

END = sys.maxsize
"""Position behind all levels."""


class Ladder(Protocol):
    """Levels are (ticks, lots). As an argument they come in any order, and 0 lots are no level; else they ascend."""

    @property
    def lowest(self) -> int | None:
        """Price; None when there are no levels."""

    @property
    def highest(self) -> int | None:
        """As ``lowest``."""

    def __len__(self) -> int: ...

    def levels(self) -> Levels:
        """All."""

    def part(self, start: int, stop: int, /) -> Levels:
        """Those at the positions ``start <= i < stop``, as of a slice: negative ones count from the end."""

    def prices(self, start: int, stop: int, /) -> list[int]:
        """Of the same."""

    @property
    def get(self) -> Callable[[int, int], int]:
        """Lots by price, or the second argument. Whoever asks for many takes it once."""

    def replace(self, levels: Levels, /) -> None:
        """Forget all, then hold these; the last of equal prices wins."""

    def apply(self, levels: Levels, /) -> None:
        """Set each price to its absolute size. Removing what is not there is no error."""

    def merge(self, changes: Levels, undo: Levels, /) -> Levels:
        """`apply` changes, of each price one.

        Args:
            undo: Gets the levels to `apply` to take it all back.

        Returns:
            The changes that took effect: all but removals of what is not there.
        """


class PlainLadder:
    """A `Ladder` in Python: prices ascend in a list, lots by price. Inserting into a list of thousands beats a tree."""

    __slots__ = ("_lots", "_prices")

    def __init__(self) -> None:
        self._prices: list[int] = []
        self._lots: dict[int, int] = {}

    @property
    def lowest(self) -> int | None:
        return self._prices[0] if self._prices else None

    @property
    def highest(self) -> int | None:
        return self._prices[-1] if self._prices else None

    def __len__(self) -> int:
        return len(self._prices)

    def levels(self) -> Levels:
        lots = self._lots
        return [(price, lots[price]) for price in self._prices]

    def part(self, start: int, stop: int, /) -> Levels:
        lots = self._lots
        return [(price, lots[price]) for price in self._prices[start:stop]]

    def prices(self, start: int, stop: int, /) -> list[int]:
        return self._prices[start:stop]

    @property
    def get(self) -> Callable[[int, int], int]:
        return self._lots.get

    def replace(self, levels: Levels, /) -> None:
        lots = dict(levels)
        self._lots = {price: size for price, size in lots.items() if size}
        self._prices = sorted(self._lots)

    def apply(self, levels: Levels, /) -> None:
        lots, prices = self._lots, self._prices
        for price, size in levels:
            if size:
                if price not in lots:
                    insort(prices, price)
                lots[price] = size
            elif lots.pop(price, 0):
                del prices[bisect_left(prices, price)]

    def merge(self, changes: Levels, undo: Levels, /) -> Levels:
        """One loop does what `apply` and two filters would: it is the hottest of ingest."""
        lots, prices = self._lots, self._prices
        effective: Levels = []
        for level in changes:
            price, size = level
            before = lots.get(price, 0)
            if size:
                if not before:
                    insort(prices, price)
                lots[price] = size
            elif before:
                del lots[price]
                del prices[bisect_left(prices, price)]
            else:
                continue
            effective.append(level)
            undo.append((price, before))
        return effective


def absolute(prices: set[int], lots: Callable[[int, int], int]) -> Levels:
    """The prices, ascending, with their sizes as `Ladder.get` says them: 0 lots where the level is gone."""
    return [(price, lots(price, 0)) for price in sorted(prices)]


new_ladder: Callable[[], Ladder]
try:
    from protos import native

    new_ladder = native.Ladder
except ImportError:
    new_ladder = PlainLadder
