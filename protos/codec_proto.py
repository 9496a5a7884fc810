"""`depthcast.v1.proto`: the protobuf codec, on the upb runtime. The schema and its layout are in ``depthcast.proto``.

`depthcast_pb2` is generated from it by the pinned grpcio-tools and mypy-protobuf (`tests/protos/test_generated.py`
regenerates it and demands no difference)::

    python -m grpc_tools.protoc -Iprotos --python_out=protos --mypy_out=protos protos/depthcast.proto
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

from google.protobuf.message import DecodeError

from protos import depthcast_pb2 as pb
from protos import shortcut, wire
from protos.messages import (
    BookState,
    BookUpdate,
    Command,
    Levels,
    QuoteUpdate,
    Reason,
    Resume,
    Scale,
    ServerMessage,
    Side,
    StatusUpdate,
    Trade,
    TradesUpdate,
)
from protos.wire import COUNT_MAX, LEVELS_MAX, NS_MAX, RESUME, SCALE, TRADES_MAX, VALUE_MAX, CodecError, Shape

_FRAME_TAG = b"\x0a"  # field 1, length-delimited

_Update = pb.BookUpdate | pb.TradesUpdate | pb.QuoteUpdate | pb.StatusUpdate
_U = TypeVar("_U", pb.BookUpdate, pb.TradesUpdate, pb.QuoteUpdate, pb.StatusUpdate)


def parsed(kind: type[Any], data: bytes) -> Any:  # noqa: ANN401 (protobuf classes share no useful type)
    """The protobuf message in ``data``, else `CodecError`."""
    try:
        return kind.FromString(data)
    except (DecodeError, RuntimeError) as error:
        raise CodecError(f"not a protobuf {kind.__name__}: {error}") from None


# ---- updates


def _start(kind: type[_U], update: BookUpdate | TradesUpdate | QuoteUpdate | StatusUpdate) -> _U:
    """A protobuf update with its header."""
    received_ns = update.ts_received_ns
    out = kind(
        stream=update.stream,
        epoch=update.epoch,
        seq=update.seq,
        flags=update.flags,
        ts_event_ns=update.ts_event_ns,
        ts_received_after_ns=received_ns - update.ts_event_ns,
    )
    if update.prev_seq:
        out.seq_step = update.seq - update.prev_seq
    if update.ts_published_ns:
        out.ts_published_after_ns = update.ts_published_ns - received_ns
    return out


def _header(body: _Update) -> tuple[int, int, int, int, int, int, int, int]:
    """The first eight fields of the Python update, checked."""
    epoch, seq = body.epoch, body.seq
    if (epoch | seq) > COUNT_MAX:
        raise CodecError("epoch or seq is out of range")
    prev_seq = 0
    if body.HasField("seq_step"):
        prev_seq = seq - body.seq_step
        if prev_seq <= 0:
            raise CodecError("seq_step leads to before the first sequence")
    event_ns = body.ts_event_ns
    received_ns = event_ns + body.ts_received_after_ns
    published_ns = received_ns + body.ts_published_after_ns if body.HasField("ts_published_after_ns") else 0
    if not (event_ns <= NS_MAX and 0 <= received_ns <= NS_MAX and 0 <= published_ns <= NS_MAX):
        raise CodecError("a time is out of range")
    return body.stream, epoch, seq, prev_seq, body.flags & wire.FLAGS_KNOWN, event_ns, received_ns, published_ns


def _pack_levels(levels: Levels) -> tuple[list[int], list[int]]:
    """(steps, lots) of one side that has levels."""
    steps: list[int] = []
    lots: list[int] = []
    first = levels[0][0]
    before = first - (first << 1 ^ first >> 63)  # so that the first step is the zigzag of the price
    for price, size in levels:
        if size:
            steps.append((price - before) << 1)
            lots.append(size)
        else:
            steps.append((price - before) << 1 | 1)
        before = price
    return steps, lots


def _unpack_levels(packed_steps: Sequence[int], packed_lots: Sequence[int]) -> Levels:
    """Levels of one side, checked. The extremes of a list bound all of it: cheaper than a test per level."""
    steps, lots = packed_steps[:], packed_lots[:]  # slicing a upb container costs a third of list()
    if not steps:
        if lots:
            raise CodecError("sizes without prices")
        return []
    if len(steps) > LEVELS_MAX:
        raise CodecError(f"a side has {len(steps)} levels, at most {LEVELS_MAX} are allowed")
    if len(steps) > 1 and min(steps[1:]) < 2:
        raise CodecError("prices do not ascend")
    if lots and (min(lots) < 1 or max(lots) > VALUE_MAX):
        raise CodecError("a size is out of range")
    first = steps[0] >> 1
    price = (first >> 1 ^ -(first & 1)) - first
    sizes = iter(lots)
    levels: Levels = []
    try:
        for step in steps:
            price += step >> 1
            levels.append((price, 0 if step & 1 else next(sizes)))
    except StopIteration:
        raise CodecError("fewer sizes than prices") from None
    if next(sizes, None) is not None:
        raise CodecError("more sizes than prices")
    if levels[0][0] < -VALUE_MAX or price > VALUE_MAX:
        raise CodecError("a price is out of range")
    return levels


def pack_book(update: BookUpdate) -> pb.BookUpdate:
    out = _start(pb.BookUpdate, update)
    if update.bids:
        steps, lots = _pack_levels(update.bids)
        out.bid_steps.extend(steps)
        out.bid_lots.extend(lots)
    if update.asks:
        steps, lots = _pack_levels(update.asks)
        out.ask_steps.extend(steps)
        out.ask_lots.extend(lots)
    _pack_scale(out, update.scale)
    if update.venue_checksum is not None:
        out.venue_checksum = update.venue_checksum
    if update.venue_depth:
        out.venue_depth = update.venue_depth
    return out


def unpack_book(body: pb.BookUpdate) -> BookUpdate:
    return BookUpdate(
        *_header(body),
        _unpack_levels(body.bid_steps, body.bid_lots),
        _unpack_levels(body.ask_steps, body.ask_lots),
        _unpack_scale(body),
        body.venue_checksum if body.HasField("venue_checksum") else None,
        body.venue_depth,
    )


def pack_trades(update: TradesUpdate) -> pb.TradesUpdate:
    out = _start(pb.TradesUpdate, update)
    for trade in update.trades:
        out.trades.add(
            ticks=trade.ticks,
            lots=trade.lots,
            side=cast("pb.Side.ValueType", trade.side),
            trade_id=trade.trade_id,
            ts_event_ns=trade.ts_event_ns,
        )
    _pack_scale(out, update.scale)
    return out


def unpack_trades(body: pb.TradesUpdate) -> TradesUpdate:
    if len(body.trades) > TRADES_MAX:
        raise CodecError(f"update has {len(body.trades)} trades, at most {TRADES_MAX} are allowed")
    return TradesUpdate(*_header(body), [_unpack_trade(trade) for trade in body.trades], _unpack_scale(body))


def _unpack_trade(trade: pb.Trade) -> Trade:
    return Trade(
        wire.integer(trade.ticks, "ticks", -VALUE_MAX, VALUE_MAX),
        wire.integer(trade.lots, "lots", 0, VALUE_MAX),
        wire.member(Side, trade.side, "side", strict=False),
        wire.text(trade.trade_id, "trade_id", wire.TRADE_ID_MAX),
        wire.integer(trade.ts_event_ns, "ts_event_ns", 0, NS_MAX),
    )


def pack_quote(update: QuoteUpdate) -> pb.QuoteUpdate:
    out = _start(pb.QuoteUpdate, update)
    out.bid_ticks = update.bid_ticks
    out.bid_lots = update.bid_lots
    out.ask_ticks = update.ask_ticks
    out.ask_lots = update.ask_lots
    _pack_scale(out, update.scale)
    return out


def unpack_quote(body: pb.QuoteUpdate) -> QuoteUpdate:
    bid_ticks, bid_lots, ask_ticks, ask_lots = body.bid_ticks, body.bid_lots, body.ask_ticks, body.ask_lots
    if max(abs(bid_ticks), abs(ask_ticks), bid_lots, ask_lots) > VALUE_MAX:
        raise CodecError("a price or size is out of range")
    return QuoteUpdate(*_header(body), bid_ticks, bid_lots, ask_ticks, ask_lots, _unpack_scale(body))


def pack_status(update: StatusUpdate) -> pb.StatusUpdate:
    out = _start(pb.StatusUpdate, update)
    out.state = cast("pb.BookState.ValueType", update.state)
    out.reason = cast("pb.Reason.ValueType", update.reason)
    return out


def unpack_status(body: pb.StatusUpdate) -> StatusUpdate:
    state = wire.member(BookState, body.state, "state", strict=False)
    return StatusUpdate(*_header(body), state, wire.member(Reason, body.reason, "reason", strict=False))


def _pack_scale(out: pb.BookUpdate | pb.TradesUpdate | pb.QuoteUpdate, scale: Scale | None) -> None:
    if scale is not None:
        out.scale.price_exponent = scale.price_exponent
        out.scale.size_exponent = scale.size_exponent
        out.scale.SetInParent()  # a scale of whole units is still a scale


def _unpack_scale(body: Any) -> Scale | None:  # noqa: ANN401
    if not body.HasField("scale"):
        return None
    return wire.scale(body.scale.price_exponent, body.scale.size_exponent)


# ---- replies and commands: few, so by their shape


def _pack_fields(shape: Shape, message: object, out: Any) -> Any:  # noqa: ANN401
    out.SetInParent()
    for field in shape.fields:
        value = getattr(message, field.name)
        if field.kind is SCALE:
            _pack_scale(out, value)
        elif field.kind is RESUME:
            if value is not None:
                out.resume.CopyFrom(pb.Resume(epoch=value.epoch, seq=value.seq))
        elif field.name != "id" or shape.type not in _COMMAND_TYPES:
            setattr(out, field.name, value)
    return out


def _unpack_fields(shape: Shape, body: Any, command_id: int | None = None) -> Any:  # noqa: ANN401
    values: list[object] = []
    for field in shape.fields:
        if field.kind is SCALE:
            values.append(_unpack_scale(body))
        elif field.kind is RESUME:
            values.append(_unpack_resume(body))
        else:
            value = command_id if field.name == "id" and command_id is not None else getattr(body, field.name)
            values.append(wire.scalar(field, value, strict=command_id is not None))
    return shape.type(*values)


def _unpack_resume(body: pb.Subscribe) -> Resume | None:
    if not body.HasField("resume"):
        return None
    return Resume(
        wire.integer(body.resume.epoch, "epoch", 0, COUNT_MAX), wire.integer(body.resume.seq, "seq", 0, COUNT_MAX)
    )


_COMMAND_TYPES = frozenset(shape.type for shape in wire.COMMAND_SHAPES)
_COMMANDS_BY_TYPE = {shape.type: shape for shape in wire.COMMAND_SHAPES}
_COMMANDS_BY_NAME = {shape.name: shape for shape in wire.COMMAND_SHAPES}
_REPLIES_BY_TYPE = {shape.type: shape for shape in wire.REPLIES}
_REPLIES_BY_NAME = {shape.name: shape for shape in wire.REPLIES}

_PACK_UPDATE: dict[type, tuple[int, Callable[[Any], Any]]] = {
    BookUpdate: (wire.BOOK.number, pack_book),
    TradesUpdate: (wire.TRADES.number, pack_trades),
    QuoteUpdate: (wire.QUOTE.number, pack_quote),
    StatusUpdate: (wire.STATUS.number, pack_status),
}
_UNPACK_UPDATE: dict[str, Callable[[Any], Any]] = {
    "book": unpack_book,
    "trades": unpack_trades,
    "bbo": unpack_quote,
    "status": unpack_status,
}


def _length(size: int) -> bytes:
    """A protobuf varint."""
    if size < 0x80:
        return bytes((size,))
    out = bytearray()
    while size >= 0x80:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    out.append(size)
    return bytes(out)


def pack_chunk(message: ServerMessage) -> bytes:
    """A protobuf `Chunk`: the field of the oneof by hand, because a message that is assigned into another is copied."""
    packed = shortcut.pack_record(message)
    if packed is not None:
        return packed
    update = _PACK_UPDATE.get(type(message))
    if update is not None:
        number, pack = update
        body: bytes = pack(message).SerializeToString()
        return bytes((number << 3 | 2,)) + _length(len(body)) + body
    shape = _REPLIES_BY_TYPE[type(message)]
    chunk = pb.Chunk()
    _pack_fields(shape, message, getattr(chunk, shape.name))
    return chunk.SerializeToString()


def unpack_chunk(data: bytes) -> ServerMessage | None:
    """The message of a protobuf `Chunk`; None when this version does not know it."""
    message = shortcut.unpack_record(data)
    return message if message is not None else _unpack_parsed(parsed(pb.Chunk, data))


def _unpack_parsed(chunk: pb.Chunk) -> ServerMessage | None:
    name = chunk.WhichOneof("body")
    if name is None:
        return None
    unpack = _UNPACK_UPDATE.get(name)
    if unpack is not None:
        return cast("ServerMessage", unpack(getattr(chunk, name)))
    return cast("ServerMessage", _unpack_fields(_REPLIES_BY_NAME[name], getattr(chunk, name)))


class ProtoCodec:
    name = "depthcast.v1.proto"
    binary = True

    def encode(self, message: ServerMessage, scale: Scale | None = None) -> bytes:  # noqa: ARG002 (only JSON needs it)
        packed = shortcut.pack_frame(message)
        if packed is not None:
            return packed
        chunk = pack_chunk(message)
        return _FRAME_TAG + _length(len(chunk)) + chunk

    def decode(self, frame: bytes) -> list[ServerMessage]:
        messages: list[ServerMessage | None] = []
        for part in shortcut.unpack_frame(frame):
            if isinstance(part, bytes):
                messages += [_unpack_parsed(chunk) for chunk in parsed(pb.Frame, part).chunks]
            else:
                messages.append(part)
        return [message for message in messages if message is not None]

    def encode_command(self, command: Command) -> bytes:
        shape = _COMMANDS_BY_TYPE[type(command)]
        out = pb.Command(id=command.id)
        _pack_fields(shape, command, getattr(out, shape.name))
        return out.SerializeToString()

    def decode_command(self, data: bytes) -> Command:
        command = parsed(pb.Command, data)
        name = command.WhichOneof("body")
        if name is None:
            raise CodecError("command is empty or unknown")
        return cast("Command", _unpack_fields(_COMMANDS_BY_NAME[name], getattr(command, name), command.id))
