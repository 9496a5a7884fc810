"""`depthcast.v1.msgpack`: each message one MessagePack array ``[number, field, ...]``, trailing defaults left out.

Numbers and fields are those of `protos.wire`'s shapes; the layout is written out in docs/protocol.md.
"""

from collections.abc import Callable
from typing import Any, cast

import msgpack

from protos import wire
from protos.messages import Command, Level, Levels, Resume, Scale, ServerMessage, Side, Trade
from protos.wire import COUNT_MAX, LEVELS_MAX, NS_MAX, TRADES_MAX, VALUE_MAX, CodecError, Field, Kind, Shape

_COMMAND_ARRAY_MAX = 16
"""Elements of the longest array in a command, with room: a command cannot make the parser allocate."""
_NS_PER_MS = 1_000_000
_HEADER_LENGTH = len(wire.HEADER)
_SERVER_BY_TYPE = {shape.type: shape for shape in wire.SERVER_SHAPES}
_SERVER_BY_NUMBER = {shape.number: shape for shape in wire.SERVER_SHAPES}
_COMMANDS_BY_TYPE = {shape.type: shape for shape in wire.COMMAND_SHAPES}
_COMMANDS_BY_NUMBER = {shape.number: shape for shape in wire.COMMAND_SHAPES}


def _default(field: Field) -> object:
    if field.kind in (Kind.SCALE, Kind.RESUME, Kind.CRC) or field.name == "prev_seq":
        return None
    return {Kind.TEXT: "", Kind.BOOL: False, Kind.LEVELS: [], Kind.TRADES: []}.get(field.kind, 0)


_DEFAULTS = {
    shape.type: [_default(field) for field in shape.fields] for shape in (*wire.SERVER_SHAPES, *wire.COMMAND_SHAPES)
}


# ---- Python to plain values


def _pack_header(update: Any) -> list[object]:  # noqa: ANN401 (any update)
    """As `wire.HEADER`, with what is large written as a small difference."""
    seq, event_ns, received_ns = update.seq, update.ts_event_ns, update.ts_received_ns
    return [
        update.stream,
        event_ns // _NS_PER_MS - update.epoch,
        seq,
        seq - update.prev_seq if update.prev_seq else None,
        int(update.flags),
        event_ns,
        received_ns - event_ns,
        update.ts_published_ns - received_ns if update.ts_published_ns else None,
    ]


def _pack_levels(levels: Levels) -> list[int]:
    """``[start, step, lots, step, lots, -step, ...]``: prices ascend by step from start; a negative one removes."""
    if not levels:
        return []
    before = levels[0][0] - 1
    out = [before]
    for price, lots in levels:
        if lots:
            out += (price - before, lots)
        else:
            out.append(before - price)
        before = price
    return out


def _pack(shape: Shape, message: object) -> bytes:
    fields = shape.fields
    out: list[object] = [shape.number]
    if fields[:_HEADER_LENGTH] == wire.HEADER:
        out += _pack_header(message)
        fields = fields[_HEADER_LENGTH:]
    for field in fields:
        value = getattr(message, field.name)
        pack = _PACK.get(field.kind)
        out.append(value if pack is None else pack(value))
    defaults = _DEFAULTS[shape.type]
    while len(out) > 1 and out[-1] == defaults[len(out) - 2]:
        out.pop()
    return cast("bytes", msgpack.packb(out))


def _pack_scale(scale: Scale | None) -> list[int] | None:
    return None if scale is None else [scale.price_exponent, scale.size_exponent]


def _pack_resume(resume: Resume | None) -> list[int] | None:
    return None if resume is None else [resume.epoch, resume.seq]


def _pack_trades(trades: list[Trade]) -> list[list[object]]:
    return [[trade.ticks, trade.lots, int(trade.side), trade.trade_id, trade.ts_event_ns] for trade in trades]


_PACK: dict[Kind, Callable[[Any], object]] = {
    Kind.ENUM: int,
    Kind.LEVELS: _pack_levels,
    Kind.TRADES: _pack_trades,
    Kind.SCALE: _pack_scale,
    Kind.RESUME: _pack_resume,
}


# ---- plain values to Python


def _list(value: object, name: str, length_max: int) -> list[Any]:
    if type(value) is not list:
        raise CodecError(f"{name} is not an array")
    if len(value) > length_max:
        raise CodecError(f"{name} has {len(value)} elements, at most {length_max} are allowed")
    return value


def _unpack_header(values: list[object]) -> list[object]:
    epoch_age, seq_step, received_after, published_after = values[1], values[3], values[6], values[7]
    seq = wire.integer(values[2], "seq", 0, COUNT_MAX)
    event_ns = wire.integer(values[5], "ts_event_ns", 0, NS_MAX)
    epoch = event_ns // _NS_PER_MS - wire.integer(epoch_age, "epoch", -NS_MAX, NS_MAX)
    received_ns = event_ns + wire.integer(received_after, "ts_received_ns", -NS_MAX, NS_MAX)
    published_ns = 0
    if published_after is not None:
        published_ns = received_ns + wire.integer(published_after, "ts_published_ns", -NS_MAX, NS_MAX)
    prev_seq = 0
    if seq_step is not None:
        prev_seq = wire.integer(seq - wire.integer(seq_step, "seq_step", 0, COUNT_MAX), "prev_seq", 1, COUNT_MAX)
    return [
        wire.integer(values[0], "stream", 0, wire.U32_MAX),
        wire.integer(epoch, "epoch", 0, COUNT_MAX),
        seq,
        prev_seq,
        wire.scalar(wire.HEADER[4], values[4], strict=False),
        event_ns,
        wire.integer(received_ns, "ts_received_ns", 0, NS_MAX),
        wire.integer(published_ns, "ts_published_ns", 0, NS_MAX),
    ]


def _unpack_levels(value: object, name: str) -> Levels:
    flat = _list(value, name, 2 * LEVELS_MAX + 1)
    if not flat:
        return []
    if set(map(type, flat)) != {int}:
        raise CodecError(f"{name} has an element that is not an integer")
    numbers = iter(flat)
    price = next(numbers)
    levels: list[Level] = []
    for step in numbers:
        if step > 0:
            price += step
            levels.append((price, next(numbers, 0)))
            if levels[-1][1] < 1:
                raise CodecError(f"{name}: a size is missing or out of range")
        else:
            price -= step
            levels.append((price, 0))
    return wire.levels(levels, name)


def _unpack_trades(value: object, name: str) -> list[Trade]:
    trades: list[Trade] = []
    for item in _list(value, name, TRADES_MAX):
        fields = _list(item, "trade", 5)
        if len(fields) != 5:
            raise CodecError("a trade has not five elements")
        ticks, lots, side, trade_id, event_ns = fields
        trades.append(
            Trade(
                wire.integer(ticks, "ticks", -VALUE_MAX, VALUE_MAX),
                wire.integer(lots, "lots", 0, VALUE_MAX),
                wire.member(Side, wire.integer(side, "side", *wire.RANGES[Kind.ENUM]), "side", strict=False),
                wire.text(trade_id, "trade_id", wire.TRADE_ID_MAX),
                wire.integer(event_ns, "ts_event_ns", 0, NS_MAX),
            )
        )
    return trades


def _pair(value: object, name: str) -> list[Any]:
    pair = _list(value, name, 2)
    if len(pair) != 2:
        raise CodecError(f"{name} is not a pair")
    return pair


def _unpack_scale(value: object, name: str) -> Scale | None:
    return None if value is None else wire.scale(*_pair(value, name))


def _unpack_resume(value: object, name: str) -> Resume | None:
    if value is None:
        return None
    epoch, seq = _pair(value, name)
    return Resume(wire.integer(epoch, "epoch", 0, COUNT_MAX), wire.integer(seq, "seq", 0, COUNT_MAX))


_UNPACK: dict[Kind, Callable[[object, str], object]] = {
    Kind.LEVELS: _unpack_levels,
    Kind.TRADES: _unpack_trades,
    Kind.SCALE: _unpack_scale,
    Kind.RESUME: _unpack_resume,
}


def _unpack(shape: Shape, values: list[object], strict: bool) -> Any:  # noqa: ANN401
    fields = shape.fields
    if strict and len(values) > len(fields):
        raise CodecError(f"{shape.name} has {len(values)} fields, {len(fields)} are known")
    values = values[: len(fields)] + _DEFAULTS[shape.type][len(values) :]
    out: list[object] = []
    if fields[:_HEADER_LENGTH] == wire.HEADER:
        out = _unpack_header(values)
    for field, value in zip(fields[len(out) :], values[len(out) :], strict=True):
        unpack = _UNPACK.get(field.kind)
        out.append(wire.scalar(field, value, strict) if unpack is None else unpack(value, field.name))
    return shape.type(*out)


def _objects(data: bytes, array_max: int) -> list[object]:
    """The concatenated MessagePack objects of ``data``, else `CodecError`. Maps, bin and ext have no use here."""
    unpacker = msgpack.Unpacker(
        max_buffer_size=len(data) or 1, max_array_len=array_max, max_map_len=0, max_bin_len=0, max_ext_len=0
    )
    objects: list[object] = []
    try:
        unpacker.feed(data)
        while unpacker.tell() < len(data):
            objects.append(unpacker.unpack())
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise CodecError(f"not MessagePack: {error or type(error).__name__}") from None
    return objects


class MsgpackCodec:
    name = "depthcast.v1.msgpack"
    binary = True

    def encode(self, message: ServerMessage, scale: Scale | None = None) -> bytes:  # noqa: ARG002 (only JSON needs it)
        return _pack(_SERVER_BY_TYPE[type(message)], message)

    def decode(self, frame: bytes) -> list[ServerMessage]:
        messages: list[ServerMessage] = []
        for value in _objects(frame, min(len(frame), 2 * LEVELS_MAX + 1)):
            number, *values = _list(value, "message", 2 * LEVELS_MAX) or [None]
            shape = _SERVER_BY_NUMBER.get(wire.integer(number, "message number", 0, wire.U32_MAX))
            if shape is not None:
                messages.append(_unpack(shape, values, strict=False))
        return messages

    def encode_command(self, command: Command) -> bytes:
        return _pack(_COMMANDS_BY_TYPE[type(command)], command)

    def decode_command(self, data: bytes) -> Command:
        objects = _objects(data, _COMMAND_ARRAY_MAX)
        if len(objects) != 1:
            raise CodecError(f"a message holds one command, not {len(objects)}")
        number, *values = _list(objects[0], "command", _COMMAND_ARRAY_MAX) or [None]
        shape = _COMMANDS_BY_NUMBER.get(wire.integer(number, "command number", 0, wire.U32_MAX))
        if shape is None:
            raise CodecError(f"command {number} is unknown")
        return cast("Command", _unpack(shape, values, strict=True))
