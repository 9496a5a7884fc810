"""One instrument, record by record: epochs, chains, scale, verification before publication."""

from collections.abc import Iterator
from itertools import count

import pytest

from ingest.checksum import CHECKSUMS
from ingest.counts import Counts
from ingest.events import (
    BookEvent,
    ControlEvent,
    Event,
    MapError,
    QuoteEvent,
    SequenceRule,
    TextTrade,
    TradesEvent,
)
from ingest.instrument import LEVELS_MAX, QUOTES_MAX, TRADES_KEPT, Instrument, Tick
from protos.book import Book
from protos.messages import (
    BookState,
    BookUpdate,
    Flag,
    MarketMessage,
    QuoteUpdate,
    Reason,
    Scale,
    Side,
    StatusUpdate,
    TradesUpdate,
)
from tests.support.ticklog import Follower

T0 = 1_700_000_000_000


class Feed:
    """Sends events to an instrument, and what comes out to a follower."""

    def __init__(self, rule: SequenceRule = SequenceRule.COINBASE, *, trims: bool = True, venue: str = "") -> None:
        self.counts = Counts()
        self.instrument = Instrument("x", rule, trims, CHECKSUMS.get(venue), self.counts)
        self.follower = Follower()
        self._seq: Iterator[int] = count(1)

    def send(self, *events: Event) -> list[MarketMessage]:
        seq = next(self._seq)
        updates = self.instrument.process(Tick(seq, T0 + seq, (T0 + seq) * 1_000_000), list(events))
        for update in updates:
            self.follower.apply(update)
        assert len({type(update) for update in updates}) == len(updates)
        return updates

    def book(self, *events: Event) -> BookUpdate | None:
        return next((u for u in self.send(*events) if isinstance(u, BookUpdate)), None)

    @property
    def levels(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        book = self.instrument.book
        assert (book.bids.levels(), book.asks.levels()) == (
            self.follower.book.bids.levels(),
            self.follower.book.asks.levels(),
        )
        return book.bids.levels(), book.asks.levels()


def snapshot(bids: list[tuple[str, str]], asks: list[tuple[str, str]], **fields: int) -> BookEvent:
    return BookEvent(True, bids, asks, **fields)  # type: ignore[arg-type]


def delta(bids: list[tuple[str, str]], asks: list[tuple[str, str]], **fields: int) -> BookEvent:
    return BookEvent(False, bids, asks, **fields)  # type: ignore[arg-type]


def trade(price: str, size: str = "1") -> TradesEvent:
    return TradesEvent([TextTrade(price, size, Side.BUY, "1", 5)], 5)


START = snapshot([("10", "1"), ("9", "2")], [("11", "3"), ("12", "4")])


def test_first_record_makes_the_instrument_known() -> None:
    feed = Feed()
    status, trades = feed.send(trade("10.5"))
    assert isinstance(status, StatusUpdate)
    assert isinstance(trades, TradesUpdate)
    assert (status.state, status.reason, status.epoch) == (BookState.WAITING, Reason.NONE, T0 + 1)
    assert (trades.epoch, trades.seq, trades.prev_seq, trades.scale) == (T0 + 1, 1, 0, Scale(-1, 0))
    assert trades.trades[0].ticks == 105


def test_the_first_snapshot_goes_on_in_the_epoch_of_trades_before_it() -> None:
    feed = Feed()
    feed.send(trade("10"))
    status, book = feed.send(START)
    assert isinstance(status, StatusUpdate)
    assert isinstance(book, BookUpdate)
    assert (status.state, status.reason, status.prev_seq) == (BookState.SYNCED, Reason.SNAPSHOT, 1)
    assert (book.epoch, book.seq, book.prev_seq, book.flags) == (T0 + 1, 2, 0, Flag.SNAPSHOT)
    (later,) = feed.send(trade("10"))
    assert later.prev_seq == 1


def test_a_second_snapshot_begins_an_epoch() -> None:
    feed = Feed()
    feed.send(START)
    status, book = feed.send(snapshot([("8", "1")], []))
    assert (status.epoch, book.epoch, book.prev_seq) == (T0 + 2, T0 + 2, 0)
    assert feed.levels == ([(8, 1)], [])
    assert feed.counts.epochs == 2


def test_epochs_rise_even_when_the_clock_does_not() -> None:
    feed = Feed()
    feed.instrument.epoch = T0 + 100
    assert feed.send(ControlEvent(Reason.FEED_GAP))[0].epoch == T0 + 101
    assert feed.send(ControlEvent(Reason.FEED_GAP))[0].epoch == T0 + 102


def test_deltas_are_sorted_without_doubles_and_useless_removals() -> None:
    feed = Feed()
    feed.send(START)
    update = feed.book(delta([("9.0", "0"), ("7", "0"), ("10", "5"), ("8", "1"), ("10", "6")], [("13", "1")]))
    assert update is not None
    assert (update.bids, update.asks, update.prev_seq) == ([(8, 1), (9, 0), (10, 6)], [(13, 1)], 1)
    assert feed.levels == ([(8, 1), (10, 6)], [(11, 3), (12, 4), (13, 1)])


def test_a_delta_without_effect_is_still_told() -> None:
    feed = Feed()
    feed.send(START)
    update = feed.book(delta([("1", "0")], []))
    assert update is not None
    assert (update.bids, update.asks, update.prev_seq) == ([], [], 1)


def test_the_venues_cut_is_in_the_delta() -> None:
    feed = Feed(SequenceRule.KRAKEN)
    start = snapshot([("10", "1"), ("9", "1"), ("8", "1")], [("11", "1"), ("12", "1")], depth=2)
    first = feed.book(start)
    assert first is not None
    assert (first.bids, first.venue_depth) == ([(9, 1), (10, 1)], 2)
    update = feed.book(delta([("9.0", "5"), ("9.5", "1"), ("8", "1")], [("10.5", "1")]))
    assert update is not None
    assert update.scale == Scale(-1, 0)  # finer than before, so it is a snapshot
    update = feed.book(delta([("9.7", "2"), ("9.5", "3"), ("9", "4")], [("13", "1"), ("10.6", "1")]))
    assert update is not None
    assert (update.bids, update.asks) == ([(95, 0), (97, 2)], [(106, 1), (110, 0)])
    assert feed.levels == ([(97, 2), (100, 1)], [(105, 1), (106, 1)])


def test_crossed_books_are_flagged_not_repaired() -> None:
    feed = Feed()
    feed.send(START)
    crossing = feed.book(delta([("11", "1")], []))
    still = feed.book(delta([("1", "1")], []))
    over = feed.book(delta([("11", "0")], []))
    assert [update.flags for update in (crossing, still, over) if update] == [Flag.CROSSED, Flag.CROSSED, 0]
    assert feed.counts.crossed == 2


def test_a_finer_price_begins_an_epoch_with_the_same_book() -> None:
    feed = Feed()
    feed.send(START)
    feed.send(QuoteEvent(("10", "1"), ("11", "3")))
    status, book = feed.send(delta([("9.55", "0.5")], []))
    assert isinstance(book, BookUpdate)
    assert (status.reason, status.state, status.epoch) == (Reason.SCALE_CHANGE, BookState.SYNCED, T0 + 3)  # type: ignore[union-attr]
    assert (book.flags, book.scale) == (Flag.SNAPSHOT, Scale(-2, -1))
    assert book.bids == [(900, 20), (955, 5), (1000, 10)]
    assert feed.instrument.bbo is not None
    assert feed.instrument.bbo.bid_ticks == 1000


def test_a_finer_trade_rescales_the_book_too() -> None:
    feed = Feed()
    feed.send(START)
    feed.send(trade("10"))
    status, book, trades = feed.send(trade("10.5"))
    assert isinstance(book, BookUpdate)
    assert isinstance(trades, TradesUpdate)
    assert (status.epoch, book.epoch, trades.epoch) == (T0 + 3,) * 3
    assert (book.bids, trades.trades[0].ticks, trades.scale) == ([(90, 2), (100, 1)], 105, Scale(-1, 0))
    assert feed.instrument.trades is not None
    assert [t.ticks for t in feed.instrument.trades.trades] == [100, 105]


def test_a_scale_the_book_has_no_room_for_is_refused() -> None:
    feed = Feed()
    feed.send(snapshot([("100000000", "1")], []))
    before = repr(feed.instrument.sequence)
    with pytest.raises(MapError):
        feed.send(delta([("0.00000000001", "1")], []))
    assert repr(feed.instrument.sequence) == before
    assert feed.levels == ([(100000000, 1)], [])
    assert feed.book(delta([("1", "1")], [])) is not None


def test_a_snapshot_can_mend_a_scale_learned_from_nonsense() -> None:
    feed = Feed()
    feed.send(trade("0.000000000000001"))
    with pytest.raises(MapError):
        feed.send(trade("61837.5"))
    status, book = feed.send(snapshot([("61837.5", "1")], []))
    assert isinstance(book, BookUpdate)
    assert (status.epoch, book.scale, book.bids) == (T0 + 3, Scale(-1, 0), [(618375, 1)])
    feed.send(trade("61837.5"))


def test_what_cannot_be_used_leaves_no_trace() -> None:
    feed = Feed(SequenceRule.BINANCE_SPOT)
    feed.send(snapshot([("10", "1")], [], last=5))
    for bad in (delta([("11", "1"), ("x", "1")], [], first=6, last=6), delta([("11", "9" * 19)], [], first=6, last=6)):
        with pytest.raises(MapError):
            feed.instrument.process(Tick(2, T0, 0), [bad, trade("10")])
    assert feed.instrument.trades is None
    assert feed.levels == ([(10, 1)], [])
    assert feed.book(delta([("11", "1")], [], first=6, last=6)) is not None


# ---- gaps


def test_a_gap_is_told_once_and_in_the_epoch_it_ends() -> None:
    feed = Feed(SequenceRule.BYBIT)
    feed.send(snapshot([("10", "1")], [], last=5))
    (status,) = feed.send(delta([("9", "1")], [], last=7))
    assert isinstance(status, StatusUpdate)
    assert (status.state, status.reason, status.flags) == (BookState.GAPPED, Reason.SEQUENCE_GAP, Flag.GAPPED)
    assert (status.epoch, status.prev_seq) == (T0 + 1, 1)
    assert feed.send(delta([("9", "1")], [], last=8)) == []
    (trades,) = feed.send(trade("10"))
    assert trades.epoch == T0 + 1
    status, book = feed.send(snapshot([("8", "1")], [], last=20))
    assert (status.epoch, book.epoch, book.prev_seq) == (T0 + 5, T0 + 5, 0)
    assert feed.counts.gaps == {Reason.SEQUENCE_GAP: 1}


@pytest.mark.parametrize(
    ("reason", "state"),
    [(Reason.FEED_GAP, BookState.GAPPED), (Reason.FEED_DISCONNECTED, BookState.STALE)],
)
def test_what_the_feed_lost_ends_all_chains_at_once(reason: Reason, state: BookState) -> None:
    feed = Feed()
    feed.send(START)
    feed.send(trade("10"))
    (status,) = feed.send(ControlEvent(reason))
    assert isinstance(status, StatusUpdate)
    assert (status.state, status.reason, status.epoch, status.prev_seq) == (state, reason, T0 + 3, 0)
    (trades,) = feed.send(trade("10"))
    assert (trades.epoch, trades.prev_seq) == (T0 + 3, 0)
    status, book = feed.send(START)
    assert (status.epoch, book.epoch) == (T0 + 3, T0 + 3)


def test_too_many_levels_are_no_book() -> None:
    feed = Feed()
    feed.send(START)
    assert feed.book(delta([(str(i), "1") for i in range(1, LEVELS_MAX + 2)], [])) is None
    assert feed.follower.reasons[-1] is Reason.INVALID_BOOK
    assert feed.levels == ([(9, 2), (10, 1)], [(11, 3), (12, 4)])


# ---- checksums


def kraken(bids: list[tuple[int, int]], asks: list[tuple[int, int]]) -> int:
    book = Book()
    book.bids.replace(bids)
    book.asks.replace(asks)
    return CHECKSUMS["kraken"](book, Scale(0, 0))


def test_a_wrong_checksum_is_found_before_publication_and_taken_back() -> None:
    feed = Feed(SequenceRule.KRAKEN, trims=False, venue="kraken")
    feed.send(START)
    good = kraken([(9, 2), (10, 7)], [(11, 3), (12, 4)])
    update = feed.book(delta([("10", "7")], [], checksum=good))
    assert update is not None
    assert update.venue_checksum == good
    (status,) = feed.send(delta([("10", "8")], [("12", "0")], checksum=good))
    assert isinstance(status, StatusUpdate)
    assert (status.state, status.reason) == (BookState.GAPPED, Reason.CHECKSUM_MISMATCH)
    assert feed.levels == ([(9, 2), (10, 7)], [(11, 3), (12, 4)])
    assert (feed.counts.checksums_passed, feed.counts.checksums_failed) == (1, 1)


def test_a_snapshot_with_a_wrong_checksum_does_not_replace() -> None:
    feed = Feed(SequenceRule.OKX, venue="okx")
    feed.send(START)
    (status,) = feed.send(snapshot([("8", "1")], [], checksum=1))
    assert isinstance(status, StatusUpdate)
    assert status.reason is Reason.CHECKSUM_MISMATCH
    assert feed.levels == ([(9, 2), (10, 1)], [(11, 3), (12, 4)])


# ---- quotes that share the book's sequence


def test_a_quote_before_the_delta_stops_a_wrong_book() -> None:
    feed = Feed(SequenceRule.BINANCE_SPOT)
    feed.send(snapshot([("10", "1")], [("11", "1")], last=5))
    feed.send(QuoteEvent(("10", "2"), ("11", "1"), last=6))
    feed.send(QuoteEvent(("10", "9"), ("11", "1"), last=7))
    assert feed.book(delta([("10", "2")], [], first=6, last=6)) is not None
    (status,) = feed.send(delta([("10", "3")], [], first=7, last=7))
    assert isinstance(status, StatusUpdate)
    assert status.reason is Reason.BBO_MISMATCH
    assert feed.levels == ([(10, 2)], [(11, 1)])
    assert (feed.counts.quotes_passed, feed.counts.quotes_failed) == (1, 1)


def test_a_quote_after_the_delta_ends_a_wrong_book() -> None:
    feed = Feed(SequenceRule.BINANCE_SPOT)
    feed.send(snapshot([("10", "1")], [], last=5))
    assert [type(u) for u in feed.send(QuoteEvent(("10", "1"), ("", ""), last=5))] == [QuoteUpdate]
    status, quote = feed.send(QuoteEvent(("10", "2"), ("", ""), last=5))
    assert isinstance(status, StatusUpdate)
    assert (status.reason, type(quote)) == (Reason.BBO_MISMATCH, QuoteUpdate)


def test_quotes_at_other_sequences_prove_nothing() -> None:
    feed = Feed(SequenceRule.BINANCE_SPOT)
    feed.send(snapshot([("10", "1")], [], last=5))
    for last in (4, 6, None):
        assert [type(u) for u in feed.send(QuoteEvent(("99", "2"), ("", ""), last=last))] == [QuoteUpdate]
    assert feed.book(delta([], [], first=6, last=7)) is not None


def test_waiting_quotes_are_bounded() -> None:
    feed = Feed(SequenceRule.BINANCE_SPOT)
    for u in range(QUOTES_MAX + 10):
        feed.send(QuoteEvent(("10", "1"), ("11", "1"), last=u))
    assert len(feed.instrument.quotes) == QUOTES_MAX
    assert min(feed.instrument.quotes) == 10


def test_kept_trades_are_bounded() -> None:
    feed = Feed()
    for i in range(1, TRADES_KEPT + 10):
        feed.send(trade(str(i)))
    assert feed.instrument.trades is not None
    assert [t.ticks for t in feed.instrument.trades.trades] == list(range(10, TRADES_KEPT + 10))
