"""Values of the `market` and `snapshots` topics, always protobuf."""

from protos import depthcast_pb2 as pb
from protos import wire
from protos.codec_proto import (
    pack_book,
    pack_chunk,
    pack_quote,
    pack_status,
    pack_trades,
    parsed,
    unpack_book,
    unpack_chunk,
    unpack_quote,
    unpack_status,
    unpack_trades,
)
from protos.messages import (
    BookUpdate,
    Checkpoint,
    InstrumentState,
    MarketMessage,
    QuoteUpdate,
    StatusUpdate,
    TradesUpdate,
)
from protos.wire import CodecError

VERSION = 1
_MARKET = (BookUpdate, TradesUpdate, QuoteUpdate, StatusUpdate)
_OFFSET_MAX = 2**63 - 1


def encode_market(message: MarketMessage) -> bytes:
    """Value of a record on the market topic: one protobuf `Chunk`."""
    return pack_chunk(message)


def decode_market(value: bytes) -> MarketMessage:
    """The message of a market record.

    Raises:
        CodecError: It is not a chunk with a book, trades, bbo or status.
    """
    message = unpack_chunk(value)
    if not isinstance(message, _MARKET):
        raise CodecError("not a market record")
    return message


def encode_state(state: InstrumentState) -> bytes:
    """Value of an instrument's record on the snapshots topic."""
    return pb.InstrumentState(
        version=VERSION,
        ticks_offset=state.ticks_offset,
        book=None if state.book is None else pack_book(state.book),
        ingest_state=state.ingest_state,
        status=None if state.status is None else pack_status(state.status),
        bbo=None if state.bbo is None else pack_quote(state.bbo),
        trades=None if state.trades is None else pack_trades(state.trades),
    ).SerializeToString()


def decode_state(value: bytes) -> InstrumentState:
    """The instrument's state at its checkpoint.

    Raises:
        CodecError: Not such a record, or of another version.
    """
    record: pb.InstrumentState = parsed(pb.InstrumentState, value)
    _check_version(record.version)
    return InstrumentState(
        wire.integer(record.ticks_offset, "ticks_offset", 0, _OFFSET_MAX),
        unpack_book(record.book) if record.HasField("book") else None,
        record.ingest_state,
        unpack_status(record.status) if record.HasField("status") else None,
        unpack_quote(record.bbo) if record.HasField("bbo") else None,
        unpack_trades(record.trades) if record.HasField("trades") else None,
    )


def encode_checkpoint(checkpoint: Checkpoint) -> bytes:
    """Value of a partition's checkpoint on the snapshots topic."""
    return pb.Checkpoint(
        version=VERSION, ticks_offset=checkpoint.ticks_offset, market_offset=checkpoint.market_offset
    ).SerializeToString()


def decode_checkpoint(value: bytes) -> Checkpoint:
    """The partition's checkpoint.

    Raises:
        CodecError: Not such a record, or of another version.
    """
    record: pb.Checkpoint = parsed(pb.Checkpoint, value)
    _check_version(record.version)
    return Checkpoint(
        wire.integer(record.ticks_offset, "ticks_offset", 0, _OFFSET_MAX),
        wire.integer(record.market_offset, "market_offset", 0, _OFFSET_MAX),
    )


def _check_version(version: int) -> None:
    if version != VERSION:
        raise CodecError(f"record has version {version}, this program reads version {VERSION}")
