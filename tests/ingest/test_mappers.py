"""The captures through every mapper, and garbage through every mapper."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.events import BookEvent, ControlEvent, Event, MapError, QuoteEvent, SequenceRule, TradesEvent
from ingest.mappers import FEEDS, mapper_for, rule_for
from ingest.mappers.fields import Json
from protos.fixed import split_decimal
from protos.messages import Side
from tests.support.captures import Tick, ticks_of

Path = tuple[str | int, ...]
"""Of a node in a JSON value."""

LINEAR = ("BTCUSDT", "ETHUSDT", "SOLUSDT", "DOGEUSDT")
EXPECTED = {  # capture: (snapshots, deltas, trades messages, quotes), instruments
    "binance.spot": ((1, 3451, 9757, 28040), {"binance:spot:BTCUSDT"}),
    "binance.usdm": ((1, 6551, 21313, 66089), {"binance:usdm:BTCUSDT"}),
    "bybit": (
        (6, 2142, 120, 144),
        {*(f"bybit:linear:{symbol}" for symbol in LINEAR), "bybit:spot:BTCUSDT", "bybit:spot:ETHUSDT"},
    ),
    "coinbase": ((2, 794, 57, 160), {"coinbase:spot:BTC-USD", "coinbase:spot:ETH-USD"}),
    "deribit": (
        (10, 36, 0, 89),
        {
            *(f"deribit:option:BTC-24SEP21-{strike}-P" for strike in (8000, 34000)),
            *(f"deribit:option:BTC-{rest}" for rest in ("30JUL21-24000-P", "31DEC21-34000-P", "24JUN22-15000-C")),
            *(f"deribit:option:BTC-{rest}" for rest in ("31DEC21-300000-C", "25MAR22-30000-C")),
            *(f"deribit:option:ETH-{rest}" for rest in ("30JUL21-2800-C", "27AUG21-4000-P", "23JUL21-2300-C")),
        },
    ),
    "kraken": (
        (10, 2551, 0, 0),
        {f"kraken:spot:{pair}" for pair in ("WAVES/EUR", "XMR/USD", "KSM/XBT", "GRT/ETH", "SC/EUR", "ETH/CHF")}
        | {f"kraken:spot:{pair}" for pair in ("OCEAN/XBT", "OMG/USD", "XBT/CHF", "ADA/XBT")},
    ),
    "okx": ((3, 287, 74, 28), {"okx:futures:BTC-USD-220527", "okx:swap:UNI-USD-SWAP", "okx:spot:BTC-USDT"}),
}


Parsed = list[tuple[Tick, Event]]


def events_of(ticks: list[Tick]) -> Iterator[tuple[Tick, Event]]:
    for tick in ticks:
        for event in mapper_for(tick.feed).parse(tick.feed, tick.instrument, tick.value):
            yield tick, event


def kind_of(event: Event) -> str:
    return "snapshot" if isinstance(event, BookEvent) and event.snapshot else type(event).__name__


@pytest.fixture(scope="module", params=EXPECTED)
def capture(request: pytest.FixtureRequest) -> tuple[str, Parsed]:
    """Each capture by its name, parsed once for all tests."""
    return request.param, list(events_of(ticks_of(request.param)))


@pytest.mark.captures
def test_every_message_of_the_capture(capture: tuple[str, Parsed]) -> None:
    name, parsed = capture
    kinds = Counter(kind_of(event) for _, event in parsed)
    counts = (kinds["snapshot"], kinds["BookEvent"], kinds["TradesEvent"], kinds["QuoteEvent"])
    assert (counts, {tick.instrument for tick, _ in parsed}) == EXPECTED[name]


def links_that_hold(rule: SequenceRule, snapshot: BookEvent, deltas: list[BookEvent]) -> int:
    """The venue's rule, from its documentation, on one instrument's raw events. Returns how many links held."""
    last, links = snapshot.last, 0
    for delta in deltas:
        if rule is SequenceRule.BINANCE_SPOT and delta.last > last:
            assert delta.first == last + 1 if links else delta.first <= last + 1
            last, links = delta.last, links + 1
        elif rule is SequenceRule.BINANCE_FUTURES and delta.last >= last:
            assert delta.prev == last if links else delta.first <= last
            last, links = delta.last, links + 1
        elif rule is SequenceRule.BYBIT:
            assert delta.last == last + 1
            last, links = delta.last, links + 1
        elif rule is SequenceRule.DERIBIT:
            assert delta.prev == last
            last, links = delta.last, links + 1
        elif rule is SequenceRule.COINBASE:
            assert delta.last >= last
            last, links = delta.last, links + 1
    return links


LINKS = {"binance.spot": 3449, "binance.usdm": 6547, "bybit": 2142, "deribit": 36, "coinbase": 794}
"""Of the captures whose venue numbers its messages."""


@pytest.mark.captures
@pytest.mark.parametrize("capture", LINKS, indirect=True)
def test_the_chains_of_the_captures_hold(capture: tuple[str, Parsed]) -> None:
    name, parsed = capture
    snapshots, deltas = {}, defaultdict(list)
    for tick, event in parsed:
        if isinstance(event, BookEvent):
            if event.snapshot:
                snapshots[tick] = event
            deltas[tick.feed, tick.instrument].append(event)
    held = 0
    for tick, snapshot in snapshots.items():
        rest = [event for event in deltas[tick.feed, tick.instrument] if not event.snapshot]
        held += links_that_hold(rule_for(tick.feed), snapshot, rest)
    assert held == LINKS[name]


@pytest.mark.captures
@pytest.mark.parametrize("capture", ["binance.usdm", "bybit", "coinbase"], indirect=True)
def test_the_side_is_the_aggressors(capture: tuple[str, Parsed]) -> None:
    """A buyer lifts the ask: by the trade's price against the last quote, nearly all sides are as we say.

    Not of venues that send the quote after the trade before the trade itself."""
    _, parsed = capture
    middle, right, wrong = {}, 0, 0
    for tick, event in parsed:
        if isinstance(event, QuoteEvent) and event.bid[0] and event.ask[0]:
            middle[tick.instrument] = (float(event.bid[0]) + float(event.ask[0])) / 2
        elif isinstance(event, TradesEvent) and tick.instrument in middle:
            side = Side.BUY if float(event.trades[0].price) > middle[tick.instrument] else Side.SELL
            right, wrong = right + (side is event.trades[0].side), wrong + (side is not event.trades[0].side)
    assert right > 20
    assert wrong < 0.3 * right


NUMBER = re.compile(r"[0-9][0-9.eE+-]*")


@pytest.mark.captures
def test_prices_are_exact_text(capture: tuple[str, Parsed]) -> None:
    """Each price and size is a number of the message, character for character: none went through a float."""
    _, parsed = capture
    for tick, event in parsed[:2000]:
        if isinstance(event, BookEvent):
            levels = [*event.bids, *event.asks]
            used = {price for price, _ in levels} | {size for _, size in levels if size != "0"}
            assert used <= set(NUMBER.findall(tick.value.decode()))


def test_an_unknown_feed_is_refused() -> None:
    with pytest.raises(MapError) as caught:
        mapper_for("binance.margin")
    assert caught.value.reason == "unknown-feed"


@pytest.mark.parametrize("feed", FEEDS)
def test_every_feed_has_a_mapper_with_its_rule(feed: str) -> None:
    assert isinstance(rule_for(feed), SequenceRule)


SAMPLES_PER_CAPTURE = 60


@cache
def samples() -> list[Tick]:
    """Some messages of each kind of each capture."""
    return list(_samples())


def _samples() -> Iterator[Tick]:
    for name in EXPECTED:
        chosen = defaultdict(list)
        for tick, event in events_of(ticks_of(name)[:3000]):
            if len(tick.value) < 4000:
                chosen[kind_of(event)].append(tick)
        for of_kind in chosen.values():
            yield from of_kind[: SAMPLES_PER_CAPTURE // len(chosen)]


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**64), 2**64),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        ["NaN", "-1", "1e999", "0", "", "²", "1_0", "0x10", " 1", "book-", "9" * 70, "2026-13-01T00:00:00Z"]
    ),
    st.lists(st.none() | st.text(max_size=3) | st.lists(st.integers(), max_size=3), max_size=3),
    st.dictionaries(st.sampled_from(["s", "data", "price", "0"]), st.none() | st.integers(), max_size=2),
)


def paths(value: Json, path: Path = ()) -> Iterator[Path]:
    """The path of every node in a JSON value."""
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from paths(child, (*path, key))


def replaced(value: Json, path: Path, junk: object) -> Json:
    """A copy of a JSON value with the node at ``path`` replaced."""
    if not path:
        return junk
    copy = value.copy()
    copy[path[0]] = replaced(value[path[0]], path[1:], junk)
    return copy


def only_map_errors(tick: Tick, message: bytes) -> None:
    """Whatever `split` and `parse` make of it, the events are well-typed or a MapError is raised."""
    mapper = mapper_for(tick.feed)
    records = [(tick.instrument, message)]
    reasons = set()
    try:
        records += mapper.split(tick.feed, message, "BTCUSDT")
    except MapError as error:
        reasons.add(error.reason)
    for instrument, value in records:
        try:
            events = mapper.parse(tick.feed, instrument, value)
        except MapError as error:
            reasons.add(error.reason)
        else:
            for event in events:
                well_typed(event)
    assert reasons <= REASONS


REASONS = {"bad-json", "bad-price", "bad-size", "bad-field", "bad-version", "wrong-instrument"}


def well_typed(event: Event) -> None:
    assert type(event.ts_event_ns) is int
    assert 0 <= event.ts_event_ns < 2**63
    if isinstance(event, BookEvent):
        for number in (event.first, event.last, event.prev, event.checksum, event.depth):
            assert number is None or (type(number) is int and 0 <= number < 2**63)
        for price, size in (*event.bids, *event.asks):
            assert type(price) is str
            assert type(size) is str
    elif isinstance(event, TradesEvent):
        for trade in event.trades:
            assert split_decimal(trade.size)[0] > 0
            assert split_decimal(trade.price)[0] > 0
            assert type(trade.side) is Side
            assert trade.trade_id.isascii()
    elif isinstance(event, QuoteEvent):
        for price, size in (event.bid, event.ask):
            assert (price == "" and size == "") or split_decimal(price)[0] > 0
    else:
        assert isinstance(event, ControlEvent)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_mutated_field_gives_a_map_error_or_sound_events(data: st.DataObject) -> None:
    tick = data.draw(st.sampled_from(samples()))
    message = orjson.loads(tick.value)
    path = data.draw(st.sampled_from(list(paths(message))))
    try:
        mutated = orjson.dumps(replaced(message, path, data.draw(JUNK)))
    except (TypeError, orjson.JSONEncodeError):
        return
    only_map_errors(tick, mutated)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_mutated_bytes_give_a_map_error_or_sound_events(data: st.DataObject) -> None:
    tick = data.draw(st.sampled_from(samples()))
    start = data.draw(st.integers(0, len(tick.value)))
    end = data.draw(st.integers(start, min(len(tick.value), start + 20)))
    only_map_errors(tick, tick.value[:start] + data.draw(st.binary(max_size=12)) + tick.value[end:])


@pytest.mark.parametrize("feed", FEEDS)
@pytest.mark.parametrize(
    "value", [b"", b"null", b"[]", b"{}", b"1", b'"x"', b"[" * 100_000, b"\xff", b"[[],[]]", b"[1,2,3]"]
)
def test_junk_is_a_map_error(feed: str, value: bytes) -> None:
    mapper = mapper_for(feed)
    with pytest.raises(MapError):
        mapper.parse(feed, "binance:spot:X", value)
    with pytest.raises(MapError):
        mapper.split(feed, value)
