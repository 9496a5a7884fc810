"""Deribit: options, futures, perpetuals, spot and combos.

Source: the venue's API documentation, "Subscriptions": ``book.{instrument}.{interval}`` (first notification is
the snapshot; then ``prev_change_id`` links), ``trades``, ``ticker``, ``quote``. Prices are JSON numbers, kept as text.
"""

import re

from ingest.events import BookEvent, Event, MapError, QuoteEvent, Routed, SequenceRule, TextLevel, TradesEvent
from ingest.mappers.fields import Json, integer, levels, load_exact, mapped, ms_to_ns, quote_side, require, trade
from protos.messages import Side
from protos.topics import check_instrument

RULES = {"deribit": SequenceRule.DERIBIT}
TRIM = True

_SIDE = {"buy": Side.BUY, "sell": Side.SELL}
_MARKETS = (
    ("perpetual", re.compile(r"[A-Z0-9_]+-PERPETUAL")),
    ("future", re.compile(r"[A-Z0-9_]+-\d{1,2}[A-Z]{3}\d{2}")),
    ("option", re.compile(r"[A-Z0-9_]+-\d{1,2}[A-Z]{3}\d{2}-[0-9d]+-[CP]")),
    ("spot", re.compile(r"[A-Z0-9]+_[A-Z0-9]+")),
    ("combo", re.compile(r"[A-Z0-9_]+-[A-Z]+-[A-Z0-9_]+")),
)


@mapped
def split(feed: str, message: bytes, symbol_hint: str = "") -> list[Routed]:
    channel, name, _ = _notification(load_exact(message))
    return [Routed(check_instrument(_instrument(name)), message)] if channel else []


@mapped
def parse(feed: str, instrument: str, value: bytes, content_type: str = "") -> list[Event]:
    channel, name, data = _notification(load_exact(value))
    if not channel:
        return []
    require(instrument, _instrument(name))
    signed = instrument.startswith("deribit:combo:")  # a spread may trade below 0
    if channel == "trades":
        trades = [
            trade(t["price"], t["amount"], _SIDE[t["direction"]], t["trade_id"], ms_to_ns(t["timestamp"]), signed)
            for t in data
        ]
        return [TradesEvent(trades, trades[-1].ts_event_ns)]
    require(instrument, _instrument(data["instrument_name"]))
    ts_event_ns = ms_to_ns(data["timestamp"])
    if channel == "book":
        return [_book(data, ts_event_ns, signed)]
    bid, ask = ((data[f"best_{side}_price"], data[f"best_{side}_amount"]) for side in ("bid", "ask"))
    return [QuoteEvent(_quote(*bid, signed), _quote(*ask, signed), ts_event_ns)]


def _notification(message: Json) -> tuple[str, str, Json]:
    """(channel, instrument, data); channel "" for replies, heartbeats and channels without market data."""
    if message.get("method") != "subscription":
        if "result" in message or "error" in message or "method" in message:
            return "", "", None
        raise MapError("bad-field", "neither a notification nor a reply of Deribit")
    channel, name, *rest = message["params"]["channel"].split(".")
    if channel not in ("book", "trades", "ticker", "quote") or len(rest) > 1:  # book.X.none.20.100ms: a grouped view
        return "", "", None
    return channel, name, message["params"]["data"]


def _instrument(name: str) -> str:
    for market, pattern in _MARKETS:
        if pattern.fullmatch(name):
            return f"deribit:{market}:{name}"
    raise MapError("bad-field", f"instrument_name {name[:40]!r} is of no known kind")


def _levels(changes: Json, signed: bool) -> list[TextLevel]:
    """[action, price, amount]: ``new`` and ``change`` give the amount now, ``delete`` none."""
    for change in changes:
        if change[0] not in ("new", "change", "delete"):
            raise MapError("bad-field", f"action {str(change[0])[:20]!r} is not new, change or delete")
    return levels([[price, "0" if action == "delete" else amount] for action, price, amount in changes], signed)


def _book(data: Json, ts_event_ns: int, signed: bool) -> BookEvent:
    """Only a snapshot has no ``prev_change_id``."""
    snapshot = "prev_change_id" not in data
    prev = None if snapshot else integer(data["prev_change_id"])
    bids, asks = _levels(data["bids"], signed), _levels(data["asks"], signed)
    return BookEvent(snapshot, bids, asks, ts_event_ns, last=integer(data["change_id"]), prev=prev)


def _quote(price: Json, amount: Json, signed: bool) -> TextLevel:
    """An empty side is price and amount 0, or null."""
    return ("", "") if price is None or amount is None else quote_side(price, amount, signed)
