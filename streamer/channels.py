"""The streams that pass a market chain on: full book, raw, trades, quotes, status."""

from collections.abc import Sequence
from dataclasses import replace

from protos.ladder import END, absolute
from protos.messages import (
    BookUpdate,
    Flag,
    MarketMessage,
    Notice,
    NoticeCode,
    QuoteUpdate,
    StatusUpdate,
    TradesUpdate,
)
from streamer.market import BROKEN, Link, Market
from streamer.streams import Fanout, Stream, StreamKey


class FullStream(Stream):
    """Every update of the full book: `raw`, and `book` without depth or interval. Only slow clients tell them apart."""

    __slots__ = ()

    def __init__(self, stream_id: int, key: StreamKey, market: Market, fanout: Fanout) -> None:
        super().__init__(stream_id, key, market, fanout)
        self.epoch = market.book.epoch
        self.seq = market.book.seq

    def proves(self, epoch: int, seq: int) -> bool:
        return self.market.ring.holds(epoch, seq)

    def catch_up(self, epoch: int, seq: int) -> list[MarketMessage] | None:
        touched = self.market.ring.touched(epoch, seq)
        if touched is None:
            return None
        book = self.market.book
        update = self._update(Flag.CONFLATED, seq)
        update.bids = absolute(touched[0], book.bids.get)
        update.asks = absolute(touched[1], book.asks.get)
        return [update]

    def snapshot(self) -> list[MarketMessage]:
        update = self._update(Flag.SNAPSHOT, 0)
        update.bids = self.market.book.bids.levels()
        update.asks = self.market.book.asks.levels()
        update.scale = self.market.scale
        update.venue_depth = self.market.venue_depth
        return [update]

    def _update(self, flag: int, prev_seq: int) -> BookUpdate:
        market = self.market
        flags = self.flags() | flag | (Flag.CROSSED if market.book.crossed else 0)
        return BookUpdate(
            epoch=self.epoch,
            seq=self.seq,
            prev_seq=prev_seq,
            flags=flags,
            ts_event_ns=market.ts_event_ns,
            ts_received_ns=market.ts_received_ns,
        )

    def digest(self) -> int:
        return self.market.book.digest()


class QuoteStream(Stream):
    """Best bid and offer: the venue's own quotes when it sends them, else the book's top, DERIVED."""

    __slots__ = ("last",)

    def __init__(self, stream_id: int, key: StreamKey, market: Market, fanout: Fanout) -> None:
        super().__init__(stream_id, key, market, fanout)
        self.last = market.quote or self._derived()  # epoch 0: none yet
        self.epoch = self.last.epoch
        self.seq = self.last.seq

    @property
    def derived(self) -> bool:
        return self.market.quote is None

    def of_book(self) -> bool:
        """A gap in the book says nothing about the venue's own quotes."""
        return self.derived

    def pass_on(self, quote: QuoteUpdate, link: Link) -> None:
        """Publish a quote of the venue. The chain is this stream's own: it may have begun with derived quotes."""
        if (quote.epoch, quote.seq) <= (self.epoch, self.seq):
            return
        quote.flags |= self.flags() | (Flag.CONFLATED if link is BROKEN else 0)
        self._publish(quote)

    def derive(self) -> None:
        """Publish the book's top if it changed, after an update of the book."""
        last = self.last
        quote = self._derived()
        if (
            quote.epoch == last.epoch
            and quote.bid_ticks == last.bid_ticks
            and quote.bid_lots == last.bid_lots
            and quote.ask_ticks == last.ask_ticks
            and quote.ask_lots == last.ask_lots
        ):
            return
        self._publish(quote)

    def _publish(self, quote: QuoteUpdate) -> None:
        quote.prev_seq = self.seq if quote.epoch == self.epoch else 0
        if quote.prev_seq == 0:
            quote.flags |= Flag.SNAPSHOT
            quote.scale = self.market.scale
        self.last = quote
        self.publish(quote)

    def _derived(self) -> QuoteUpdate:
        market = self.market
        bids, asks = market.book.bids, market.book.asks
        quote = QuoteUpdate(
            epoch=market.book.epoch,
            seq=market.book.seq,
            flags=self.flags() | Flag.DERIVED | (Flag.CROSSED if market.book.crossed else 0),
            ts_event_ns=market.ts_event_ns,
            ts_received_ns=market.ts_received_ns,
        )
        if best_bids := bids.part(-1, END):
            quote.bid_ticks, quote.bid_lots = best_bids[0]
        if best_asks := asks.part(0, 1):
            quote.ask_ticks, quote.ask_lots = best_asks[0]
        return quote

    def proves(self, epoch: int, seq: int) -> bool:
        """A quote is the whole state, so any earlier one of the epoch can be continued."""
        return epoch == self.epoch and seq < self.seq

    def catch_up(self, epoch: int, seq: int) -> list[MarketMessage] | None:
        return self._again(Flag.CONFLATED, seq) if self.proves(epoch, seq) else None

    def snapshot(self) -> list[MarketMessage]:
        return self._again(Flag.SNAPSHOT, 0)

    def _again(self, flag: int, prev_seq: int) -> list[MarketMessage]:
        kept = self.last.flags & (Flag.DERIVED | Flag.CROSSED)
        scale = self.market.scale if prev_seq == 0 else None
        return [replace(self.last, prev_seq=prev_seq, flags=self.flags() | kept | flag, scale=scale)]


class TradesStream(Stream):
    """Every trade. A joiner gets the last ones as a snapshot, a resumed client exactly those it missed."""

    __slots__ = ()

    def __init__(self, stream_id: int, key: StreamKey, market: Market, fanout: Fanout) -> None:
        super().__init__(stream_id, key, market, fanout)
        self.epoch = market.trades.epoch
        self.seq = market.trades.seq

    def pass_on(self, update: TradesUpdate, link: Link) -> None:
        """Publish; trades that the topic no longer held are announced first."""
        if link is BROKEN:
            self._skip(update.epoch, update.prev_seq)
        update.flags |= self.flags()
        self.publish(update)

    def jump(self, update: TradesUpdate) -> None:
        """The chain continues after ``update``, which listeners do not get."""
        self._skip(update.epoch, update.seq)
        self.seq = update.seq

    def _skip(self, epoch: int, to_seq: int) -> None:
        """Announce a hole, in the segment of the epoch that it leads to."""
        if epoch != self.epoch:
            self.cut()
            self.epoch = epoch
            self.seq = 0
        self.announce(Notice(NoticeCode.SKIPPED, self.id, epoch, self.seq, to_seq))

    def _after(self, epoch: int, seq: int) -> Sequence[TradesUpdate] | None:
        """Updates after that position, when the tape has them all in the scale of now."""
        tape = list(self.market.tape)
        for index in range(len(tape) - 1, -1, -1):
            if tape[index].scale != self.market.scale:
                return None
            if (tape[index].epoch, tape[index].seq) == (epoch, seq):
                return tape[index + 1 :]
        return None

    def proves(self, epoch: int, seq: int) -> bool:
        return self._after(epoch, seq) is not None

    def catch_up(self, epoch: int, seq: int) -> list[MarketMessage] | None:
        missed = self._after(epoch, seq)
        return None if missed is None else [replace(update, flags=self.flags()) for update in missed]

    def since(self, epoch: int, seq: int) -> list[MarketMessage | Notice]:
        """As every stream; but trades that cannot be made up for are announced before the snapshot. In a new epoch
        SKIPPED is from 0, and what was left of the epoch before is missing too."""
        messages = super().since(epoch, seq)
        if seq and self.epoch and not self.can_resume(epoch, seq):
            from_seq = seq if epoch == self.epoch else 0
            messages.insert(0, Notice(NoticeCode.SKIPPED, self.id, self.epoch, from_seq, self.seq))
        return messages

    def snapshot(self) -> list[MarketMessage]:
        market = self.market
        return [
            TradesUpdate(
                epoch=self.epoch,
                seq=self.seq,
                flags=self.flags() | Flag.SNAPSHOT,
                trades=market.last_trades(market.limits.trades_joined),
                scale=market.scale,
            )
        ]


class StatusStream(Stream):
    """The state of the instrument, as ingest sees it."""

    __slots__ = ()

    def __init__(self, stream_id: int, key: StreamKey, market: Market, fanout: Fanout) -> None:
        super().__init__(stream_id, key, market, fanout)
        self.epoch = market.statuses.epoch
        self.seq = market.statuses.seq

    def pass_on(self, update: StatusUpdate, link: Link) -> None:
        """Publish; a status is the whole state, so a hole before it only needs the flag."""
        if link is BROKEN:
            update.prev_seq = self.seq if update.epoch == self.epoch else 0
            update.flags |= Flag.CONFLATED if update.prev_seq else Flag.SNAPSHOT
        self.publish(update)

    def proves(self, epoch: int, seq: int) -> bool:
        return epoch == self.epoch and seq < self.seq

    def catch_up(self, epoch: int, seq: int) -> list[MarketMessage] | None:
        return self._again(Flag.CONFLATED, seq) if self.proves(epoch, seq) else None

    def snapshot(self) -> list[MarketMessage]:
        return self._again(Flag.SNAPSHOT, 0)

    def _again(self, flag: int, prev_seq: int) -> list[MarketMessage]:
        return [replace(self.market.status, prev_seq=prev_seq, flags=self.flags() | flag)]
