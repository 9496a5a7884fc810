"""The canonical Tick: input of producers that are not one of the venues. Its `content-type` header names the form.

JSON and MessagePack hold one map with the field names of `Tick` in ``depthcast.proto``: ``kind`` and ``side`` are
lower-case names, levels are ``[price, size]``, times integers or digits as text, and what is empty may be left out.
"""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple, cast

import msgpack
import orjson

from protos import depthcast_pb2 as pb
from protos import fixed, wire
from protos.codec_proto import parsed
from protos.messages import Side
from protos.wire import COUNT_MAX, LEVELS_MAX, NS_MAX, TRADES_MAX, CodecError

VERSION = 1
CONTENT_PROTO = "application/x-protobuf"
CONTENT_MSGPACK = "application/msgpack"
CONTENT_JSON = "application/json"

TextLevel = tuple[str, str]
"""(price, size) as decimal text."""


class VersionError(CodecError):
    """A well-formed tick of a version that this program does not read."""


class TickKind(IntEnum):
    SNAPSHOT = 1
    DELTA = 2
    TRADES = 3
    QUOTE = 4
    GAP = 5
    DISCONNECTED = 6


class TickTrade(NamedTuple):
    price: str
    size: str
    side: Side = Side.UNKNOWN
    trade_id: str = ""
    ts_event_ns: int = 0


@dataclass(slots=True)
class Tick:
    """Numbers are decimal text of bounded length; whether they are numbers is for `protos.fixed` to say."""

    kind: TickKind
    sequence: int = 0
    prev_sequence: int = 0
    ts_event_ns: int = 0
    bids: list[TextLevel] = field(default_factory=list)
    asks: list[TextLevel] = field(default_factory=list)
    trades: list[TickTrade] = field(default_factory=list)


def encode_tick(tick: Tick, content_type: str = CONTENT_PROTO) -> bytes:
    """Value of a `ticks` record with headers ``feed: canonical`` and this ``content-type``.

    Raises:
        ValueError: The content type is none of the three.
    """
    if content_type == CONTENT_PROTO:
        return _to_proto(tick)
    if content_type not in (CONTENT_JSON, CONTENT_MSGPACK):
        raise ValueError(f"content-type {content_type!r} is none of {CONTENT_PROTO}, {CONTENT_MSGPACK}, {CONTENT_JSON}")
    plain = {
        "version": VERSION,
        "kind": tick.kind.name.lower(),
        "sequence": tick.sequence,
        "prev_sequence": tick.prev_sequence,
        "ts_event_ns": tick.ts_event_ns,
        "bids": tick.bids,
        "asks": tick.asks,
        "trades": [{**trade._asdict(), "side": trade.side.name.lower()} for trade in tick.trades],
    }
    packed: bytes = orjson.dumps(plain) if content_type == CONTENT_JSON else msgpack.packb(plain)
    return packed


def decode_tick(value: bytes, content_type: str) -> Tick:
    """The tick of a canonical record.

    Raises:
        VersionError: Another version than 1.
        CodecError: Not a tick, or the content type is none of the three.
    """
    if content_type == CONTENT_PROTO:
        return _from_proto(value)
    if content_type == CONTENT_JSON:
        try:
            return _tick(orjson.loads(value))
        except (orjson.JSONDecodeError, RecursionError) as error:
            raise CodecError(f"not JSON: {error}") from None
    if content_type == CONTENT_MSGPACK:
        return _tick(_unpacked(value))
    raise CodecError(
        f"content-type {content_type[:64]!r} is none of {CONTENT_PROTO}, {CONTENT_MSGPACK}, {CONTENT_JSON}"
    )


def _unpacked(value: bytes) -> object:
    length = len(value)
    try:
        found: object = msgpack.unpackb(
            value, max_array_len=min(length, LEVELS_MAX), max_map_len=min(length, 32), max_bin_len=0, max_ext_len=0
        )
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise CodecError(f"not MessagePack: {error or type(error).__name__}") from None
    return found


def _to_proto(tick: Tick) -> bytes:
    out = pb.Tick(
        version=VERSION,
        kind=cast("pb.TickKind.ValueType", tick.kind),
        sequence=tick.sequence,
        prev_sequence=tick.prev_sequence,
        ts_event_ns=tick.ts_event_ns,
    )
    for levels, add in ((tick.bids, out.bids.add), (tick.asks, out.asks.add)):
        for price, size in levels:
            add(price=price, size=size)
    for price, size, side, trade_id, ts_event_ns in tick.trades:
        out.trades.add(
            price=price,
            size=size,
            side=cast("pb.Side.ValueType", side),
            trade_id=trade_id,
            ts_event_ns=ts_event_ns,
        )
    return out.SerializeToString()


def _from_proto(value: bytes) -> Tick:
    found: pb.Tick = parsed(pb.Tick, value)
    _check_version(found.version)
    bids, asks, trades = found.bids[:], found.asks[:], found.trades[:]
    if len(bids) > LEVELS_MAX or len(asks) > LEVELS_MAX or len(trades) > TRADES_MAX:
        raise CodecError(f"tick has more than {LEVELS_MAX} levels or {TRADES_MAX} trades")
    kind = _KINDS_BY_NUMBER.get(found.kind)
    if kind is None:
        raise CodecError("kind is none of " + ", ".join(_KINDS))
    return Tick(
        kind,
        wire.integer(found.sequence, "sequence", 0, COUNT_MAX),
        wire.integer(found.prev_sequence, "prev_sequence", 0, COUNT_MAX),
        wire.integer(found.ts_event_ns, "ts_event_ns", 0, NS_MAX),
        _proto_levels(bids),
        _proto_levels(asks),
        [
            TickTrade(
                wire.text(trade.price, "price", fixed.TEXT_MAX),
                wire.text(trade.size, "size", fixed.TEXT_MAX),
                wire.member(Side, trade.side, "side", strict=True),
                wire.text(trade.trade_id, "trade_id", wire.TRADE_ID_MAX),
                wire.integer(trade.ts_event_ns, "ts_event_ns", 0, NS_MAX),
            )
            for trade in trades
        ],
    )


def _proto_levels(found: list[pb.PriceLevel]) -> list[TextLevel]:
    levels: list[TextLevel] = []
    for level in found:
        price, size = level.price, level.size
        if len(price) > fixed.TEXT_MAX or len(size) > fixed.TEXT_MAX:
            raise CodecError(f"a number has more than {fixed.TEXT_MAX} characters")
        levels.append((price, size))
    return levels


_KINDS = {kind.name.lower(): kind for kind in TickKind}
_KINDS_BY_NUMBER = {kind.value: kind for kind in TickKind}
_SIDES = {side.name.lower(): side for side in Side}


def _tick(found: object) -> Tick:
    if type(found) is not dict:
        raise CodecError("a tick is a map of its fields")
    _check_version(wire.integer(found.get("version"), "version", 0, wire.U32_MAX))
    kind = _KINDS.get(wire.text(found.get("kind"), "kind", wire.TEXT_MAX))
    if kind is None:
        raise CodecError("kind is none of " + ", ".join(_KINDS))
    return Tick(
        kind,
        wire.integer(found.get("sequence", 0), "sequence", 0, COUNT_MAX),
        wire.integer(found.get("prev_sequence", 0), "prev_sequence", 0, COUNT_MAX),
        _ns(found),
        [_level(item) for item in _list(found, "bids", LEVELS_MAX)],
        [_level(item) for item in _list(found, "asks", LEVELS_MAX)],
        [_trade(item) for item in _list(found, "trades", TRADES_MAX)],
    )


def _check_version(version: int) -> None:
    if version != VERSION:
        raise VersionError(f"tick has version {version}, this program reads version {VERSION}")


def _list(found: dict[str, Any], name: str, length_max: int) -> list[Any]:
    value = found.get(name, [])
    if type(value) is not list or len(value) > length_max:
        raise CodecError(f"{name} is not a list of at most {length_max}")
    return value


def _level(item: object) -> TextLevel:
    if type(item) is not list or len(item) != 2:
        raise CodecError("a level is not [price, size]")
    return wire.text(item[0], "price", fixed.TEXT_MAX), wire.text(item[1], "size", fixed.TEXT_MAX)


def _trade(item: object) -> TickTrade:
    if type(item) is not dict:
        raise CodecError("a trade is not a map")
    side = _SIDES.get(wire.text(item.get("side", "unknown"), "side", wire.TEXT_MAX))
    if side is None:
        raise CodecError("side is none of " + ", ".join(_SIDES))
    return TickTrade(
        wire.text(item.get("price"), "price", fixed.TEXT_MAX),
        wire.text(item.get("size"), "size", fixed.TEXT_MAX),
        side,
        wire.text(item.get("trade_id", ""), "trade_id", wire.TRADE_ID_MAX),
        _ns(item),
    )


def _ns(found: dict[str, Any]) -> int:
    """ts_event_ns: an integer, or digits as text, because JavaScript's numbers cannot hold it."""
    value: object = found.get("ts_event_ns", 0)
    if type(value) is str and len(value) <= 19 and value.isascii() and value.isdigit():
        value = int(value)
    return wire.integer(value, "ts_event_ns", 0, NS_MAX)
