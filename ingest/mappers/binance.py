"""Binance spot, USD-M and COIN-M futures.

Source: "WebSocket Streams" and "How to manage a local order book correctly" of the venue's spot, USD-M and COIN-M
documentation. Streams: ``<symbol>@depth[@100ms]``, ``@bookTicker``, ``@trade`` or ``@aggTrade``, bare or in the
combined envelope ``{"stream", "data"}``; and the REST depth snapshot, which on spot and USD-M does not name its symbol.
"""

from ingest.events import BookEvent, Event, MapError, QuoteEvent, Routed, SequenceRule, TradesEvent
from ingest.mappers.fields import Json, integer, levels, load, mapped, ms_to_ns, quote_side, require, trade
from protos.messages import Side
from protos.topics import check_instrument

RULES = {
    "binance.spot": SequenceRule.BINANCE_SPOT,
    "binance.usdm": SequenceRule.BINANCE_FUTURES,
    "binance.coinm": SequenceRule.BINANCE_FUTURES,
}
TRIM = True

_PREFIX = {feed: feed.replace(".", ":") + ":" for feed in RULES}
_TRADES = ("trade", "aggTrade")


@mapped
def split(feed: str, message: bytes, symbol_hint: str = "") -> list[Routed]:
    data = _payload(message)
    kind = _kind(data)
    if kind == "other":
        return []
    symbol = data.get("symbol", symbol_hint.upper()) if kind == "snapshot" else data["s"]
    if not symbol:
        raise MapError("bad-field", "the snapshot does not name its symbol; give it as hint")
    return [Routed(check_instrument(_PREFIX[feed] + symbol), message)]


@mapped
def parse(feed: str, instrument: str, value: bytes, content_type: str = "") -> list[Event]:
    data = _payload(value)
    kind = _kind(data)
    if kind == "other":
        return []
    if kind == "snapshot":
        require(instrument, _PREFIX[feed] + data.get("symbol", instrument.rpartition(":")[2]))
        return [_book(data, True, data["bids"], data["asks"])]
    require(instrument, _PREFIX[feed] + data["s"])
    if kind == "depthUpdate":
        return [_book(data, False, data["b"], data["a"])]
    if kind == "bookTicker":
        bid, ask = quote_side(data["b"], data["B"]), quote_side(data["a"], data["A"])
        return [QuoteEvent(bid, ask, _time_ns(data), integer(data["u"]))]
    side = Side.SELL if data["m"] is True else Side.BUY
    ts_event_ns = ms_to_ns(data["T"])
    trade_id = data["t" if kind == "trade" else "a"]
    return [TradesEvent([trade(data["p"], data["q"], side, trade_id, ts_event_ns)], ts_event_ns)]


def _payload(message: bytes) -> Json:
    """The event, out of its envelope. Partial-depth streams look like deltas or snapshots and are neither."""
    outer = load(message)
    if "stream" not in outer:
        return outer
    _, _, channel = outer["stream"].partition("@")
    if channel.startswith("depth") and channel[5:6] not in ("", "@"):
        raise MapError("bad-field", f"a partial book ({channel[:20]}) cannot be followed; subscribe to @depth")
    return outer["data"]


def _kind(data: Json) -> str:
    """What the message is; spot's bookTicker and the REST snapshot have no event name."""
    kind = data.get("e")
    if kind == "depthUpdate" or kind == "bookTicker" or kind in _TRADES:
        return str(kind)
    if kind is None and "lastUpdateId" in data:
        return "snapshot"
    if kind is None and "u" in data and "B" in data:
        return "bookTicker"
    if type(kind) is str or "result" in data or "error" in data:
        return "other"
    raise MapError("bad-field", "neither an event, nor a depth snapshot, nor a reply of Binance")


def _book(data: Json, snapshot: bool, bids: Json, asks: Json) -> BookEvent:
    last = integer(data["lastUpdateId" if snapshot else "u"])
    first = None if snapshot else integer(data["U"])
    prev = integer(data["pu"]) if "pu" in data else None
    return BookEvent(snapshot, levels(bids), levels(asks), _time_ns(data), first, last, prev)


def _time_ns(data: Json) -> int:
    """The matching engine's time where it is sent (futures), else when the event was published, else 0."""
    return ms_to_ns(data.get("T", data.get("E", 0)))
