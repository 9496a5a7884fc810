"""Our own Tick (`protos.tick`), for producers that are none of the venues.

It does not name its instrument: the record's key does. The ``prev_sequence`` of a delta is the ``sequence`` of the book
message before it; trades and quotes are not part of that chain.
"""

from ingest.events import BookEvent, ControlEvent, Event, MapError, QuoteEvent, Routed, SequenceRule, TradesEvent
from ingest.mappers.fields import levels, load, mapped, quote_side, trade
from protos.messages import Reason
from protos.tick import CONTENT_JSON, Tick, TickKind, VersionError, decode_tick
from protos.topics import check_instrument
from protos.wire import CodecError

RULES = {"canonical": SequenceRule.CANONICAL}
TRIM = True

_CONTROL = {TickKind.GAP: Reason.FEED_GAP, TickKind.DISCONNECTED: Reason.FEED_DISCONNECTED}


@mapped
def split(feed: str, message: bytes, symbol_hint: str = "") -> list[Routed]:
    return [Routed(check_instrument(symbol_hint), message)]


@mapped
def parse(feed: str, instrument: str, value: bytes, content_type: str = "") -> list[Event]:
    tick = _decoded(value, content_type)
    if tick.kind in _CONTROL:
        return [ControlEvent(_CONTROL[tick.kind], tick.ts_event_ns)]
    if tick.kind is TickKind.TRADES:
        trades = [trade(t.price, t.size, t.side, t.trade_id, t.ts_event_ns or tick.ts_event_ns) for t in tick.trades]
        return [TradesEvent(trades, tick.ts_event_ns or trades[-1].ts_event_ns)]
    if tick.kind is TickKind.QUOTE:
        if len(tick.bids) > 1 or len(tick.asks) > 1:
            raise MapError("bad-field", "a quote has at most one level a side")
        (bid, ask) = (side[0] if side else ("", "") for side in (tick.bids, tick.asks))
        return [QuoteEvent(quote_side(*bid), quote_side(*ask), tick.ts_event_ns)]
    snapshot = tick.kind is TickKind.SNAPSHOT
    bids, asks = (levels([list(level) for level in side]) for side in (tick.bids, tick.asks))
    prev = None if snapshot else tick.prev_sequence
    return [BookEvent(snapshot, bids, asks, tick.ts_event_ns, last=tick.sequence, prev=prev)]


def _decoded(value: bytes, content_type: str) -> Tick:
    try:
        return decode_tick(value, content_type)
    except VersionError as error:
        raise MapError("bad-version", str(error)) from None
    except CodecError as fault:  # not `error` again: compiled, a name has one type
        if content_type == CONTENT_JSON:
            load(value)  # says so if it is not even JSON
        raise MapError("bad-field", str(fault)) from None
