"""The book that ingest keeps: that of `protos.book`, but its sides take a delta and say what it changed.

A side is the compiled build's (`native.c`: numbers in one piece of memory, where a dict and a list of 1,300 objects
each are mostly waited for), or else `PlainLadder`; one set of tests holds both to one contract.
"""

from bisect import bisect_left, insort
from collections.abc import Callable
from typing import Protocol

from protos.book import BookSide
from protos.messages import BookUpdate, Levels, Scale


class Ladder(Protocol):
    """One side. Levels are (ticks, lots); where they are an argument they ascend strictly, and 0 lots are no level."""

    @property
    def lowest(self) -> int | None:
        """Price; None when there are no levels."""

    @property
    def highest(self) -> int | None:
        """As ``lowest``."""

    def __len__(self) -> int: ...

    def levels(self) -> Levels:
        """All, ascending."""

    def part(self, start: int, stop: int) -> Levels:
        """Those at the positions ``start <= i < stop``, ascending. Both from 0 to the number of levels."""

    def replace(self, levels: Levels) -> None:
        """Forget all, then hold these."""

    def apply(self, levels: Levels) -> None:
        """Set each price to its absolute size, in any order. Removing what is not there is no error."""

    def merge(self, changes: Levels, undo: Levels) -> Levels:
        """`apply` changes.

        Args:
            undo: Gets the levels to `apply` to take it all back.

        Returns:
            The changes that took effect: all but removals of what is not there.
        """


class PlainLadder(BookSide):
    """A `Ladder` in Python."""

    __slots__ = ()

    @property
    def lowest(self) -> int | None:
        return self.prices[0] if self.prices else None

    @property
    def highest(self) -> int | None:
        return self.prices[-1] if self.prices else None

    def part(self, start: int, stop: int) -> Levels:
        lots = self.lots
        return [(ticks, lots[ticks]) for ticks in self.prices[start:stop]]

    def merge(self, changes: Levels, undo: Levels) -> Levels:
        """One loop does what `apply` and two filters would: it is the hottest of ingest."""
        lots, prices = self.lots, self.prices
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


new_ladder: Callable[[], Ladder]
try:
    from ingest import native

    new_ladder = native.Ladder
except ImportError:
    new_ladder = PlainLadder


class Book:
    """Both sides, with the position (epoch, seq) they hold for."""

    __slots__ = ("asks", "bids", "epoch", "scale", "seq")

    def __init__(self) -> None:
        self.bids: Ladder = new_ladder()
        self.asks: Ladder = new_ladder()
        self.epoch = 0
        self.seq = 0
        self.scale: Scale | None = None

    def restore(self, snapshot: BookUpdate) -> None:
        self.bids.replace(snapshot.bids)
        self.asks.replace(snapshot.asks)
        self.scale, self.epoch, self.seq = snapshot.scale, snapshot.epoch, snapshot.seq

    def cut(self, depth: int) -> None:
        """Keep the best ``depth`` levels of each side."""
        bids, asks = self.top(depth)
        self.bids.replace(bids[::-1])
        self.asks.replace(asks)

    def top(self, depth: int) -> tuple[Levels, Levels]:
        """The best ``depth`` levels of each side, best first: bids descend, asks ascend."""
        bids, count = self.bids, len(self.bids)
        return bids.part(max(count - depth, 0), count)[::-1], self.asks.part(0, min(depth, len(self.asks)))

    @property
    def crossed(self) -> bool:
        """Best bid at or above best ask. Venues send such books in auctions; it is flagged, not repaired."""
        bid, ask = self.bids.highest, self.asks.lowest
        return bid is not None and ask is not None and bid >= ask
