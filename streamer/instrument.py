"""One instrument's market and the streams on it: each update is checked, applied, and published to who listens."""

from dataclasses import replace

from protos.book import prices_of
from protos.messages import (
    BookState,
    BookUpdate,
    Channel,
    Flag,
    InstrumentState,
    MarketMessage,
    NoticeCode,
    QuoteUpdate,
    Reason,
    StatusUpdate,
    TradesUpdate,
)
from streamer.channels import FullStream, QuoteStream, StatusStream, TradesStream
from streamer.market import BROKEN, DUPLICATE, OLD_EPOCH, START, Chain, Link, Market
from streamer.streams import Fanout, Stream, StreamKey, announce_changes
from streamer.tiers import TierStream


class Instrument:
    """Owns the streams that have subscribers. Every `apply` returns False for what was read before."""

    __slots__ = ("_fanout", "_full", "_prompt", "_quotes", "_statuses", "_tiers", "_trades", "market", "streams")

    def __init__(self, name: str, fanout: Fanout) -> None:
        self.market = Market(name, fanout.limits)
        self.streams: dict[StreamKey, Stream] = {}
        self._fanout = fanout
        self._full: list[FullStream] = []
        self._tiers: list[TierStream] = []
        self._prompt: list[TierStream] = []  # of those, who follow each update
        self._quotes: QuoteStream | None = None
        self._trades: TradesStream | None = None
        self._statuses: StatusStream | None = None

    def open(self, stream_id: int, key: StreamKey) -> Stream:
        """A new stream of this instrument. The key is valid and has no stream yet."""
        market, fanout = self.market, self._fanout
        stream: Stream
        if key.channel is Channel.BBO:
            stream = self._quotes = QuoteStream(stream_id, key, market, fanout)
        elif key.channel is Channel.TRADES:
            stream = self._trades = TradesStream(stream_id, key, market, fanout)
        elif key.channel is Channel.STATUS:
            stream = self._statuses = StatusStream(stream_id, key, market, fanout)
        elif key.depth or key.interval_ms:
            stream = tier = TierStream(stream_id, key, market, fanout)
            self._tiers.append(tier)
            if not key.interval_ms:
                self._prompt.append(tier)
        else:
            stream = full = FullStream(stream_id, key, market, fanout)
            self._full.append(full)
        self.streams[key] = stream
        return stream

    def close(self, stream: Stream) -> None:
        """Nobody is subscribed any more."""
        del self.streams[stream.key]
        if isinstance(stream, TierStream):
            self._tiers.remove(stream)
            if stream in self._prompt:
                self._prompt.remove(stream)
        elif isinstance(stream, FullStream):
            self._full.remove(stream)
        elif stream is self._quotes:
            self._quotes = None
        elif stream is self._trades:
            self._trades = None
        else:
            self._statuses = None

    def apply(self, message: MarketMessage) -> bool:
        """Apply and publish one update of the market topic; it is ours from now on."""
        if isinstance(message, BookUpdate):
            return self._apply_book(message)
        chain = self._chain(message)
        link = chain.link(message.epoch, message.seq, message.prev_seq)
        if not self._is_news(link):
            return False
        if link is BROKEN and chain.epoch:
            self._fanout.counters.chain_breaks += 1
        chain.move(message.epoch, message.seq)
        self._apply_other(message, link)
        return True

    def advance(self, record: bytes) -> bool:
        """What `apply` does for the message of a record of the market topic, without making one.

        Returns:
            False: it is no delta that continues the book, and nothing has happened.
        """
        market = self.market
        prev_seq = market.book.seq
        prices: list[list[int]] | None = [] if self._prompt else None
        flags = market.advance(record, prices)
        if flags < 0:
            return False
        self._fanout.counters.applied += 1
        for full in self._full:
            full.advance(record, prev_seq, flags)
        if prices is not None:
            self._follow_delta(prices[0], prices[1])
        if self._quotes is not None and self._quotes.derived:
            self._quotes.derive()
        return True

    def _follow_delta(self, bids: list[int], asks: list[int]) -> None:
        for tier in self._prompt:
            tier.on_delta(bids, asks)

    def load(self, state: InstrumentState) -> None:
        """Adopt what is newer in a state from the snapshots topic. Book before status: the status is the last word."""
        if state.book is not None:
            state.book.flags |= Flag.SNAPSHOT
            state.book.prev_seq = 0
            if self.market.link_book(state.book) is START or self._proves(state.book):
                self._apply_book(state.book, START)
        for message in (state.trades, state.bbo, state.status):
            if message is None:
                continue
            chain = self._chain(message)
            if (message.epoch, message.seq) <= (chain.epoch, chain.seq):
                continue
            same_epoch = chain.epoch == message.epoch
            message.prev_seq = chain.seq if same_epoch else 0
            chain.move(message.epoch, message.seq)
            if isinstance(message, TradesUpdate):
                self._load_trades(message)
            else:
                self._apply_other(message, BROKEN if same_epoch else START)

    def _proves(self, book: BookUpdate) -> bool:
        """Nothing of it was lost: of a gapped instrument, the state beyond the gap is where we are."""
        market = self.market
        is_here = (book.epoch, book.seq) == (market.book.epoch, market.book.seq)
        return market.gapped and is_here and not book.flags & Flag.GAPPED

    def _load_trades(self, update: TradesUpdate) -> None:
        """The last trades before a position: history for joiners, a hole for who listens."""
        self.market.learn(update.scale)
        self.market.forget_trades()
        self.market.keep_trades(update)
        if self._trades is not None:
            self._trades.jump(update)

    def _chain(self, message: TradesUpdate | QuoteUpdate | StatusUpdate) -> Chain:
        if isinstance(message, TradesUpdate):
            return self.market.trades
        return self.market.quotes if isinstance(message, QuoteUpdate) else self.market.statuses

    def _is_news(self, link: Link) -> bool:
        counters = self._fanout.counters
        if link is DUPLICATE:
            counters.duplicates += 1
            return False
        if link is OLD_EPOCH:
            counters.old_epochs += 1
            return False
        counters.applied += 1
        return True

    def _apply_other(self, message: TradesUpdate | QuoteUpdate | StatusUpdate, link: Link) -> None:
        market = self.market
        if isinstance(message, TradesUpdate):
            market.learn(message.scale)
            if link is BROKEN:
                market.forget_trades()
            if self._trades is not None:
                self._trades.pass_on(message, link)
            market.keep_trades(message)
        elif isinstance(message, QuoteUpdate):
            market.learn(message.scale)
            market.quote = message
            if self._quotes is not None:
                self._quotes.pass_on(message, link)
        else:
            market.status = message
            if self._statuses is not None:
                self._statuses.pass_on(message, link)
            self._follow(message)

    def _apply_book(self, update: BookUpdate, link: Link | None = None) -> bool:
        market = self.market
        if link is None:
            link = market.link_book(update)
        if not self._is_news(link):
            return False
        if link is BROKEN:
            self._fanout.counters.chain_breaks += 1
            self._shift(gapped=market.book.epoch != 0, stale=market.stale, reason=Reason.OFFSETS_LOST)
            return True
        before = self._healths() if market.gapped else []
        market.apply_book(update)
        if market.gapped:
            market.gapped = False
            market.reason = Reason.SNAPSHOT
        for full in self._full:
            update.flags |= full.flags()
            full.publish(update)
        if link is START:
            for tier in self._tiers:
                tier.on_snapshot()
        elif self._prompt:
            self._follow_delta(prices_of(update.bids), prices_of(update.asks))
        if self._quotes is not None and self._quotes.derived:
            self._quotes.derive()
        announce_changes(before)
        return True

    def gap(self, reason: Reason) -> None:
        """Records were lost, says the shell: the book may lack updates, and only a snapshot mends it."""
        market = self.market
        self._shift(gapped=market.book.epoch != 0, stale=market.stale, reason=reason)

    def _follow(self, status: StatusUpdate) -> None:
        """Take the state from ingest. Only a snapshot ends a gap, and none that the book is already past begins one."""
        market = self.market
        if status.state is BookState.SYNCED:
            self._shift(gapped=market.gapped, stale=False, reason=status.reason)
        elif status.state is BookState.STALE:
            self._shift(gapped=market.gapped, stale=True, reason=status.reason)
        elif market.book.epoch and (status.epoch, status.seq) >= (market.book.epoch, market.book.seq):
            self._shift(gapped=True, stale=market.stale, reason=status.reason)

    def _shift(self, *, gapped: bool, stale: bool, reason: Reason) -> None:
        """Change how far the instrument can be trusted, and tell the listeners."""
        market = self.market
        if (market.gapped, market.stale) == (gapped, stale):
            return
        before = self._healths()
        self._fanout.counters.gaps += gapped and not market.gapped
        market.gapped, market.stale, market.reason = gapped, stale, reason
        announce_changes(before)

    def _healths(self) -> list[tuple[Stream, NoticeCode]]:
        return [(stream, stream.health()) for stream in self.streams.values()]

    def state(self) -> BookState:
        """The state now, which may be worse than what ingest said last."""
        state = self.market.state
        return BookState.STALE if self._fanout.stale and state is BookState.SYNCED else state

    def status(self) -> StatusUpdate:
        """What ingest said last, with the state now."""
        market = self.market
        return replace(market.status, stream=0, state=self.state(), reason=market.reason)
