"""One side of a book.

It is the compiled build's (`native.c`: numbers in one piece of memory, where a dict and a list of 1,300 objects each
are mostly waited for), or else `PlainLadder`; one set of tests holds both to one contract.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable
from typing import Protocol

from protos.messages import Levels


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
        """Those at the positions ``start <= i < stop``. Both from 0 to the number of levels."""

    def prices(self, start: int, stop: int, /) -> list[int]:
        """Of the same."""

    def levels_at(self, prices: Iterable[int], /) -> Levels:
        """Those prices, in their order, with their sizes: 0 lots where there is no level."""

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

    def levels_at(self, prices: Iterable[int], /) -> Levels:
        lots_of = self._lots.get
        return [(price, lots_of(price, 0)) for price in prices]

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


new_ladder: Callable[[], Ladder]
try:
    from protos import native

    new_ladder = native.Ladder
except ImportError:
    new_ladder = PlainLadder
