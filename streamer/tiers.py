"""The top-N view of a book, computed once per stream however many listen.

A tier remembers the view it last sent. At interval 0 it moves with each update that touches the view, otherwise when
the hub ticks; either way it sends one delta from the view it sent to the view now. Levels that fell out of the view are
removed with 0 lots, levels that came into it are added, so the client's book is exactly the top N at that seq. When the
view did not change nothing is sent, and the position stays.
"""

from heapq import nlargest, nsmallest

from protos import ring
from protos.book import DIGEST_DEPTH, digest_of, prices_of
from protos.ladder import END, Ladder, absolute
from protos.messages import BookUpdate, Flag, Levels, MarketMessage
from protos.ring import Ring
from streamer.market import Market
from streamer.streams import Fanout, Stream, StreamKey

_DEEP = 50
"""From this depth on a view is not looked at as a whole for a few prices."""


class TierStream(Stream):
    """Channel `book` with a depth, an interval, or both."""

    __slots__ = ("_checked_seq", "_crossed", "_ring", "_worst_ask", "_worst_bid", "asks", "bids", "depth")

    def __init__(self, stream_id: int, key: StreamKey, market: Market, fanout: Fanout) -> None:
        super().__init__(stream_id, key, market, fanout)
        self.depth = key.depth
        self.bids: dict[int, int] = {}  # the view last sent: ticks -> lots
        self.asks: dict[int, int] = {}
        self._ring: Ring = ring.new_ring(fanout.limits.since_updates_max, fanout.limits.since_prices_max)
        self._checked_seq = 0  # seq of the book that the view was last compared with
        self._worst_bid: int | None = None  # None: the view has room, any price touches it
        self._worst_ask: int | None = None
        self._crossed = False
        if market.book.epoch:
            self._reset()

    def _reset(self) -> None:
        """Take the view from the book as it is, as the start of a chain."""
        book = self.market.book
        self.bids.clear()
        self.asks.clear()
        self._differences(None, None)
        self.epoch = book.epoch
        self.seq = book.seq
        self._ring.reset(book.epoch, book.seq)

    def on_snapshot(self) -> None:
        """The book was replaced: so is the view, at once whatever the interval."""
        self._reset()
        update = self._update(Flag.SNAPSHOT, 0)
        update.bids = sorted(self.bids.items())
        update.asks = sorted(self.asks.items())
        update.scale = self.market.scale
        self.publish(update)

    def on_delta(self, bids: list[int], asks: list[int]) -> None:
        """The book changed at these prices, ascending (interval 0)."""
        if (bids and (self._worst_bid is None or bids[-1] >= self._worst_bid)) or (
            asks and (self._worst_ask is None or asks[0] <= self._worst_ask)
        ):
            self._advance(set(bids), set(asks))

    def on_tick(self) -> None:
        """The interval is over."""
        market = self.market
        if market.book.seq == self._checked_seq or market.gapped:
            return
        touched = market.ring.touched(self.epoch, self._checked_seq)
        if touched is None:
            self._advance(None, None)
        else:
            self._advance(touched[0], touched[1])

    def _advance(self, touched_bids: set[int] | None, touched_asks: set[int] | None) -> None:
        """Send the delta from the view last sent. The sets hold all prices touched since; None: not known."""
        bids, asks = self._differences(touched_bids, touched_asks)
        if not bids and not asks:
            return
        prev_seq = self.seq
        self.seq = self.market.book.seq
        self._ring.add(self.seq, prices_of(bids), prices_of(asks))
        update = self._update(0, prev_seq)
        update.bids = bids
        update.asks = asks
        self.publish(update)

    def _differences(self, touched_bids: set[int] | None, touched_asks: set[int] | None) -> tuple[Levels, Levels]:
        """Bring the view to the book, and tell what changed."""
        book = self.market.book
        depth = self.depth
        self._checked_seq = book.seq
        self._crossed = book.crossed
        bids, asks = book.bids, book.asks
        if depth == 0:
            return _all_differences(self.bids, bids, touched_bids), _all_differences(self.asks, asks, touched_asks)
        if (
            depth >= _DEEP
            and touched_bids is not None
            and touched_asks is not None
            and 2 * max(len(touched_bids), len(touched_asks)) < depth
        ):
            return self._near_differences(touched_bids, touched_asks)
        best_bids, best_asks = bids.prices(-depth, END), asks.prices(0, depth)
        self._worst_bid = best_bids[0] if len(best_bids) == depth else None
        self._worst_ask = best_asks[-1] if len(best_asks) == depth else None
        return (
            _top_differences(self.bids, bids, set(best_bids), touched_bids),
            _top_differences(self.asks, asks, set(best_asks), touched_asks),
        )

    def _near_differences(self, touched_bids: set[int], touched_asks: set[int]) -> tuple[Levels, Levels]:
        """The same when few prices were touched. Each that came or went moved the end of its view by one level at most,
        so that all that changed is among them, or so near to the end."""
        bids, asks, depth = self.market.book.bids, self.market.book.asks, self.depth
        worst_bid, worst_ask = bids.prices(-depth, 1 - depth), asks.prices(depth - 1, depth)
        self._worst_bid = low = worst_bid[0] if worst_bid else None
        self._worst_ask = high = worst_ask[0] if worst_ask else None
        reach = len(touched_bids)
        near_bids = touched_bids.union(bids.prices(-depth - reach, reach - depth))
        reach = len(touched_asks)
        near_asks = touched_asks.union(asks.prices(depth - reach, depth + reach))
        bid_lots, ask_lots = bids.get, asks.get
        return (
            _apply_new(self.bids, [(p, bid_lots(p, 0) if low is None or p >= low else 0) for p in near_bids]),
            _apply_new(self.asks, [(p, ask_lots(p, 0) if high is None or p <= high else 0) for p in near_asks]),
        )

    def _update(self, flag: int, prev_seq: int) -> BookUpdate:
        return BookUpdate(
            epoch=self.epoch,
            seq=self.seq,
            prev_seq=prev_seq,
            flags=self.flags() | flag | (Flag.CROSSED if self._crossed else 0),
            ts_event_ns=self.market.ts_event_ns,
            ts_received_ns=self.market.ts_received_ns,
        )

    def proves(self, epoch: int, seq: int) -> bool:
        return self._ring.holds(epoch, seq)

    def catch_up(self, epoch: int, seq: int) -> list[MarketMessage] | None:
        touched = self._ring.touched(epoch, seq)
        if touched is None:
            return None
        update = self._update(Flag.CONFLATED, seq)
        update.bids = absolute(touched[0], self.bids.get)
        update.asks = absolute(touched[1], self.asks.get)
        return [update]

    def snapshot(self) -> list[MarketMessage]:
        update = self._update(Flag.SNAPSHOT, 0)
        update.bids = sorted(self.bids.items())
        update.asks = sorted(self.asks.items())
        update.scale = self.market.scale
        return [update]

    def digest(self) -> int:
        return digest_of(nlargest(DIGEST_DEPTH, self.bids.items()), nsmallest(DIGEST_DEPTH, self.asks.items()))


def _top_differences(view: dict[int, int], side: Ladder, best: set[int], touched: set[int] | None) -> Levels:
    """Make ``view`` the prices ``best`` of ``side``. Set operations: at depth 200 a loop costs ten times as much."""
    candidates = best | view.keys() if touched is None else (best & touched) | (best ^ view.keys())
    lots = side.get
    changed: Levels = []
    for price in candidates:
        size = lots(price, 0) if price in best else 0
        if size != view.get(price, 0):
            changed.append((price, size))
    return _apply(view, changed)


def _all_differences(view: dict[int, int], side: Ladder, touched: set[int] | None) -> Levels:
    """Make ``view`` all of ``side``."""
    candidates = view.keys() | side.prices(0, END) if touched is None else touched
    lots = side.get
    return _apply_new(view, [(price, lots(price, 0)) for price in candidates])


def _apply_new(view: dict[int, int], levels: Levels) -> Levels:
    """`_apply` those that are not there yet."""
    return _apply(view, [level for level in levels if level[1] != view.get(level[0], 0)])


def _apply(view: dict[int, int], changed: Levels) -> Levels:
    for price, size in changed:
        if size:
            view[price] = size
        else:
            del view[price]
    changed.sort()
    return changed
