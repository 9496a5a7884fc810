"""The pipeline on the captures: chains hold, venues' proofs pass, state survives any cut, faults stay put."""

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest.checksum import CHECKSUMS
from ingest.counts import Counts
from ingest.events import BookEvent, SequenceRule
from ingest.instrument import LEVELS_MAX, QUOTES_MAX, TRADES_KEPT, Instrument
from ingest.mappers.fields import TRADE_ID_MAX
from ingest.pipeline import TIME_MS_MAX, Pipeline, TickRecord, seq_of
from ingest.sequence import BUFFERED_LEVELS_MAX
from ingest.state import export_state
from protos.fixed import DIGITS_MAX
from protos.messages import BookState, BookUpdate, InstrumentState, Reason, Side, StatusUpdate, Trade, TradesUpdate
from protos.records import decode_state, encode_state
from services.kafka import RECORD_BYTES_MAX
from tests.support.captures import FILES
from tests.support.ticklog import VALUE_BYTES_MAX, Followers, encoded, log_of, record, run

PART = {name: 4_000 if name.startswith("binance") else None for name in FILES}
"""The beginning of the long captures is enough where every record costs a comparison."""
SHORT = {name: 120 if name == "coinbase" else 1_200 for name in FILES}
"""Coinbase's books have 46,000 levels, others 3,000 at most."""


def pipeline() -> Pipeline:
    return Pipeline(0, VALUE_BYTES_MAX)


@pytest.mark.captures
@pytest.mark.parametrize("name", FILES)
def test_captures(name: str) -> None:
    """Every book a reader of the market topic has is ours, without a gap, and has the venue's checksum."""
    ours, readers, checksums = pipeline(), Followers(), 0
    for tick in log_of(name, PART[name]):
        outputs = ours.process(tick)
        assert outputs.dead is None
        readers.apply(outputs)
        for key, update in outputs.market:
            if isinstance(update, BookUpdate) and update.venue_checksum is not None:
                book = readers[key.decode()].book
                assert book.scale is not None
                assert CHECKSUMS[name](book, book.scale) == update.venue_checksum
                checksums += 1
    counts = ours.take_counts()
    assert counts.gaps == {}
    assert (counts.checksums_passed, counts.checksums_failed) == (checksums, 0)
    assert (checksums > 0) == (name in CHECKSUMS)
    assert (counts.quotes_passed > 0) == name.startswith("binance")
    assert counts.quotes_failed == 0
    for instrument, state in ours.changed().items():
        reader = readers[instrument]
        if state.book is None:
            assert reader.book.epoch == 0
            continue
        assert reader.state is BookState.SYNCED
        assert (state.book.bids, state.book.asks) == (reader.book.bids.levels(), reader.book.asks.levels())
        assert (state.book.epoch, state.book.seq) == (reader.book.epoch, reader.book.seq)


def test_seq_is_never_zero() -> None:
    assert seq_of(0) == 1
    first, *_ = pipeline().process(log_of("kraken", 1)[0]).market
    assert first[1].seq == 1


def test_markets_of_one_symbol_never_mix() -> None:
    logs = [log_of(name, 2_000) for name in ("binance.spot", "binance.usdm")]
    mixed = [tick for pair in zip(*logs, strict=True) for tick in pair]
    both = run(pipeline(), mixed)
    alone = [run(pipeline(), log) for log in logs]
    assert [pair for pair in both if pair[0] == b"binance:spot:BTCUSDT"] == alone[0]
    assert [pair for pair in both if pair[0] == b"binance:usdm:BTCUSDT"] == alone[1]


# ---- restore


def stored(states: dict[str, InstrumentState]) -> dict[str, InstrumentState]:
    """Through the bytes of the snapshots topic."""
    return {name: decode_state(encode_state(state)) for name, state in states.items()}


def with_gaps(log: list[TickRecord], every: int) -> list[TickRecord]:
    """Without each so-manyth record: gapped books, buffers and waiting quotes are states too."""
    return [tick for i, tick in enumerate(log) if i % every != every - 1]


@pytest.mark.captures
@pytest.mark.parametrize("name", FILES)
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data())
def test_any_cut_continues_byte_for_byte(name: str, data: st.DataObject) -> None:
    """Also when each instrument was stored at a cut of its own."""
    log = with_gaps(log_of(name, SHORT[name]), data.draw(st.sampled_from([7, 100, 2_000])))
    first_cut = data.draw(st.integers(0, len(log)))
    last_cut = data.draw(st.integers(first_cut, len(log)))
    whole = [encoded(outputs) for outputs in map(pipeline().process, log)]

    before = pipeline()
    run(before, log[:first_cut])
    states = before.changed()
    run(before, log[first_cut:last_cut])
    later = data.draw(st.sets(st.sampled_from(sorted(states)))) if states else set()
    newer = before.changed()
    states |= {instrument: state for instrument, state in newer.items() if instrument in later}
    after = pipeline()
    for instrument, state in stored(states).items():
        after.restore(instrument, state)
    cuts = {instrument.encode(): state.ticks_offset for instrument, state in states.items()}

    for tick, expected in zip(log[first_cut:], whole[first_cut:], strict=True):
        done = tick.key is not None and tick.offset < cuts.get(tick.key, 0)
        assert encoded(after.process(tick)) == ([] if done else expected)


@pytest.mark.captures
@pytest.mark.parametrize("name", FILES)
def test_a_restored_state_is_the_state(name: str) -> None:
    log = with_gaps(log_of(name, SHORT[name]), 100)
    ours = pipeline()
    run(ours, log)
    for instrument, state in ours.changed().items():
        again = pipeline()
        again.position = state.ticks_offset
        again.restore(instrument, stored({instrument: state})[instrument])
        again._changed.add(instrument)
        assert encode_state(again.changed()[instrument]) == encode_state(state)


def test_changed_is_what_had_records() -> None:
    log = log_of("kraken")
    ours = pipeline()
    run(ours, log[:500])
    assert len(ours.changed()) == 10
    run(ours, log[500:501])
    assert list(ours.changed()) == [(log[500].key or b"").decode()]
    assert ours.changed() == {}
    assert ours.position == 501


def test_the_largest_state_fits_a_record() -> None:
    widest, text = 10**DIGITS_MAX - 1, "0" * 63 + "1"
    largest = Instrument(FEED, SequenceRule.BINANCE_SPOT, True, None, Counts())
    for side in (largest.book.bids, largest.book.asks):  # prices as far apart as can be
        side.replace([(widest - i * 10**13, widest) for i in reversed(range(LEVELS_MAX // 2))])
    largest.book.epoch = 1
    for i in range(15):
        largest.sequence.keep(BookEvent(False, [(text, text)] * (BUFFERED_LEVELS_MAX // 15), [], first=i, last=i))
    largest.quotes = {TIME_MS_MAX + i: (widest,) * 4 for i in range(QUOTES_MAX)}
    trades = [Trade(widest, widest, Side.BUY, "x" * TRADE_ID_MAX, 1)] * TRADES_KEPT
    largest.trades = TradesUpdate(trades=trades)
    assert len(encode_state(export_state(largest, 1))) < RECORD_BYTES_MAX


def test_a_time_that_is_none_starts_no_epoch_of_its_own() -> None:
    for timestamp_ms in (-1, 2**62):
        tick = log_of("kraken", 1)[0]._replace(timestamp_ms=timestamp_ms, headers={"feed": b"kraken"})
        status, _ = (update for _, update in pipeline().process(tick).market)
        assert (status.epoch, status.ts_received_ns) == (1, 0)


# ---- records that cannot be used

SPOT = "binance:spot:BTCUSDT"
FEED = "binance.spot"
DELTA = {"e": "depthUpdate", "E": 1, "s": "BTCUSDT", "U": 1, "u": 2, "b": [["1.5", "2"]], "a": []}
CANONICAL = {"version": 1, "kind": "delta", "sequence": 2, "prev_sequence": 1, "bids": [["1", "1"]]}


def changed_delta(**fields: object) -> bytes:
    return orjson.dumps({**DELTA, **fields})


BAD = {
    "bad-json": record(0, SPOT, b'{"e": "depthUpdate"', FEED),
    "unknown-feed": record(0, SPOT, changed_delta(), "nowhere"),
    "null-value": record(0, SPOT, None, FEED),
    "too-large": record(0, SPOT, b"[" + b"1," * 1_000_000 + b"1]", FEED),
    "bad-price": record(0, SPOT, changed_delta(b=[["-1.5", "2"]]), FEED),
    "bad-size": record(0, SPOT, changed_delta(b=[["1.5", "-2"]]), FEED),
    "bad-field": record(0, SPOT, changed_delta(b=[[1.5, 2]]), FEED),
    "wrong-instrument": record(0, "binance:spot:ETHUSDT", changed_delta(), FEED),
    "bad-key": record(0, "BTCUSDT", changed_delta(), FEED),
    "bad-version": record(
        0, "x:y:z", orjson.dumps({**CANONICAL, "version": 9}), "canonical", **{"content-type": b"application/json"}
    ),
}
MORE_BAD = {
    "NaN": ("bad-price", record(0, SPOT, changed_delta(b=[["NaN", "2"]]), FEED)),
    "NaN literal": ("bad-json", record(0, SPOT, b'{"e": "depthUpdate", "b": NaN}', FEED)),
    "40 digits": ("bad-price", record(0, SPOT, changed_delta(b=[["1" * 40, "2"]]), FEED)),
    "no feed": ("unknown-feed", record(0, SPOT, changed_delta(), FEED)._replace(headers={})),
    "no key": ("bad-key", record(0, SPOT, changed_delta(), FEED)._replace(key=None)),
    "key not ASCII": ("bad-key", record(0, "binance:spot:\u00e9", changed_delta(), FEED)),
    "key is a checkpoint's": ("bad-key", record(0, "checkpoint/0", changed_delta(), FEED)),
    "received_ns": ("bad-field", record(0, SPOT, changed_delta(), FEED, received_ns=b"soon")),
    "received in 2286": ("bad-field", record(0, SPOT, changed_delta(), FEED, received_ns=b"9" * 19)),
    "other market": ("wrong-instrument", record(0, "binance:usdm:BTCUSDT", changed_delta(), FEED)),
}


@pytest.mark.parametrize(("reason", "tick"), [*BAD.items(), *MORE_BAD.values()], ids=[*BAD, *MORE_BAD])
def test_bad_records_are_dead_and_change_nothing(reason: str, tick: TickRecord) -> None:
    log = log_of(FEED, 300)
    clean, ours = pipeline(), Pipeline(0)
    expected, got = run(clean, log[:150]), run(ours, log[:150])
    outputs = ours.process(tick._replace(offset=149, timestamp_ms=log[149].timestamp_ms))
    assert outputs.dead is not None
    assert outputs.dead.reason == reason
    assert outputs.dead.message
    assert outputs.market == []
    expected += run(clean, log[150:])
    got += run(ours, log[150:])
    assert got == expected
    assert {n: encode_state(s) for n, s in ours.changed().items()} == {
        n: encode_state(s) for n, s in clean.changed().items()
    }


def test_a_bad_record_makes_no_instrument() -> None:
    ours = Pipeline(0)
    ours.process(BAD["bad-price"])
    assert ours.changed() == {}


def test_where_no_later_message_tells_a_lost_one_the_book_gaps() -> None:
    log = log_of("kraken")
    at = next(i for i, tick in enumerate(log) if i > 100)
    ours, readers = pipeline(), Followers()
    for tick in log[:at]:
        readers.apply(ours.process(tick))
    broken = log[at]._replace(value=b"[")
    outputs = ours.process(broken)
    readers.apply(outputs)
    assert outputs.dead is not None
    (status,) = [update for _, update in outputs.market]
    assert isinstance(status, StatusUpdate)
    assert (status.state, status.reason) == (BookState.GAPPED, Reason.FEED_GAP)
    states = {name: reader.state for name, reader in readers.items()}
    assert states.pop((broken.key or b"").decode()) is BookState.GAPPED
    assert set(states.values()) == {BookState.SYNCED}


def test_a_record_of_another_kind_of_fault_leaves_such_a_book_alone() -> None:
    log = log_of("kraken")
    ours = pipeline()
    run(ours, log[:200])
    assert ours.process(log[200]._replace(value=None)).market == []
    assert ours.process(log[201]._replace(headers={"feed": b"nowhere"})).market == []


def test_a_bug_costs_one_instrument_its_book(monkeypatch: pytest.MonkeyPatch) -> None:
    log = log_of("kraken")
    ours, readers = pipeline(), Followers()
    for tick in log[:200]:
        readers.apply(ours.process(tick))

    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    name = (log[200].key or b"").decode()
    with monkeypatch.context() as patched:  # not on the class: a compiled one calls its methods directly
        patched.setattr(ours._instruments[name], "_checksum", broken)
        outputs = ours.process(log[200])
    readers.apply(outputs)
    assert outputs.dead is not None
    assert outputs.dead.reason == "bug"
    assert (readers[name].state, readers[name].reasons[-1]) == (BookState.GAPPED, Reason.INVALID_BOOK)
    assert sum(reader.state is BookState.SYNCED for reader in readers.values()) == 9
    for tick in log:  # from its snapshot on
        readers.apply(ours.process(tick._replace(offset=tick.offset + 1_000)))
    assert readers[name].state is BookState.SYNCED


class Broken(dict[str, bytes]):
    """Headers that nothing can be had of."""

    def get(self, *_: object) -> bytes:
        raise ZeroDivisionError("a bug")


def test_a_bug_makes_no_instrument() -> None:
    ours = pipeline()
    outputs = ours.process(log_of("kraken", 1)[0]._replace(headers=Broken()))
    assert outputs.dead is not None
    assert outputs.dead.reason == "bug"
    assert outputs.market == []
    assert ours.changed() == {}


def test_a_record_of_no_market_data_is_no_fault_and_makes_no_instrument() -> None:
    ours = pipeline()
    outputs = ours.process(record(0, "kraken:spot:XBT/CHF", b'{"event": "heartbeat"}', "kraken"))
    assert (outputs.dead, outputs.market, ours.changed()) == (None, [], {})
    assert ours.position == 1


# ---- what Kafka and feeds lose


def test_lost_offsets_gap_every_book_at_the_next_record() -> None:
    log = log_of("kraken")
    ours, readers = pipeline(), Followers()
    for tick in log[:1_000]:
        readers.apply(ours.process(tick))
    epochs = {name: reader.epoch for name, reader in readers.items()}
    ours.offsets_lost()
    readers.apply(ours.process(log[1_500]))
    assert {reader.reasons[-1] for reader in readers.values()} == {Reason.OFFSETS_LOST}
    assert {reader.state for reader in readers.values()} == {BookState.GAPPED}
    assert all(reader.epoch > epochs[name] for name, reader in readers.items())
    assert len(ours.changed()) == 10
    for tick in log:
        readers.apply(ours.process(tick._replace(offset=tick.offset + 2_000, timestamp_ms=0)))
    assert {reader.state for reader in readers.values()} == {BookState.SYNCED}


def test_lost_offsets_forget_the_cuts_of_a_log_that_is_gone() -> None:
    log = log_of("kraken", 100)
    ours = pipeline()
    run(ours, log)
    again = pipeline()
    for instrument, state in ours.changed().items():
        again.restore(instrument, state)
    again.offsets_lost()
    readers = Followers()
    for tick in log:
        for key, update in again.process(tick).market:
            reader = readers[key.decode()]
            reader.apply(update)
    assert {reader.state for reader in readers.values()} == {BookState.SYNCED}


def test_lost_offsets_with_an_unusable_record() -> None:
    ours, readers = pipeline(), Followers()
    log = log_of("kraken", 100)
    for tick in log:
        readers.apply(ours.process(tick))
    ours.offsets_lost()
    readers.apply(ours.process(record(100, "kraken:spot:XBT/CHF", b"{", "kraken")))
    assert {reader.state for reader in readers.values()} == {BookState.GAPPED}
    assert {reader.reasons[-1] for reader in readers.values()} == {Reason.OFFSETS_LOST}


def test_another_source_of_an_instrument_is_a_gap() -> None:
    ours, readers = pipeline(), Followers()
    start = {"version": 1, "kind": "snapshot", "sequence": 1, "bids": [["1.5", "1"]]}
    for tick in log_of(FEED, 50):
        readers.apply(ours.process(tick))
    assert readers[SPOT].state is BookState.SYNCED
    other = record(50, SPOT, orjson.dumps(CANONICAL), "canonical", **{"content-type": b"application/json"})
    readers.apply(ours.process(other))
    assert (readers[SPOT].state, readers[SPOT].reasons[-1]) == (BookState.GAPPED, Reason.FEED_GAP)
    readers.apply(ours.process(other._replace(offset=51, value=orjson.dumps(start))))
    assert readers[SPOT].state is BookState.SYNCED
    assert readers[SPOT].book.bids.levels() == [(15, 1)]
