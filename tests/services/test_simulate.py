"""The simulated market: books that are books, ticks that add up, and the same again for the same seed."""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import islice, pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.mappers.canonical import parse
from protos.book import Book
from protos.fixed import scaled
from protos.messages import Levels, Side
from protos.tick import CONTENT_PROTO, TextLevel, Tick, TickKind, decode_tick, encode_tick
from protos.topics import HEADER_RECEIVED_NS, Topics, check_instrument, partition_for
from services.config import load_settings
from services.errors import UserError
from services.feed.market_model import LEVELS_MAX, LEVELS_MIN, SNAPSHOT_INTERVAL_NS, Instrument, Market, symbol_names
from services.feed.simulate import run_simulate
from services.kafka import EARLIEST, Reader, Record
from tests.support.brokers import TestBroker

START_NS = 1_700_000_000_000_000_000


def run(market: Market, ticks: int, step_ns: int = 1_000_000) -> Iterable[tuple[Instrument, Tick]]:
    for i in range(ticks):
        yield market.next(START_NS + i * step_ns)


def levels(instrument: Instrument, texts: list[TextLevel]) -> Levels:
    return [(scaled(p, instrument.price_exponent), scaled(s, instrument.size_exponent)) for p, s in texts]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**63), symbols=st.integers(1, 5))
def test_the_ticks_add_up_to_uncrossed_books(seed: int, symbols: int) -> None:
    books: dict[str, Book] = defaultdict(Book)
    sequences: dict[str, int] = {}
    traded: dict[str, dict[int, int]] = {}
    for instrument, tick in run(Market(symbols, Random(seed)), 400):
        name, book = instrument.name, books[instrument.name]
        bids, asks = levels(instrument, tick.bids), levels(instrument, tick.asks)
        if tick.kind is TickKind.TRADES:
            assert tick.sequence == sequences[name]
            traded[name] = check_trades(instrument, tick, book)
        elif tick.kind is TickKind.QUOTE:
            assert tick.sequence == sequences[name]
            assert (bids, asks) == book.top(1)
        else:
            side_replaced = tick.kind is TickKind.SNAPSHOT
            if side_replaced:
                book.bids.replace(bids)
                book.asks.replace(asks)
            else:
                assert tick.prev_sequence == sequences[name]
                assert traded.pop(name, {}).keys() <= {price for price, _ in bids + asks}
                book.bids.apply(bids)
                book.asks.apply(asks)
            sequences[name] = tick.sequence
            book.check()
            assert not book.crossed
            assert (book.bids.lowest or 0) > 0
            assert (book.bids.levels(), book.asks.levels()) == (
                instrument.book.bids.levels(),
                instrument.book.asks.levels(),
            )


def check_trades(instrument: Instrument, tick: Tick, book: Book) -> dict[int, int]:
    """Trades take from the touch inwards, never more than is there. Gives what they took at each price."""
    taken: dict[int, int] = {}
    (side,) = {trade.side for trade in tick.trades}
    best_first = book.top(0)[1 if side is Side.BUY else 0]
    for trade, (price, lots) in zip(tick.trades, best_first, strict=False):
        ((ticks, size),) = levels(instrument, [(trade.price, trade.size)])
        assert ticks == price
        assert 0 < size <= lots
        taken[ticks] = size
    assert len(taken) == len(tick.trades)
    return taken


@given(seed=st.integers(0, 2**63))
@settings(max_examples=10, deadline=None)
def test_the_same_seed_gives_the_same_bytes(seed: int) -> None:
    first, second = ([encode_tick(tick) for _, tick in run(Market(3, Random(seed)), 300)] for _ in range(2))
    assert first == second
    assert first != [encode_tick(tick) for _, tick in run(Market(3, Random(seed + 1)), 300)]


def test_ticks_survive_the_codec() -> None:
    for _, tick in run(Market(2, Random(1)), 500):
        assert decode_tick(encode_tick(tick), CONTENT_PROTO) == tick


def test_every_instrument_begins_with_a_snapshot_and_repeats_it() -> None:
    market = Market(5, Random(1))
    seen = list(run(market, 4_000, step_ns=2 * SNAPSHOT_INTERVAL_NS // 1_000))
    assert [tick.kind for _, tick in seen[:5]] == [TickKind.SNAPSHOT] * 5
    assert len({instrument.name for instrument, _ in seen[:5]}) == 5
    snapshots = Counter(instrument.name for instrument, tick in seen if tick.kind is TickKind.SNAPSHOT)
    assert all(4 <= snapshots[instrument.name] <= 17 for instrument in market.instruments)


def test_it_looks_like_a_market() -> None:
    market = Market(20, Random(7))
    seen = list(run(market, 30_000))
    kinds = Counter(tick.kind for _, tick in seen)
    assert kinds[TickKind.DELTA] > kinds[TickKind.QUOTE] > kinds[TickKind.TRADES] > 500
    activity = Counter(instrument.name for instrument, _ in seen)
    assert activity["sim:spot:BTCUSDT"] > 5 * activity[market.instruments[-1].name]
    runs = sum(a is b for (a, _), (b, _) in pairwise(seen)) / len(seen)
    assert runs > 0.6, "bursts: far more than chance alone would repeat an instrument"
    book = market.instruments[0].book
    assert all(LEVELS_MIN <= len(side) <= LEVELS_MAX for side in (book.bids, book.asks))
    mids = [instrument.book.bids.highest for instrument in market.instruments]
    fresh = [instrument.book.bids.highest for instrument in Market(20, Random(7)).instruments]
    assert sum(a != b for a, b in zip(mids, fresh, strict=True)) > 15, "prices move"


def test_round_prices_attract_size() -> None:
    sizes: dict[bool, list[int]] = {True: [], False: []}
    for _, tick in islice(run(Market(50, Random(3)), 50), 50):
        for price, size in tick.bids + tick.asks:
            sizes[price.replace(".", "").endswith("00")].append(int(size.replace(".", "")))
    mean = {rounded: sum(values) / len(values) for rounded, values in sizes.items()}
    assert mean[True] > 1.5 * mean[False]


def test_names_are_distinct_well_formed_and_enough() -> None:
    names = [f"sim:spot:{base}{quote}" for base, quote in islice(symbol_names(), 10_000)]
    assert len(set(names)) == len(names)
    assert names[0] == "sim:spot:BTCUSDT"
    for name in names:
        check_instrument(name)


@pytest.mark.slow
def test_one_core_makes_20_000_ticks_a_second() -> None:
    market = Market(200, Random(1))
    best = 0.0
    for _ in range(5):  # the best of five: other work on the machine only slows it down
        start = time.process_time()
        for _, tick in run(market, 4_000):
            encode_tick(tick)
        best = max(best, 4_000 / (time.process_time() - start))
    assert best >= 20_000


@pytest.mark.parametrize("ahead", [False, True], ids=["as they are due", "ahead"])
async def test_the_ticks_reach_kafka_on_time_and_in_order(embedded: TestBroker, ahead: bool) -> None:
    await embedded.create_topics()
    start_ns = time.time_ns()
    assert await run_simulate(embedded.settings, symbols=3, rate=500, seed=1, seconds=0.6, ahead=ahead) == 300
    assert 0.55 < (time.time_ns() - start_ns) / 1e9 < 5
    records = await read_all(embedded, 300)
    expected = [(instrument.name, encode_tick(tick)) for instrument, tick in run(Market(3, Random(1)), 300)]
    assert Counter(key for key, _ in records) == Counter(name for name, _ in expected)
    for name in {name for name, _ in expected}:
        mine = [record for key, record in records if key == name]
        received = [int(record.headers[HEADER_RECEIVED_NS]) for record in mine]
        assert received == sorted(received)
        assert all(ns // 1_000_000 == record.timestamp_ms for ns, record in zip(received, mine, strict=True))
        events = [event for r in mine for event in parse("canonical", name, r.value or b"", CONTENT_PROTO)]
        assert len(events) == len(mine)
        assert all(record.partition == partition_for(name.encode(), 2) for record in mine)
    due = sorted(int(record.headers[HEADER_RECEIVED_NS]) for _, record in records)
    assert {round((b - a) / 1e6) for a, b in pairwise(due)} == {2}, "open loop: due times are even"
    assert all(int(record.headers[HEADER_RECEIVED_NS]) <= time.time_ns() for _, record in records)


@pytest.mark.parametrize("seconds", [0, 2e6])
async def test_ticks_without_end_cannot_be_made_ahead(seconds: float) -> None:
    with pytest.raises(UserError, match="--ahead needs --seconds, and at most 1000000 ticks"):
        await run_simulate(load_settings(), symbols=1, rate=1, seed=1, seconds=seconds, ahead=True)


async def read_all(broker: TestBroker, count: int) -> list[tuple[str, Record]]:
    reader = Reader(broker.settings)
    topic = Topics(broker.settings.topic_prefix).ticks
    await reader.start()
    try:
        await reader.assign({(topic, partition): EARLIEST for partition in range(broker.settings.partitions)})
        records: list[Record] = []
        async with asyncio.timeout(10):
            while len(records) < count:
                records += await reader.poll(50, 1000)
    finally:
        await reader.stop()
    return [((record.key or b"").decode(), record) for record in records]
