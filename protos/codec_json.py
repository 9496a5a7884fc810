"""`depthcast.v1.json`: each message one line of JSON, for people. Prices and sizes are decimal text, enums and flags
are lower-case names, times are text because they do not fit JavaScript's numbers.

Messages with prices carry ``tick_size`` and ``lot_size``, so that a line can be decoded alone. The decoder gives them
as the message's `scale` only when the update starts a chain, as the other codecs carry it only there.
"""

from collections.abc import Callable
from enum import IntEnum
from typing import Any, cast

import orjson

from protos import wire
from protos.fixed import DecimalError, scaled, split_decimal, to_text, trim
from protos.messages import (
    Command,
    Flag,
    Levels,
    Resume,
    Scale,
    ServerMessage,
    Side,
    Subscribed,
    Trade,
)
from protos.wire import COUNT_MAX, LEVELS_MAX, NS_MAX, TRADES_MAX, VALUE_MAX, CodecError, Field, Kind, Shape

_SERVER_BY_TYPE = {shape.type: shape for shape in wire.SERVER_SHAPES}
_SERVER_BY_NAME = {shape.name: shape for shape in wire.SERVER_SHAPES}
_COMMANDS_BY_TYPE = {shape.type: shape for shape in wire.COMMAND_SHAPES}
_COMMANDS_BY_NAME = {shape.name: shape for shape in wire.COMMAND_SHAPES}
_FLAGS = {flag.name.lower(): int(flag) for flag in Flag if flag and flag.name}
_UNITS = Scale(0, 0)
_QUOTE_KEYS = {"bid_ticks": "bid_price", "bid_lots": "bid_size", "ask_ticks": "ask_price", "ask_lots": "ask_size"}
"""Decimal text is not ticks, so it is not called so."""


# ---- Python to JSON


def _name(value: IntEnum) -> str:
    return value.name.lower()


def _flag_names(flags: int) -> list[str]:
    return [name for name, flag in _FLAGS.items() if flags & flag]


def _trade(trade: Trade, scale: Scale) -> dict[str, str]:
    return {
        "price": to_text(trade.ticks, scale.price_exponent),
        "size": to_text(trade.lots, scale.size_exponent),
        "side": _name(trade.side),
        "trade_id": trade.trade_id,
        "ts_event_ns": str(trade.ts_event_ns),
    }


def _text_levels(levels: Levels, scale: Scale) -> list[tuple[str, str]]:
    price, size = scale.price_exponent, scale.size_exponent
    return [(to_text(ticks, price), to_text(lots, size)) for ticks, lots in levels]


_PUT: dict[Kind, Callable[[Any, Scale], object]] = {
    Kind.ENUM: lambda value, _: _name(value),
    Kind.NS: lambda value, _: str(value),
    Kind.FLAGS: lambda value, _: _flag_names(int(value)),
    Kind.TICKS: lambda value, scale: to_text(value, scale.price_exponent),
    Kind.LOTS: lambda value, scale: to_text(value, scale.size_exponent),
    Kind.LEVELS: _text_levels,
    Kind.TRADES: lambda value, scale: [_trade(trade, scale) for trade in value],
    Kind.RESUME: lambda value, _: {"epoch": value.epoch, "seq": value.seq},
}
"""The JSON value of what is not written as it is."""


def _to_json(shape: Shape, message: Any, scale: Scale | None) -> bytes:  # noqa: ANN401
    if shape.type is Subscribed or getattr(message, "scale", None) is not None:
        scale = getattr(message, "scale", None)
    if scale is None and any(_has_numbers(field, getattr(message, field.name)) for field in shape.fields):
        raise ValueError(f"a {shape.name} message with prices needs its scale to be written as JSON")
    out: dict[str, object] = {"type": shape.name}
    for field in shape.fields:
        value = getattr(message, field.name)
        if field.kind is Kind.SCALE:
            if scale is not None:
                out["tick_size"] = to_text(1, scale.price_exponent)
                out["lot_size"] = to_text(1, scale.size_exponent)
        elif value is not None:
            put = _PUT.get(field.kind)
            out[_QUOTE_KEYS.get(field.name, field.name)] = value if put is None else put(value, scale or _UNITS)
    return orjson.dumps(out)


def _has_numbers(field: Field, value: object) -> bool:
    return field.kind in (Kind.TICKS, Kind.LOTS, Kind.LEVELS, Kind.TRADES) and bool(value)


# ---- JSON to Python


def _list(value: object, name: str, length_max: int) -> list[Any]:
    if type(value) is not list:
        raise CodecError(f"{name} is not a list")
    if len(value) > length_max:
        raise CodecError(f"{name} has {len(value)} elements, at most {length_max} are allowed")
    return value


def _object(value: object, name: str) -> dict[str, Any]:
    if type(value) is not dict:
        raise CodecError(f"{name} is not an object")
    return value


def _count(value: object, name: str, exponent: int, low: int) -> int:
    """Decimal text as ticks or lots."""
    try:
        return wire.integer(scaled(wire.text(value, name, wire.TEXT_MAX), exponent), name, low, VALUE_MAX)
    except DecimalError as error:
        raise CodecError(f"{name}: {error}") from None


def _ns(value: object, name: str) -> int:
    digits = wire.text(value, name, 19)
    if not (digits.isascii() and digits.isdigit()):
        raise CodecError(f"{name} is not nanoseconds as text")
    return wire.integer(int(digits), name, 0, NS_MAX)


def _member(enum: type[IntEnum], value: object, name: str, strict: bool) -> IntEnum:
    text = wire.text(value, name, wire.TEXT_MAX)
    found = enum.__members__.get(text.upper()) if text.islower() else None
    if found is None and strict:
        raise CodecError(f"{name} {text[:32]!r} is unknown")
    return enum(0) if found is None else found


def _flags(value: object, name: str) -> int:
    flags = 0
    for item in _list(value, name, wire.TEXT_MAX):
        flags |= _FLAGS.get(wire.text(item, name, wire.TEXT_MAX), 0)
    return flags


def _levels(value: object, name: str, scale: Scale) -> Levels:
    levels: Levels = []
    for item in _list(value, name, LEVELS_MAX):
        pair = _list(item, name, 2)
        if len(pair) != 2:
            raise CodecError(f"{name}: a level is not a pair")
        ticks = _count(pair[0], "price", scale.price_exponent, -VALUE_MAX)
        levels.append((ticks, _count(pair[1], "size", scale.size_exponent, 0)))
    return wire.levels(levels, name)


def _trades(value: object, name: str, scale: Scale) -> list[Trade]:
    trades: list[Trade] = []
    for item in _list(value, name, TRADES_MAX):
        trade = _object(item, "trade")
        trades.append(
            Trade(
                _count(trade.get("price"), "price", scale.price_exponent, -VALUE_MAX),
                _count(trade.get("size"), "size", scale.size_exponent, 0),
                cast("Side", _member(Side, trade.get("side"), "side", strict=False)),
                wire.text(trade.get("trade_id"), "trade_id", wire.TRADE_ID_MAX),
                _ns(trade.get("ts_event_ns"), "ts_event_ns"),
            )
        )
    return trades


def _resume(value: object, name: str) -> Resume:
    resume = _object(value, name)
    return Resume(
        wire.integer(resume.get("epoch"), "epoch", 0, COUNT_MAX), wire.integer(resume.get("seq"), "seq", 0, COUNT_MAX)
    )


def _scale(found: dict[str, Any]) -> Scale | None:
    """tick_size and lot_size, which are powers of ten."""
    if "tick_size" not in found:
        return None
    exponents: list[int] = []
    for name in ("tick_size", "lot_size"):
        try:
            mantissa, exponent = trim(*split_decimal(wire.text(found.get(name), name, wire.TEXT_MAX)))
        except DecimalError as error:
            raise CodecError(f"{name}: {error}") from None
        if mantissa != 1:
            raise CodecError(f"{name} is not a power of ten, at most 1")
        exponents.append(exponent)
    return wire.scale(*exponents)


_GET: dict[Kind, Callable[[Any, str, Scale], object]] = {
    Kind.NS: lambda value, name, _: _ns(value, name),
    Kind.FLAGS: lambda value, name, _: _flags(value, name),
    Kind.TICKS: lambda value, name, scale: _count(value, name, scale.price_exponent, -VALUE_MAX),
    Kind.LOTS: lambda value, name, scale: _count(value, name, scale.size_exponent, 0),
    Kind.LEVELS: _levels,
    Kind.TRADES: _trades,
    Kind.RESUME: lambda value, name, _: None if value is None else _resume(value, name),
}


def _get(field: Field, value: object, scale: Scale, strict: bool) -> object:
    """A field's Python value, checked."""
    if field.kind is Kind.ENUM:
        return _member(field.enum, value, field.name, strict)
    get = _GET.get(field.kind)
    return wire.scalar(field, value, strict) if get is None else get(value, field.name, scale)


def _server_message(found: dict[str, Any]) -> ServerMessage | None:
    shape = _SERVER_BY_NAME.get(wire.text(found.get("type"), "type", wire.TEXT_MAX))
    if shape is None:
        return None
    scale = _scale(found)
    values: dict[str, Any] = {}
    for field in shape.fields:
        key = _QUOTE_KEYS.get(field.name, field.name)
        if field.kind is Kind.SCALE:
            values["scale"] = scale if shape.type is Subscribed or values["prev_seq"] == 0 else None
        else:
            values[field.name] = _get(field, found.get(key), scale or _UNITS, strict=False)
    if "prev_seq" in values:
        wire.check_chain(values["seq"], values["prev_seq"])
    return cast("ServerMessage", shape.type(**values))


_COMMAND_DEFAULTS: dict[Kind, object] = {Kind.U32: 0, Kind.COUNT: 0, Kind.ENUM: "close"}


def _command(found: dict[str, Any]) -> Command:
    """People type these, so what has a natural default may be left out, and what is not known is named."""
    shape = _COMMANDS_BY_NAME.get(wire.text(found.pop("type", None), "type", wire.TEXT_MAX))
    if shape is None:
        raise CodecError("type is none of " + ", ".join(_COMMANDS_BY_NAME))
    values: list[object] = []
    for field in shape.fields:
        default = None if field.name in ("stream", "channel") else _COMMAND_DEFAULTS.get(field.kind)
        values.append(_get(field, found.pop(field.name, default), _UNITS, strict=True))
    if found:
        raise CodecError(f"{shape.name} has no field {next(iter(found))[:32]!r}")
    return cast("Command", shape.type(*values))


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        return _object(orjson.loads(line), "message")
    except (orjson.JSONDecodeError, RecursionError) as error:
        raise CodecError(f"not JSON: {error}") from None


class JsonCodec:
    name = "depthcast.v1.json"
    binary = False

    def encode(self, message: ServerMessage, scale: Scale | None = None) -> bytes:
        return _to_json(_SERVER_BY_TYPE[type(message)], message, scale) + b"\n"

    def decode(self, frame: bytes) -> list[ServerMessage]:
        messages = (_server_message(_parsed(line)) for line in frame.split(b"\n") if line)
        return [message for message in messages if message is not None]

    def encode_command(self, command: Command) -> bytes:
        return _to_json(_COMMANDS_BY_TYPE[type(command)], command, None)

    def decode_command(self, data: bytes) -> Command:
        return _command(_parsed(data))
