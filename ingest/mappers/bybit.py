"""Bybit v5 public streams: spot, linear and inverse, which share symbols and are told apart by the connection.

Source: the venue's v5 documentation, "WebSocket Stream / Public": ``orderbook.N``, ``publicTrade``, ``tickers``.
`orderbook.1` is only ever a snapshot with its own ids, so it is a quote here. A ``tickers`` delta has the fields that
changed: only one that has both sides in full is a quote.
"""

from ingest.events import BookEvent, Event, QuoteEvent, Routed, SequenceRule, TradesEvent
from ingest.mappers.fields import Json, integer, levels, load, mapped, ms_to_ns, quote_side, require, trade
from protos.messages import Side
from protos.topics import check_instrument

RULES = dict.fromkeys(("bybit.spot", "bybit.linear", "bybit.inverse"), SequenceRule.BYBIT)
TRIM = True

_PREFIX = {feed: feed.replace(".", ":") + ":" for feed in RULES}
_SIDE = {"Buy": Side.BUY, "Sell": Side.SELL}
_QUOTE = ("bid1Price", "bid1Size", "ask1Price", "ask1Size")


@mapped
def split(feed: str, message: bytes, symbol_hint: str = "") -> list[Routed]:
    data = load(message)
    channel, symbol = _topic(data)
    if channel not in ("orderbook", "publicTrade") and not (channel == "tickers" and _is_quote(data["data"])):
        return []
    return [Routed(check_instrument(_PREFIX[feed] + symbol), message)]


@mapped
def parse(feed: str, instrument: str, value: bytes, content_type: str = "") -> list[Event]:
    data = load(value)
    channel, symbol = _topic(data)
    if channel == "":
        return []
    require(instrument, _PREFIX[feed] + symbol)
    body = data["data"]
    ts_event_ns = ms_to_ns(data.get("cts", data["ts"]))
    if channel == "orderbook":
        require(instrument, _PREFIX[feed] + body["s"])
        if data["topic"].startswith("orderbook.1."):
            return [QuoteEvent(_best(body["b"]), _best(body["a"]), ts_event_ns)]
        return [_book(body, data["type"], ts_event_ns)]
    if channel == "publicTrade":
        trades = [trade(t["p"], t["v"], _SIDE[t["S"]], t["i"], ms_to_ns(t["T"])) for t in body]
        return [TradesEvent(trades, trades[-1].ts_event_ns)]
    if channel == "tickers" and _is_quote(body):
        bid_price, bid_size, ask_price, ask_size = (body[name] for name in _QUOTE)
        return [QuoteEvent(quote_side(bid_price, bid_size), quote_side(ask_price, ask_size), ts_event_ns)]
    return []


def _topic(data: Json) -> tuple[str, str]:
    """(channel, symbol) of ``orderbook.200.BTCUSDT``; ("", "") for replies to commands."""
    if "topic" not in data and "op" in data:
        return "", ""
    first, _, _ = data["topic"].partition(".")
    return first, data["topic"].rpartition(".")[2]


def _is_quote(body: Json) -> bool:
    return all(name in body for name in _QUOTE)


def _best(side: Json) -> Json:
    return levels(side)[0] if side else ("", "")


def _book(body: Json, kind: str, ts_event_ns: int) -> BookEvent:
    """``u == 1`` is a snapshot after a restart of the venue's service, whatever its type says."""
    last = integer(body["u"])
    if kind not in ("snapshot", "delta"):
        raise ValueError(f"type {kind[:20]!r} is neither snapshot nor delta")
    snapshot = kind == "snapshot" or last == 1
    return BookEvent(snapshot, levels(body["b"]), levels(body["a"]), ts_event_ns, last=last, reset=last == 1)
