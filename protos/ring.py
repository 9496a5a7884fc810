"""How far back a merged delta can be proven: which prices each update touched.

A ring is the compiled build's (`native.c`), which `protos.shortcut.advance` adds to, or else `PlainRing`; one set of
tests holds both to one contract.
"""

from array import array
from bisect import bisect_left
from collections.abc import Callable
from typing import Protocol


class Ring(Protocol):
    """The touched prices of the last updates of one epoch, bounded. A position is a seq; 0 is no position.

    The older half is forgotten at once, so that adding costs the same however full it is.
    """

    def reset(self, epoch: int, seq: int, /) -> None:
        """A snapshot: nothing before it can be proven."""

    def add(self, seq: int, bids: list[int], asks: list[int], /) -> None:
        """An update to ``seq``, larger than all before, touched these prices."""

    def holds(self, epoch: int, seq: int, /) -> bool:
        """Whether the prices touched since that position are known."""

    def touched(self, epoch: int, seq: int, /) -> tuple[set[int], set[int]] | None:
        """Bid and ask prices touched after that position; None when it is not one of the ring's."""


class PlainRing:
    """A `Ring` in Python. Flat arrays: 8 bytes per price where a list of updates would keep 120."""

    __slots__ = ("_ask_ends", "_asks", "_bid_ends", "_bids", "_epoch", "_prices_max", "_seqs", "_updates_max")

    def __init__(self, updates_max: int, prices_max: int, /) -> None:
        self._updates_max = updates_max
        self._prices_max = prices_max
        self.reset(0, 0)

    def reset(self, epoch: int, seq: int, /) -> None:
        self._epoch = epoch
        self._seqs = array("q", (seq,))
        self._bid_ends = array("q", (0,))
        self._ask_ends = array("q", (0,))
        self._bids = array("q")
        self._asks = array("q")

    def add(self, seq: int, bids: list[int], asks: list[int], /) -> None:
        self._bids.fromlist(bids)
        self._asks.fromlist(asks)
        self._seqs.append(seq)
        self._bid_ends.append(len(self._bids))
        self._ask_ends.append(len(self._asks))
        if len(self._seqs) > self._updates_max or len(self._bids) + len(self._asks) > self._prices_max:
            self._forget()

    def _forget(self) -> None:
        """Forget the older half: of the updates, or more when single updates are huge."""
        first = len(self._seqs) // 2
        half = self._prices_max // 2
        total = len(self._bids) + len(self._asks)
        while first < len(self._seqs) - 1 and total - self._bid_ends[first] - self._ask_ends[first] > half:
            first += 1
        bid_end, ask_end = self._bid_ends[first], self._ask_ends[first]
        del self._bids[:bid_end], self._asks[:ask_end], self._seqs[:first]
        self._bid_ends = array("q", [end - bid_end for end in self._bid_ends[first:]])
        self._ask_ends = array("q", [end - ask_end for end in self._ask_ends[first:]])

    def holds(self, epoch: int, seq: int, /) -> bool:
        return self._index(epoch, seq) >= 0

    def _index(self, epoch: int, seq: int) -> int:
        if epoch != self._epoch or seq == 0:
            return -1
        index = bisect_left(self._seqs, seq)
        return index if index < len(self._seqs) and self._seqs[index] == seq else -1

    def touched(self, epoch: int, seq: int, /) -> tuple[set[int], set[int]] | None:
        index = self._index(epoch, seq)
        if index < 0:
            return None
        return set(self._bids[self._bid_ends[index] :]), set(self._asks[self._ask_ends[index] :])


new_ring: Callable[[int, int], Ring]
try:
    from protos import native

    new_ring = native.Ring
except ImportError:
    new_ring = PlainRing
