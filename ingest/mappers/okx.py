"""OKX v5 public channels of spot, swap, futures and options.

Source: the venue's v5 documentation, "Order Book Trading / WS / Order book channel", with sequence and checksum rules:
``books`` (400 levels), ``books50-l2-tbt``, ``books-l2-tbt``, ``books5`` (each message a snapshot), ``bbo-tbt``,
``trades``, ``trades-all``, ``tickers``. Subscribe to one book channel per instrument: each has its own sequence.
"""

from ingest.events import BookEvent, Event, MapError, QuoteEvent, Routed, SequenceRule, TradesEvent
from ingest.mappers.fields import (
    Json,
    crc32_of,
    dump,
    integer,
    levels,
    load,
    mapped,
    ms_to_ns,
    quote_side,
    require,
    trade,
)
from protos.messages import Side
from protos.topics import check_instrument

RULES = {"okx": SequenceRule.OKX}
TRIM = True

_BOOKS = ("books", "books-l2-tbt", "books50-l2-tbt", "books5")
_TRADES = ("trades", "trades-all")
_QUOTES = ("bbo-tbt", "tickers")
_SIDE = {"buy": Side.BUY, "sell": Side.SELL}


@mapped
def split(feed: str, message: bytes, symbol_hint: str = "") -> list[Routed]:
    outer = load(message)
    if _channel(outer) not in _BOOKS + _TRADES + _QUOTES:
        return []
    instrument = check_instrument(_instrument(outer["arg"]["instId"]))
    if _channel(outer) in _TRADES or len(outer["data"]) == 1:
        return [Routed(instrument, message)]
    return [Routed(instrument, dump({**outer, "data": [item]})) for item in outer["data"]]


@mapped
def parse(feed: str, instrument: str, value: bytes, content_type: str = "") -> list[Event]:
    outer = load(value)
    channel = _channel(outer)
    if channel not in _BOOKS + _TRADES + _QUOTES:
        return []
    require(instrument, _instrument(outer["arg"]["instId"]))
    items = outer["data"]
    if channel in _TRADES:
        trades = [trade(t["px"], t["sz"], _SIDE[t["side"]], t["tradeId"], ms_to_ns(t["ts"])) for t in items]
        return [TradesEvent(trades, trades[-1].ts_event_ns)]
    if len(items) != 1:
        raise MapError("bad-field", f"{len(items)} entries in one {channel} record")
    data = items[0]
    ts_event_ns = ms_to_ns(data["ts"])
    if channel in _BOOKS:
        return [_book(outer, data, ts_event_ns)]
    if channel == "tickers":
        bid, ask = (data["bidPx"], data["bidSz"]), (data["askPx"], data["askSz"])
        return [QuoteEvent(quote_side(*bid), quote_side(*ask), ts_event_ns)]
    bids, asks = _levels(data["bids"]), _levels(data["asks"])
    return [QuoteEvent(bids[0] if bids else ("", ""), asks[0] if asks else ("", ""), ts_event_ns)]


def _channel(outer: Json) -> str:
    """Of a data message; "" for replies (``event``)."""
    return "" if "event" in outer else str(outer["arg"]["channel"])


def _instrument(inst_id: str) -> str:
    """``BTC-USDT`` is spot, ``UNI-USD-SWAP`` a swap, ``BTC-USD-220527`` a future, with strike and C or P an option."""
    parts = inst_id.split("-")
    market = {2: "spot", 3: "swap" if parts[-1] == "SWAP" else "futures", 5: "option"}.get(len(parts))
    if market is None:
        raise MapError("bad-field", f"instId {inst_id[:40]!r} is of no known kind")
    return f"okx:{market}:{inst_id}"


def _levels(side: Json) -> Json:
    """[price, size, "0", orders] -> [price, size]."""
    return levels([level[:2] for level in side])


def _book(outer: Json, data: Json, ts_event_ns: int) -> BookEvent:
    five = outer["arg"]["channel"] == "books5"
    action = "snapshot" if five else outer["action"]
    if action not in ("snapshot", "update"):
        raise MapError("bad-field", f"action {str(action)[:20]!r} is neither snapshot nor update")
    event = BookEvent(action == "snapshot", _levels(data["bids"]), _levels(data["asks"]), ts_event_ns)
    event.depth = 5 if five else 0
    event.checksum = crc32_of(data.get("checksum", 0)) or None
    if "seqId" in data:
        event.last = integer(data["seqId"])
        if not event.snapshot:
            event.prev = integer(data["prevSeqId"])
            event.reset = event.last < event.prev
    return event
