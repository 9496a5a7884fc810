"""Kraken spot, WebSocket API v1 (arrays) and v2 (objects).

Source: the venue's documentation, "Book" and "Guide: book checksum" of v1 and v2. v1: ``book-N``, ``trade``,
``spread``; v2: ``book``, ``trade``, ``ticker``.

The checksum is over the text of prices and sizes with the venue's decimals. Both versions write every number of a book
with exactly those (v2 as JSON numbers, kept as text here), so the decimals as written are the scale, and neither the
``instrument`` channel nor a table of precisions is needed. Trades and quotes of v2 are trimmed, so that they never make
the scale finer than the book's.
"""

from ingest.events import BookEvent, Event, MapError, QuoteEvent, Routed, SequenceRule, TextLevel, TradesEvent
from ingest.mappers.fields import (
    Json,
    crc32_of,
    dump,
    integer,
    iso_to_ns,
    levels,
    load,
    load_exact,
    load_numbers_verbatim,
    mapped,
    quote_side,
    require,
    seconds_to_ns,
    trade,
)
from protos.messages import Side
from protos.topics import check_instrument

RULES = {"kraken": SequenceRule.KRAKEN}
TRIM = False

DEPTHS = (10, 25, 100, 500, 1000)
"""Levels per side that can be subscribed to."""

_PREFIX = "kraken:spot:"
_SIDE = {"b": Side.BUY, "s": Side.SELL, "buy": Side.BUY, "sell": Side.SELL}
_V2_CHANNELS = ("book", "trade", "ticker")


@mapped
def split(feed: str, message: bytes, symbol_hint: str = "") -> list[Routed]:
    data = load(message)
    if type(data) is list:
        known = data[-2] in ("trade", "spread") or data[-2].startswith("book-")
        return [Routed(check_instrument(_PREFIX + data[-1]), message)] if known else []
    if not _is_v2_market_data(data):
        return []
    if len(data["data"]) == 1:
        return [Routed(check_instrument(_PREFIX + data["data"][0]["symbol"]), message)]
    return _split_v2(message)


def _split_v2(message: bytes) -> list[Routed]:
    """One record per book or ticker, one per symbol for trades; every number stays as the venue wrote it."""
    outer = load_numbers_verbatim(message)
    groups: dict[tuple[str, int], list[Json]] = {}
    for i, item in enumerate(outer["data"]):
        groups.setdefault((item["symbol"], 0 if outer["channel"] == "trade" else i), []).append(item)
    return [
        Routed(check_instrument(_PREFIX + symbol), dump({**outer, "data": items}))
        for (symbol, _), items in groups.items()
    ]


@mapped
def parse(feed: str, instrument: str, value: bytes, content_type: str = "") -> list[Event]:
    if value.lstrip()[:1] == b"[":
        return _parse_v1(instrument, load(value))
    data = load_exact(value)
    if not _is_v2_market_data(data):
        return []
    for item in data["data"]:
        require(instrument, _PREFIX + item["symbol"])
    if data["channel"] == "trade":
        return _trades_v2(data)
    (item,) = data["data"]
    if data["channel"] == "book":
        return [_book_v2(data["type"], item)]
    bid = quote_side(_trimmed(item["bid"]), _trimmed(item["bid_qty"]))
    ask = quote_side(_trimmed(item["ask"]), _trimmed(item["ask_qty"]))
    return [QuoteEvent(bid, ask, iso_to_ns(item["timestamp"]) if "timestamp" in item else 0)]


def _parse_v1(instrument: str, data: Json) -> list[Event]:
    """``[channelID, payload, (payload,) channelName, pair]``."""
    channel, pair = data[-2:]
    require(instrument, _PREFIX + pair)
    if channel == "trade":
        trades = [trade(t[0], t[1], _SIDE[t[3]], "", seconds_to_ns(t[2])) for t in data[1]]
        return [TradesEvent(trades, trades[-1].ts_event_ns)]
    if channel == "spread":
        bid, ask, time, bid_size, ask_size = data[1]
        return [QuoteEvent(quote_side(bid, bid_size), quote_side(ask, ask_size), seconds_to_ns(time))]
    if not channel.startswith("book-"):
        return []
    sides = {name: rows for payload in data[1:-2] for name, rows in payload.items()}
    snapshot = "as" in sides or "bs" in sides
    bids, asks = (sides.get(name + "s" if snapshot else name, []) for name in "ba")
    if not (snapshot or "a" in sides or "b" in sides):
        raise MapError("bad-field", "a book message without levels")
    return [
        BookEvent(
            snapshot,
            levels([row[:2] for row in bids]),
            levels([row[:2] for row in asks]),
            max((seconds_to_ns(row[2]) for row in (*bids, *asks)), default=0),
            checksum=crc32_of(sides["c"]) if "c" in sides else None,
            depth=integer(channel[5:]),
        )
    ]


def _is_v2_market_data(data: Json) -> bool:
    """False: replies (``method``), heartbeats, status, instruments and channels that are not used."""
    if data.get("channel") in _V2_CHANNELS and "data" in data:
        return True
    if "channel" in data or "method" in data or "event" in data:
        return False
    raise MapError("bad-field", "neither market data nor a reply of Kraken")


def _trades_v2(data: Json) -> list[Event]:
    """The ``snapshot`` on subscribing is history that may have been delivered before: not repeated."""
    if data["type"] == "snapshot":
        return []
    trades = [
        trade(_trimmed(t["price"]), _trimmed(t["qty"]), _SIDE[t["side"]], t["trade_id"], iso_to_ns(t["timestamp"]))
        for t in data["data"]
    ]
    return [TradesEvent(trades, trades[-1].ts_event_ns)]


def _book_v2(kind: str, item: Json) -> BookEvent:
    """v2 does not name the subscribed depth: a snapshot has that many levels, or all if the book has fewer."""
    if kind not in ("snapshot", "update"):
        raise MapError("bad-field", f"type {kind[:20]!r} is neither snapshot nor update")
    bids, asks = _levels_v2(item["bids"]), _levels_v2(item["asks"])
    most = max(len(bids), len(asks))
    return BookEvent(
        kind == "snapshot",
        bids,
        asks,
        iso_to_ns(item["timestamp"]) if "timestamp" in item else 0,
        checksum=crc32_of(item["checksum"]),
        depth=min((d for d in DEPTHS if d >= most), default=most) if kind == "snapshot" else 0,
    )


def _levels_v2(side: Json) -> list[TextLevel]:
    return levels([[level["price"], level["qty"]] for level in side])


def _trimmed(text: str) -> str:
    """Without zeros at the end of the fraction."""
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text.lower() else text
