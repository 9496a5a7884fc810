"""How far back a merged delta can be proven: which prices each update touched."""

from array import array
from bisect import bisect_left
from collections.abc import Iterable

from protos.messages import Levels
from streamer.limits import Limits


class Ring:
    """The touched prices of the last updates of one epoch, bounded. A position is a seq; 0 is no position.

    Flat arrays: 8 bytes per price where a list of updates would keep 120. The older half is forgotten at once, so that
    adding costs the same however full it is.
    """

    __slots__ = ("_ask_ends", "_asks", "_bid_ends", "_bids", "_limits", "_seqs", "epoch")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.reset(0, 0)

    def reset(self, epoch: int, seq: int) -> None:
        """A snapshot: nothing before it can be proven."""
        self.epoch = epoch
        self._seqs = array("Q", (seq,))
        self._bid_ends = array("Q", (0,))
        self._ask_ends = array("Q", (0,))
        self._bids = array("q")
        self._asks = array("q")

    def add(self, seq: int, bids: list[int], asks: list[int]) -> None:
        """An update to ``seq``, larger than all before, touched these prices."""
        self._bids.fromlist(bids)
        self._asks.fromlist(asks)
        self._seqs.append(seq)
        self._bid_ends.append(len(self._bids))
        self._ask_ends.append(len(self._asks))
        if (
            len(self._seqs) > self._limits.since_updates_max
            or len(self._bids) + len(self._asks) > self._limits.since_prices_max
        ):
            self._forget()

    def _forget(self) -> None:
        """Forget the older half: of the updates, or more when single updates are huge."""
        first = len(self._seqs) // 2
        half = self._limits.since_prices_max // 2
        total = len(self._bids) + len(self._asks)
        while first < len(self._seqs) - 1 and total - self._bid_ends[first] - self._ask_ends[first] > half:
            first += 1
        bid_end, ask_end = self._bid_ends[first], self._ask_ends[first]
        del self._bids[:bid_end], self._asks[:ask_end], self._seqs[:first]
        self._bid_ends = array("Q", [end - bid_end for end in self._bid_ends[first:]])
        self._ask_ends = array("Q", [end - ask_end for end in self._ask_ends[first:]])

    def holds(self, epoch: int, seq: int) -> bool:
        """Whether the prices touched since that position are known."""
        return self._index(epoch, seq) >= 0

    def _index(self, epoch: int, seq: int) -> int:
        if epoch != self.epoch or seq == 0:
            return -1
        index = bisect_left(self._seqs, seq)
        return index if index < len(self._seqs) and self._seqs[index] == seq else -1

    def touched(self, epoch: int, seq: int) -> tuple[set[int], set[int]] | None:
        """Bid and ask prices touched after that position; None when it is not one of the ring's."""
        index = self._index(epoch, seq)
        if index < 0:
            return None
        return set(self._bids[self._bid_ends[index] :]), set(self._asks[self._ask_ends[index] :])


def absolute(prices: Iterable[int], lots: dict[int, int]) -> Levels:
    """The prices, ascending, with their sizes now: 0 lots where the level is gone."""
    return [(price, lots.get(price, 0)) for price in sorted(prices)]
