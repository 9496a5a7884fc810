"""Venue streams with one fault each, and the books that the unharmed streams add up to.

Each fault plays as an instrument of its own, over a connection of its own, beside the unharmed one: the symbol is
renamed in the venue's messages. Behind the fault comes a snapshot in the venue's format, made from the reference book,
and then more of the stream.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from itertools import islice
from typing import Any, NamedTuple

from ingest.events import BookEvent, Event, QuoteEvent
from ingest.mappers import mapper_for
from services.feed.files import read_capture
from tests.support.captures import CAPTURES, FILES

MUTATIONS = ("DROP", "TWICE", "AGAIN", "REORDER", "SWAP", "FLIP")
"""A delta is lost; comes twice in a row; comes again after its successor; comes after its successor; has its sides
exchanged; has another size at the best price."""
BEFORE, AFTER = 20, 8
"""Deltas between the two snapshots, and behind the second."""
MARGIN = 3
"""Deltas between a snapshot and the fault, at least."""
TICKS = 1000
"""Of the instrument that are read from a capture."""
COINBASE_LEVELS = 300
"""Of a side in the first snapshot; the capture's has ten thousands."""

Json = Any
Texts = list[tuple[str, str]]
Levels = list[tuple[Decimal, Decimal]]
Quote = tuple[Levels, Levels]
"""Best bid and best ask as [(price, size)]; [] for an empty side."""


class Venue(NamedTuple):
    feed: str
    capture: str
    market: str
    symbol: str
    snapshot: Callable[[Json, Texts, Texts], Json]  # of the last delta, and all levels, best first
    sides: Callable[[Json], list[tuple[Json, str, str]]]  # objects that hold levels, and the names of both sides there
    buffers: bool = False  # the snapshot comes beside the stream

    def instrument(self, mutation: str = "") -> str:
        return f"{self.market}:{mutation}{self.symbol}"

    def events(self, value: bytes) -> list[Event]:
        return mapper_for(self.feed).parse(self.feed, self.instrument(), value)


def _binance_snapshot(delta: Json, bids: Texts, asks: Texts) -> Json:
    return {"lastUpdateId": delta["data"]["u"], "bids": bids, "asks": asks}


def _kraken_snapshot(delta: Json, bids: Texts, asks: Texts) -> Json:
    def timed(levels: Texts) -> Json:
        return [[*level, "1618678133.365913"] for level in levels]

    return [delta[0], {"as": timed(asks), "bs": timed(bids)}, *delta[-2:]]


def _okx_snapshot(delta: Json, bids: Texts, asks: Texts) -> Json:
    def full(levels: Texts) -> Json:
        return [[*level, "0", "1"] for level in levels]

    item = {**delta["data"][0], "asks": full(asks), "bids": full(bids)}  # the checksum is of the same book
    return {"arg": delta["arg"], "action": "snapshot", "data": [item]}


def _bybit_snapshot(delta: Json, bids: Texts, asks: Texts) -> Json:
    return {**delta, "type": "snapshot", "data": {**delta["data"], "b": bids, "a": asks}}


def _deribit_snapshot(delta: Json, bids: Texts, asks: Texts) -> Json:
    def new(levels: Texts) -> Json:
        return [["new", float(price), float(size)] for price, size in levels]

    data = {**delta["params"]["data"], "type": "snapshot", "bids": new(bids), "asks": new(asks)}
    del data["prev_change_id"]
    return {**delta, "params": {**delta["params"], "data": data}}


def _coinbase_snapshot(delta: Json, bids: Texts, asks: Texts) -> Json:
    updates = [
        {"side": side, "event_time": delta["timestamp"], "price_level": price, "new_quantity": size}
        for side, levels in (("bid", bids), ("offer", asks))
        for price, size in levels
    ]
    return {**delta, "events": [{**delta["events"][0], "type": "snapshot", "updates": updates}]}


def _binance_sides(data: Json) -> list[tuple[Json, str, str]]:
    return [(data["data"], "b", "a")]


VENUES = {
    venue.capture: venue
    for venue in (
        Venue("binance.spot", "binance.spot", "binance:spot", "BTCUSDT", _binance_snapshot, _binance_sides, True),
        Venue("binance.usdm", "binance.usdm", "binance:usdm", "BTCUSDT", _binance_snapshot, _binance_sides, True),
        Venue(
            *("kraken", "kraken", "kraken:spot", "XMR/USD", _kraken_snapshot),
            lambda data: [(payload, "b", "a") for payload in data[1:-2]],
        ),
        Venue(*("okx", "okx", "okx:spot", "BTC-USDT", _okx_snapshot), lambda data: [(data["data"][0], "bids", "asks")]),
        Venue(
            *("bybit.linear", "bybit", "bybit:linear", "BTCUSDT", _bybit_snapshot),
            lambda data: [(data["data"], "b", "a")],
        ),
        Venue(
            *("deribit", "deribit", "deribit:option", "BTC-24SEP21-8000-P", _deribit_snapshot),
            lambda data: [(data["params"]["data"], "bids", "asks")],
        ),
        Venue("coinbase", "coinbase", "coinbase:spot", "BTC-USD", _coinbase_snapshot, lambda _data: []),
    )
}


class Reference:
    """The venue's book by its own documentation, as plainly as can be. Sequences are not looked at, but for deltas that
    a snapshot beside the stream has already."""

    def __init__(self, buffers: bool) -> None:
        self.bids: dict[Decimal, tuple[str, str]] = {}
        self.asks: dict[Decimal, tuple[str, str]] = {}
        self.begun = False
        self._buffers, self._depth, self._last = buffers, 0, 0
        self._early: list[BookEvent] = []

    def apply(self, event: BookEvent) -> None:
        if event.snapshot and not (self.begun and self._buffers):
            self.bids, self.asks, self.begun, self._depth = {}, {}, True, event.depth
            self._take(event)
            for early in self._early:
                self.apply(early)
        elif not self.begun:
            self._early.append(event)
        elif not self._buffers or (event.last or 0) > self._last:
            self._take(event)

    def _take(self, event: BookEvent) -> None:
        self._last = event.last or 0
        for side, levels in ((self.bids, event.bids), (self.asks, event.asks)):
            for price, size in levels:
                side.pop(Decimal(price), None)
                if Decimal(size):
                    side[Decimal(price)] = (price, size)
        if self._depth:
            for price_ in sorted(self.bids, reverse=True)[self._depth :]:
                del self.bids[price_]
            for price_ in sorted(self.asks)[self._depth :]:
                del self.asks[price_]

    @property
    def crossed(self) -> bool:
        return bool(self.bids and self.asks) and max(self.bids) >= min(self.asks)

    def texts(self) -> tuple[Texts, Texts]:
        """Both sides as the venue wrote them, best first."""
        return [self.bids[p] for p in sorted(self.bids, reverse=True)], [self.asks[p] for p in sorted(self.asks)]

    def levels(self) -> Quote:
        """Both sides in full, best first."""
        bids, asks = ([(Decimal(price), Decimal(size)) for price, size in side] for side in self.texts())
        return bids, asks

    def best(self) -> Quote:
        bids, asks = ([pick(side)] if side else [] for side, pick in ((self.bids, max), (self.asks, min)))
        return [(p, Decimal(self.bids[p][1])) for p in bids], [(p, Decimal(self.asks[p][1])) for p in asks]


@dataclass
class Stream:
    """The unharmed messages of an instrument, with a second snapshot among them, and the books they add up to."""

    venue: Venue
    messages: list[bytes]
    best: list[Quote]  # after each message
    deltas: list[int]  # indexes of those between the snapshots
    final: Reference


class Message(NamedTuple):
    """Of a harmed stream."""

    value: bytes
    index: int  # of the unharmed message


@cache
def stream_of(capture: str) -> Stream:
    """The beginning of a capture."""
    venue = VENUES[capture]
    stream = Stream(venue, [], [], [], Reference(venue.buffers))
    count = 0
    for value, event in _captured(venue):
        _append(stream, value, event)
        if not isinstance(event, BookEvent) or event.snapshot or not stream.final.begun:
            continue
        count += 1
        if count <= BEFORE:
            stream.deltas.append(len(stream.messages) - 1)
        if count == BEFORE:
            again = _dump(venue.snapshot(json.loads(value), *stream.final.texts()))
            _append(stream, again, venue.events(again)[0])
        if count == BEFORE + AFTER:
            return stream
    raise AssertionError(f"the capture of {capture} has only {count} deltas of {venue.instrument()}")


def _append(stream: Stream, value: bytes, event: Event) -> None:
    if stream.venue.feed == "coinbase":  # as if nothing else came over the connection
        value = _dump({**json.loads(value), "sequence_num": len(stream.messages)})
    stream.messages.append(value)
    if isinstance(event, BookEvent):
        stream.final.apply(event)
    stream.best.append(stream.final.best())


def _captured(venue: Venue) -> Iterator[tuple[bytes, Event]]:
    """Book messages of the venue's instrument; of Binance also each quote that shares a book's sequence."""
    values = _values(venue)
    if venue.feed == "coinbase":
        values = _without_parts(values)
    said = [(value, event) for value in islice(values, TICKS) for event in venue.events(value)]
    books = {event.last for _, event in said if isinstance(event, BookEvent)}
    for value, event in said:
        if isinstance(event, BookEvent) or (venue.buffers and isinstance(event, QuoteEvent) and event.last in books):
            yield value, event


def _values(venue: Venue) -> Iterator[bytes]:
    for captured in read_capture(CAPTURES / FILES[venue.capture], venue.capture):
        if captured.feed == venue.feed:
            for routed in mapper_for(venue.feed).split(venue.feed, captured.message, captured.symbol_hint):
                if routed.instrument == venue.instrument():
                    yield routed.value


def _without_parts(values: Iterator[bytes]) -> Iterator[bytes]:
    """Coinbase: the feed has cut the snapshot into parts; of the first, the best levels."""
    snapshot = None
    for value in values:
        data = json.loads(value)
        if data["channel"] != "l2_data" or data["sequence_num"] == snapshot:
            continue
        (event,) = data["events"]
        if event["type"] == "snapshot":
            snapshot = data["sequence_num"]
            sides = ([update for update in event["updates"] if update["side"] == side] for side in ("bid", "offer"))
            event["updates"] = [update for side in sides for update in side[:COINBASE_LEVELS]]
        yield _dump(data)


def mutated(stream: Stream, mutation: str) -> list[Message]:
    """The stream with one fault, or unharmed for "", under a symbol of its own."""
    messages = [Message(value, i) for i, value in enumerate(stream.messages)]
    at = target_of(stream, mutation) if mutation else 0
    following = next(i for i in stream.deltas if i > at)
    if mutation == "DROP":
        del messages[at]
    elif mutation == "TWICE":
        messages.insert(at, messages[at])
    elif mutation == "AGAIN":
        messages.insert(following + 1, messages[at])
    elif mutation == "REORDER":
        messages.insert(at, messages.pop(following))
    elif mutation:
        messages[at] = Message(_changed(stream, mutation, at), at)
    old, new = stream.venue.symbol.encode(), (mutation + stream.venue.symbol).encode()
    return [Message(value.replace(old, new), index) for value, index in messages]


def target_of(stream: Stream, mutation: str) -> int:
    """The first delta whose fault matters to the best prices; of those, for SWAP and FLIP, one that can be seen."""
    found = []
    for i in stream.deltas[MARGIN:-MARGIN]:
        if mutation not in ("SWAP", "FLIP"):
            matters, shows = stream.best[i] != stream.best[i - 1], True
        else:
            wrong = _wrong(stream, i, _changed(stream, mutation, i))
            matters = bool(wrong) and wrong[0][0] == i
            shows = _quoted(stream, i) if stream.venue.buffers else all(crossed for _, crossed in wrong)
        if matters and shows:
            return i
        found += [i] if matters else []
    assert found, f"no delta of {stream.venue.instrument()} moves the best prices"
    return found[0]


def _wrong(stream: Stream, at: int, instead: bytes) -> list[tuple[int, bool]]:
    """Where the best prices are wrong before the second snapshot if nobody notices, and whether they cross there."""
    book, wrong = Reference(stream.venue.buffers), []
    for i, value in enumerate(stream.messages[: stream.deltas[-1] + 1]):
        event = stream.venue.events(instead if i == at else value)[0]
        if isinstance(event, BookEvent):
            book.apply(event)
        if book.best() != stream.best[i]:
            wrong.append((i, book.crossed))
    return wrong


def _quoted(stream: Stream, at: int) -> bool:
    """The venue has sent its best bid and ask of this very delta, before it."""
    (event,) = stream.venue.events(stream.messages[at])
    before = (event for value in stream.messages[:at] for event in stream.venue.events(value))
    return any(isinstance(quote, QuoteEvent) and quote.last == getattr(event, "last", None) for quote in before)


def _changed(stream: Stream, mutation: str, at: int) -> bytes:
    data = json.loads(stream.messages[at])
    (swap if mutation == "SWAP" else flip)(stream, data, at)
    return _dump(data)


def swap(stream: Stream, data: Json, _at: int) -> None:
    """Bids become asks, and asks bids."""
    for holder, bid, ask in stream.venue.sides(data):
        sides = {bid: holder.pop(ask, None), ask: holder.pop(bid, None)}
        holder.update({name: levels for name, levels in sides.items() if levels is not None})
    for update in data["events"][0]["updates"] if stream.venue.feed == "coinbase" else ():
        update["side"] = "bid" if update["side"] == "offer" else "offer"


def flip(stream: Stream, data: Json, at: int) -> None:
    """Another size at what this message makes the best bid or ask."""
    best = {price for side in stream.best[at] for price, _ in side}
    for holder, *names in stream.venue.sides(data):
        for level in (level for name in names for level in holder.get(name, ())):
            price = next(i for i, item in enumerate(level) if item not in ("new", "change", "delete"))
            if Decimal(str(level[price])) in best and Decimal(str(level[price + 1])):
                level[price + 1] = _other(level[price + 1])
    for update in data["events"][0]["updates"] if stream.venue.feed == "coinbase" else ():
        if Decimal(update["price_level"]) in best and Decimal(update["new_quantity"]):
            update["new_quantity"] = _other(update["new_quantity"])


def _other(size: Json) -> Json:
    """One digit differs."""
    if isinstance(size, float):
        return size + 1
    i = next(i for i, digit in enumerate(size) if digit.isdigit() and digit != "0")
    return f"{size[:i]}{int(size[i]) % 9 + 1}{size[i + 1 :]}"


def _dump(data: Json) -> bytes:
    return json.dumps(data, separators=(",", ":")).encode()
