"""Coinbase Advanced Trade market data.

Source: the venue's documentation, "Advanced Trade WebSocket channels": ``level2`` (sent as ``l2_data``),
``market_trades``, ``ticker``. Sizes are absolute. ``sequence_num`` counts the messages of a connection over all its
channels and instruments, so no record alone can show a gap: the feed watches it with `ConnectionSequence`.
"""

from collections.abc import Iterator

from ingest.events import BookEvent, Event, MapError, QuoteEvent, Routed, SequenceRule, TextLevel, TradesEvent
from ingest.mappers.fields import Json, dump, integer, iso_to_ns, levels, load, mapped, quote_side, require, trade
from protos.messages import Side
from protos.topics import check_instrument

RULES = {"coinbase": SequenceRule.COINBASE}
TRIM = True

_AGGRESSOR = {"BUY": Side.SELL, "SELL": Side.BUY}
"""The venue names the maker's side (in the captures every SELL is at the best ask)."""
SIDE_LEVELS_MAX = 2_000
"""Levels per side in one record. A full snapshot has 5 MB, and a record should stay below Kafka's usual 1 MB;
this many take about 550 kB. The parts of one message follow each other in the partition, the best prices first."""

_ITEMS = {"market_trades": "trades", "ticker": "tickers"}


class ConnectionSequence:
    """Watches one connection's ``sequence_num``."""

    __slots__ = ("_next",)

    def __init__(self) -> None:
        self._next: int | None = None

    def lost(self, message: bytes) -> bool:
        """See every message of the connection, in order; True if some before this one are missing.

        Raises:
            MapError: The message is not JSON or has no sequence number.
        """
        number = _sequence(message)
        lost = self._next is not None and number != self._next
        self._next = number + 1
        return lost


@mapped
def _sequence(message: bytes) -> int:
    return integer(load(message)["sequence_num"])


@mapped
def split(feed: str, message: bytes, symbol_hint: str = "") -> list[Routed]:
    outer = load(message)
    channel = outer["channel"]
    if channel == "l2_data":
        parts = [(event["product_id"], part) for event in outer["events"] for part in _parts(event)]
    elif channel in _ITEMS:
        parts = _by_product(outer["events"], _ITEMS[channel], keep_snapshots=channel == "ticker")
    else:
        return []
    if len(parts) == len(outer["events"]) == 1:
        return [Routed(_instrument(parts[0][0]), message)]
    return [Routed(_instrument(product), dump({**outer, "events": [event]})) for product, event in parts]


def _parts(event: Json) -> Iterator[Json]:
    """An event in parts: as sizes are absolute, a snapshot and updates with the rest add up to the same book."""
    updates = event["updates"]
    if len(updates) <= SIDE_LEVELS_MAX:
        yield event
        return
    bids = [update for update in updates if update["side"] == "bid"]
    asks = [update for update in updates if update["side"] != "bid"]
    for start in range(0, max(len(bids), len(asks)), SIDE_LEVELS_MAX):
        part = slice(start, start + SIDE_LEVELS_MAX)
        yield {**event, "type": event["type"] if start == 0 else "update", "updates": bids[part] + asks[part]}


def _by_product(events: Json, name: str, keep_snapshots: bool) -> list[tuple[str, Json]]:
    """One event per product. A snapshot of trades is history that may have been delivered before: not repeated."""
    products: dict[str, list[Json]] = {}
    for event in events:
        if keep_snapshots or event["type"] != "snapshot":
            for item in event[name]:
                products.setdefault(item["product_id"], []).append(item)
    return [(product, {"type": "update", name: items}) for product, items in products.items()]


@mapped
def parse(feed: str, instrument: str, value: bytes, content_type: str = "") -> list[Event]:
    outer = load(value)
    channel = outer["channel"]
    if channel != "l2_data" and channel not in _ITEMS:
        return []
    (event,) = outer["events"]
    ts_event_ns = iso_to_ns(outer["timestamp"])
    if channel == "l2_data":
        require(instrument, _instrument(event["product_id"]))
        return [_book(event, ts_event_ns, integer(outer["sequence_num"]))]
    items = event[_ITEMS[channel]]
    for item in items:
        require(instrument, _instrument(item["product_id"]))
    if channel == "ticker":
        last = items[-1]
        bid = quote_side(last["best_bid"], last["best_bid_quantity"])
        return [QuoteEvent(bid, quote_side(last["best_ask"], last["best_ask_quantity"]), ts_event_ns)]
    if event["type"] == "snapshot":
        return []
    trades = [  # the venue sends the newest first
        trade(t["price"], t["size"], _AGGRESSOR[t["side"]], t["trade_id"], iso_to_ns(t["time"]))
        for t in reversed(items)
    ]
    return [TradesEvent(trades, trades[-1].ts_event_ns)]


def _instrument(product_id: str) -> str:
    """``BTC-USD`` is spot, ``BTC-PERP-INTX`` a perpetual, ``BIT-28JUL23-CDE`` a future."""
    suffix = product_id.rpartition("-")[2]
    market = {"INTX": "perpetual", "CDE": "future"}.get(suffix, "spot")
    return check_instrument(f"coinbase:{market}:{product_id}")


def _book(event: Json, ts_event_ns: int, sequence: int) -> BookEvent:
    if event["type"] not in ("snapshot", "update"):
        raise MapError("bad-field", f"type {str(event['type'])[:20]!r} is neither snapshot nor update")
    sides: dict[str, list[TextLevel]] = {"bid": [], "offer": []}
    for update in event["updates"]:
        sides[update["side"]].append([update["price_level"], update["new_quantity"]])
    bids, asks = levels(sides["bid"]), levels(sides["offer"])
    return BookEvent(event["type"] == "snapshot", bids, asks, ts_event_ns, last=sequence)
