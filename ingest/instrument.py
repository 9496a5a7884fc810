"""One instrument: from what a record says to what the market topic gets, verified before it is said.

A record becomes at most one update per channel. All that can fail happens before the first change, so a record that
cannot be used leaves no trace here.

Epochs. One begins, with all chains, when continuity cannot be proven for the channel in question: at a snapshot that
replaces a published book, at a finer scale, and at once for all channels when the feed or Kafka lost records. A gap in
the book's own sequence is told in the epoch that it ends; trades and quotes go on in it until the snapshot.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from ingest.counts import Counts
from ingest.events import BookEvent, ControlEvent, Event, MapError, QuoteEvent, SequenceRule, TradesEvent
from ingest.merge import merge
from ingest.scaling import Factor, Numbers, Quote, Scaler, Texts
from ingest.sequence import Action, Sequence, Verdict
from protos.book import Book
from protos.fixed import PrecisionError
from protos.messages import (
    BookState,
    BookUpdate,
    Flag,
    Levels,
    MarketMessage,
    QuoteUpdate,
    Reason,
    Scale,
    StatusUpdate,
    TradesUpdate,
)

LEVELS_MAX = 100_000
"""Levels of a book, both sides: 1 MiB on the snapshots topic at the usual 9 bytes. The deepest capture has 46,007."""

QUOTES_MAX = 256
"""Quotes that wait for the book to reach their sequence. Captures have about 10 between two deltas."""

TRADES_KEPT = 50
"""Last trades, for who joins."""

BOOK, TRADES, BBO, STATUS = range(4)
"""Index into `Instrument.positions`."""

_SNAPSHOT, _CROSSED = int(Flag.SNAPSHOT), int(Flag.CROSSED)
STATE_FLAGS = {BookState.GAPPED: int(Flag.GAPPED), BookState.STALE: int(Flag.STALE)}
"""Flags that a state puts on what it covers."""

Checksum = Callable[[Book, Scale], int]


class Tick(NamedTuple):
    """The record that is processed."""

    seq: int
    timestamp_ms: int  # Kafka's
    received_ns: int


class Said(NamedTuple):
    """A record's events by kind."""

    book: BookEvent | None
    quote: QuoteEvent | None
    trades: TradesEvent | None
    control: ControlEvent | None

    @classmethod
    def of(cls, events: list[Event]) -> "Said":
        book = quote = trades = control = None
        for event in events:
            if isinstance(event, BookEvent):
                book = event
            elif isinstance(event, QuoteEvent):
                quote = event
            elif isinstance(event, TradesEvent):
                trades = event
            else:
                control = event
        return cls(book, quote, trades, control)

    @property
    def ts_event_ns(self) -> int:
        return next((event.ts_event_ns for event in self if event), 0)  # only for the rare status


@dataclass(slots=True)
class Turn:
    """What becomes of one record."""

    tick: Tick
    news: Reason | None = None  # why there is a status
    book: BookUpdate | None = None
    rescaled: bool = False


class Instrument:
    """Book, chains and sequence of one instrument; `process` is the whole of it."""

    __slots__ = (
        "_checksum",
        "bbo",
        "book",
        "counts",
        "depth",
        "epoch",
        "feed",
        "positions",
        "quotes",
        "scaler",
        "sequence",
        "status",
        "times",
        "trades",
    )

    def __init__(self, feed: str, rule: SequenceRule, trims: bool, checksum: Checksum | None, counts: Counts) -> None:
        self.feed = feed
        self.sequence = Sequence(rule)
        self.scaler = Scaler(trims)
        self.counts = counts
        self.book = Book()  # as last published
        self.times = (0, 0)  # its ts_event_ns and ts_received_ns
        self.depth = 0  # levels per side that the venue maintains; 0: all
        self.epoch = 0
        self.positions = [0, 0, 0, 0]  # seq of the last update of each channel in this epoch
        self.quotes: dict[int, Quote] = {}  # by venue sequence, ahead of the book
        self.status: StatusUpdate | None = None
        self.bbo: QuoteUpdate | None = None
        self.trades: TradesUpdate | None = None  # the last update's position, with the last TRADES_KEPT
        self._checksum = checksum

    def process(self, tick: Tick, events: list[Event]) -> list[MarketMessage]:
        """The updates that follow from one record: status, book, quote, trades.

        Raises:
            MapError: The record cannot be used; nothing has changed.
        """
        said, turn = Said.of(events), Turn(tick)
        before = self.sequence if not said.control else Sequence(self.sequence.rule, BookState.GAPPED)
        verdict = before.judge(said.book) if said.book else Verdict(Action.DROP)
        scaler, numbers = self._convert(said, verdict)
        # Nothing above has changed anything, and nothing below fails.
        if scaler is not self.scaler:
            self._change_scale(scaler, turn)
        if not self.epoch:
            self._begin_epoch(tick)
        if said.control:
            self._lose(said.control.reason, turn)
        if said.quote:
            self._witness(said.quote.last, numbers.quote, turn)
        if said.book:
            self._follow(said.book, verdict, numbers, turn)
        return self._messages(said, numbers, turn)

    def _convert(self, said: Said, verdict: Verdict) -> tuple[Scaler, Numbers]:
        """In our scale, or a finer one, or, for a snapshot that fits neither, one learned anew. Raises `MapError`."""
        books = (said.book, *verdict.merged) if said.book else ()
        texts = Texts(books, said.quote, said.trades)
        resets = verdict.action is Action.RESET
        try:
            return self.scaler, self.scaler.convert(texts)
        except PrecisionError:
            scaler = self.scaler.refined(texts)
        except MapError:
            if not resets:
                raise
            scaler = Scaler(self.scaler.trims).refined(texts)
        factor = Factor.between(self.scaler.scale, scaler.scale)
        if not resets and not (factor and all(map(factor.fits, (self.book.bids.levels(), self.book.asks.levels())))):
            raise MapError("bad-price", "more decimals than the book's other prices and sizes leave room for")
        return scaler, scaler.convert(texts)

    def _change_scale(self, scaler: Scaler, turn: Turn) -> None:
        """The same book in finer units. What was published in the old ones ends with its epoch."""
        factor = Factor.between(self.scaler.scale, scaler.scale)
        self.scaler = scaler
        self.quotes.clear()
        if factor is None:  # learned anew, by a snapshot
            self.bbo = self.trades = None
        else:
            for side in (self.book.bids, self.book.asks):
                side.replace(factor.levels(side.levels()))
            self._rescale_last(factor)
        self.book.scale = scaler.scale
        if self.positions[BOOK] or self.positions[TRADES] or self.positions[BBO]:
            self._begin_epoch(turn.tick)
            turn.rescaled = self.sequence.state is BookState.SYNCED
            turn.news = Reason.SCALE_CHANGE

    def _rescale_last(self, factor: Factor) -> None:
        if self.bbo:
            (bid, ask) = factor.levels(
                [(self.bbo.bid_ticks, self.bbo.bid_lots), (self.bbo.ask_ticks, self.bbo.ask_lots)]
            )
            self.bbo = replace(self.bbo, bid_ticks=bid[0], bid_lots=bid[1], ask_ticks=ask[0], ask_lots=ask[1])
        if self.trades:
            trades = [replace(t, ticks=t.ticks * factor.ticks, lots=t.lots * factor.lots) for t in self.trades.trades]
            self.trades = replace(self.trades, trades=trades)

    def _begin_epoch(self, tick: Tick) -> None:
        """All chains anew. From the record's time, so that a replay gives the same, and above every earlier one."""
        self.epoch = max(self.epoch + 1, tick.timestamp_ms)
        self.positions = [0, 0, 0, 0]
        self.counts.epochs += 1

    def _lose(self, reason: Reason, turn: Turn) -> None:
        """Any channel may lack updates: no chain continues."""
        self._begin_epoch(turn.tick)
        self._break(reason, turn, BookState.STALE if reason is Reason.FEED_DISCONNECTED else BookState.GAPPED)

    def _break(self, reason: Reason, turn: Turn, state: BookState = BookState.GAPPED) -> None:
        self.sequence.lose(state)
        self._tell_gap(reason, turn)

    def _tell_gap(self, reason: Reason, turn: Turn) -> None:
        turn.news = reason
        self.counts.gaps[reason] = self.counts.gaps.get(reason, 0) + 1

    def _witness(self, venue_sequence: int | None, quote: Quote | None, turn: Turn) -> None:
        """A quote that shares the book's sequence proves or refutes the book; ahead of it, it waits."""
        if venue_sequence is None or quote is None:
            return
        synced, last = self.sequence.state is BookState.SYNCED, self.sequence.last
        if synced and venue_sequence == last:
            if not self._agrees(self.book, quote):
                self._break(Reason.BBO_MISMATCH, turn)
        elif not synced or last is None or venue_sequence > last:
            if len(self.quotes) >= QUOTES_MAX:
                del self.quotes[next(iter(self.quotes))]
            self.quotes[venue_sequence] = quote

    def _agrees(self, book: Book, quote: Quote) -> bool:
        bids, asks = book.top(1)
        agrees = (*(bids or [(0, 0)])[0], *(asks or [(0, 0)])[0]) == quote
        if agrees:
            self.counts.quotes_passed += 1
        else:
            self.counts.quotes_failed += 1
        return agrees

    def _refuted(self, book: Book, checksum: int | None, venue_sequence: int | None) -> Reason | None:
        """What is wrong with a book that is about to be published."""
        if len(book.bids) + len(book.asks) > LEVELS_MAX:
            return Reason.INVALID_BOOK
        if checksum is not None and self._checksum:
            if self._checksum(book, self.scaler.scale) != checksum:
                self.counts.checksums_failed += 1
                return Reason.CHECKSUM_MISMATCH
            self.counts.checksums_passed += 1
        if self.quotes and venue_sequence is not None:
            quote = self.quotes.get(venue_sequence)
            self.quotes = {last: waiting for last, waiting in self.quotes.items() if last > venue_sequence}
            if quote and not self._agrees(book, quote):
                return Reason.BBO_MISMATCH
        return None

    def _follow(self, event: BookEvent, verdict: Verdict, numbers: Numbers, turn: Turn) -> None:
        if verdict.action is Action.RESET:
            self._reset(event, verdict, numbers, turn)
        elif verdict.action is Action.APPLY:
            self._apply(event, verdict, numbers, turn)
        else:
            self.sequence.commit(event, verdict)
            if verdict.action is Action.GAP:
                self._tell_gap(verdict.reason, turn)

    def _reset(self, event: BookEvent, verdict: Verdict, numbers: Numbers, turn: Turn) -> None:
        book = Book()
        book.bids.replace(numbers.bids)
        book.asks.replace(numbers.asks)
        if event.depth:
            book.cut(event.depth)
        last = (verdict.merged or (event,))[-1]
        refuted = self._refuted(book, event.checksum, last.last)
        if refuted is not None:
            self._break(refuted, turn)
            return
        self.sequence.commit(event, verdict)
        self.book, self.depth = book, event.depth
        turn.news = verdict.reason
        if self.positions[BOOK]:
            self._begin_epoch(turn.tick)
        turn.book = self._snapshot(turn.tick, last.ts_event_ns, event.checksum)

    def _apply(self, event: BookEvent, verdict: Verdict, numbers: Numbers, turn: Turn) -> None:
        book, tick, depth = self.book, turn.tick, event.depth or self.depth
        undo_bids: Levels = []
        undo_asks: Levels = []
        bids = merge(book.bids, numbers.bids, depth, True, undo_bids)
        asks = merge(book.asks, numbers.asks, depth, False, undo_asks)
        refuted = self._refuted(book, event.checksum, event.last)
        if refuted is not None:
            book.bids.apply(undo_bids)
            book.asks.apply(undo_asks)
            self._break(refuted, turn)
            return
        self.sequence.commit(event, verdict)
        if turn.rescaled:
            turn.book = self._snapshot(tick, event.ts_event_ns, event.checksum)
            return
        update = self._positioned(tick, event.ts_event_ns)
        update.bids, update.asks, update.venue_checksum = bids, asks, event.checksum
        turn.book = update

    def _positioned(self, tick: Tick, ts_event_ns: int) -> BookUpdate:
        """A delta without levels, the next of its chain; the book's position follows it."""
        flags, book = 0, self.book
        if book.crossed:
            flags = _CROSSED
            self.counts.crossed += 1
        prev_seq = self.positions[BOOK]
        self.positions[BOOK] = book.seq = tick.seq
        book.epoch = self.epoch
        self.times = (ts_event_ns, tick.received_ns)
        return BookUpdate(0, self.epoch, tick.seq, prev_seq, flags, ts_event_ns, tick.received_ns)

    def _snapshot(self, tick: Tick, ts_event_ns: int, checksum: int | None = None) -> BookUpdate:
        """The book in full. Starts the chain: whoever calls this has begun an epoch if there was one."""
        update = self._positioned(tick, ts_event_ns)
        update.flags |= _SNAPSHOT
        update.bids, update.asks = self.book.bids.levels(), self.book.asks.levels()
        update.scale = self.book.scale = self.scaler.scale
        update.venue_checksum, update.venue_depth = checksum, self.depth
        return update

    def _messages(self, said: Said, numbers: Numbers, turn: Turn) -> list[MarketMessage]:
        tick = turn.tick
        if turn.rescaled and turn.book is None and self.sequence.state is BookState.SYNCED:
            turn.book = self._snapshot(tick, self.times[0])
        if turn.news is None and not self.positions[STATUS]:
            turn.news = Reason.NONE  # the first of this instrument
        messages: list[MarketMessage] = []
        if turn.news is not None:
            messages.append(self._status(turn.news, said.ts_event_ns, tick))
        if turn.book:
            messages.append(turn.book)
        if said.quote and numbers.quote:
            messages.append(self._quote(numbers.quote, said.quote.ts_event_ns, tick))
        if said.trades and numbers.trades:
            messages.append(self._trades(numbers, said.trades.ts_event_ns, tick))
        return messages

    def _status(self, reason: Reason, ts_event_ns: int, tick: Tick) -> StatusUpdate:
        state, prev_seq = self.sequence.state, self._advance(STATUS, tick)
        flags = STATE_FLAGS.get(state, 0)
        self.status = StatusUpdate(
            0, self.epoch, tick.seq, prev_seq, flags, ts_event_ns, tick.received_ns, state=state, reason=reason
        )
        return self.status

    def _quote(self, quote: Quote, ts_event_ns: int, tick: Tick) -> QuoteUpdate:
        prev_seq = self._advance(BBO, tick)
        scale = None if prev_seq else self.scaler.scale
        self.bbo = QuoteUpdate(
            0, self.epoch, tick.seq, prev_seq, 0, ts_event_ns, tick.received_ns, 0, *quote, scale=scale
        )
        return self.bbo

    def _trades(self, numbers: Numbers, ts_event_ns: int, tick: Tick) -> TradesUpdate:
        prev_seq = self._advance(TRADES, tick)
        scale = None if prev_seq else self.scaler.scale
        update = TradesUpdate(
            0, self.epoch, tick.seq, prev_seq, 0, ts_event_ns, tick.received_ns, 0, numbers.trades, scale
        )
        kept = ((self.trades.trades if self.trades else []) + numbers.trades)[-TRADES_KEPT:]
        self.trades = replace(update, trades=kept)
        return update

    def _advance(self, channel: int, tick: Tick) -> int:
        prev_seq = self.positions[channel]
        self.positions[channel] = tick.seq
        return prev_seq
