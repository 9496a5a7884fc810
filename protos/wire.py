"""What all codecs share: the shape of every message, the bounds of every field, and the one exception of decoders.

A decoder trusts nothing: types, ranges, list lengths and text lengths are checked against the constants below,
whatever the bytes. Unknown values are read so that old clients live with new servers: in server messages an unknown
enum number becomes the enum's 0 (UNKNOWN, NONE, WAITING), an unknown flag is dropped, and an unknown message is
skipped; in commands each of these is an error, because a request that is not understood must not be half obeyed.
"""

from collections.abc import Callable
from enum import Enum, IntEnum, auto
from typing import Any, NamedTuple, TypeVar

from protos import messages as m
from protos.fixed import DIGITS_MAX, EXPONENT_MIN
from protos.topics import INSTRUMENT_BYTES_MAX

U32_MAX = 2**32 - 1
COUNT_MAX = 2**53 - 1
"""Epochs, sequences, command ids: exact in JavaScript's numbers."""
NS_MAX = 2**63 - 1
VALUE_MAX = 10**DIGITS_MAX - 1
"""Ticks and lots."""
LEVELS_MAX = 200_000
"""Per side of one update. The deepest full books of the venues have about 50,000."""
TRADES_MAX = 20_000
"""In one update. Venues send at most some hundreds at once."""
TRADE_ID_MAX = 128
TEXT_MAX = 1024
"""Characters of an error message or a session id."""
TOKEN_MAX = 8192
"""Characters. The largest token that fits a line of an HTTP header, where tokens travel too."""

FLAGS_KNOWN = int(m.Flag.SNAPSHOT | m.Flag.CONFLATED | m.Flag.CROSSED | m.Flag.STALE | m.Flag.DERIVED | m.Flag.GAPPED)


class CodecError(ValueError):
    """The bytes are not a valid message; the text says what is wrong with them."""


class Kind(Enum):
    """How a field is written; the codecs have one rule for each."""

    U32 = auto()
    COUNT = auto()
    NS = auto()
    CRC = auto()  # optional uint32
    TICKS = auto()
    LOTS = auto()
    FLAGS = auto()
    ENUM = auto()
    TEXT = auto()
    BOOL = auto()
    SCALE = auto()  # optional
    RESUME = auto()  # optional
    LEVELS = auto()
    TRADES = auto()

    __hash__ = object.__hash__  # Enum's is in Python


TEXT, BOOL, CRC, ENUM, FLAGS, SCALE, RESUME = (
    *(Kind.TEXT, Kind.BOOL, Kind.CRC, Kind.ENUM),
    *(Kind.FLAGS, Kind.SCALE, Kind.RESUME),
)
"""What is asked of each field of each reply and command: Python 3.11 needs 0.16 us to find a member of an enum."""


class Field(NamedTuple):
    name: str
    kind: Kind
    enum: type[IntEnum] = m.Side
    text_max: int = 0


class Shape(NamedTuple):
    """One message: its number in MessagePack and in the protobuf oneof, its name in JSON, its fields in order."""

    number: int
    name: str
    type: Callable[..., Any]
    fields: tuple[Field, ...]


HEADER = (
    Field("stream", Kind.U32),
    Field("epoch", Kind.COUNT),
    Field("seq", Kind.COUNT),
    Field("prev_seq", Kind.COUNT),
    Field("flags", Kind.FLAGS),
    Field("ts_event_ns", Kind.NS),
    Field("ts_received_ns", Kind.NS),
    Field("ts_published_ns", Kind.NS),
)
"""The first fields of every update."""

_ID = Field("id", Kind.COUNT)
_STREAM = Field("stream", Kind.U32)
_EPOCH = Field("epoch", Kind.COUNT)
_SEQ = Field("seq", Kind.COUNT)
_SCALE = Field("scale", Kind.SCALE)
_INSTRUMENT = Field("instrument", Kind.TEXT, text_max=INSTRUMENT_BYTES_MAX)
_CHANNEL = Field("channel", Kind.ENUM, m.Channel)
_DEPTH = Field("depth", Kind.U32)
_INTERVAL = Field("interval_ms", Kind.U32)
_STATE = Field("state", Kind.ENUM, m.BookState)
_REASON = Field("reason", Kind.ENUM, m.Reason)

BOOK = Shape(
    1,
    "book",
    m.BookUpdate,
    (
        *HEADER,
        Field("bids", Kind.LEVELS),
        Field("asks", Kind.LEVELS),
        _SCALE,
        Field("venue_checksum", Kind.CRC),
        Field("venue_depth", Kind.U32),
    ),
)
TRADES = Shape(2, "trades", m.TradesUpdate, (*HEADER, Field("trades", Kind.TRADES), _SCALE))
QUOTE = Shape(
    3,
    "bbo",
    m.QuoteUpdate,
    (
        *HEADER,
        Field("bid_ticks", Kind.TICKS),
        Field("bid_lots", Kind.LOTS),
        Field("ask_ticks", Kind.TICKS),
        Field("ask_lots", Kind.LOTS),
        _SCALE,
    ),
)
STATUS = Shape(4, "status", m.StatusUpdate, (*HEADER, _STATE, _REASON))
REPLIES = (
    Shape(5, "digest", m.Digest, (_STREAM, _EPOCH, _SEQ, Field("crc32", Kind.U32))),
    Shape(
        6,
        "notice",
        m.Notice,
        (
            Field("code", Kind.ENUM, m.NoticeCode),
            _STREAM,
            _EPOCH,
            Field("from_seq", Kind.COUNT),
            Field("to_seq", Kind.COUNT),
            Field("retry_after_ms", Kind.COUNT),
            _REASON,
        ),
    ),
    Shape(
        7,
        "welcome",
        m.Welcome,
        (
            Field("session_id", Kind.TEXT, text_max=TEXT_MAX),
            Field("heartbeat_interval_ms", Kind.U32),
            Field("command_bytes_max", Kind.U32),
            Field("subscriptions_max", Kind.U32),
        ),
    ),
    Shape(
        8,
        "subscribed",
        m.Subscribed,
        (
            _ID,
            _STREAM,
            _INSTRUMENT,
            _CHANNEL,
            _DEPTH,
            _INTERVAL,
            _EPOCH,
            _SEQ,
            _SCALE,
            Field("resumed", Kind.BOOL),
            _STATE,
        ),
    ),
    Shape(9, "unsubscribed", m.Unsubscribed, (_ID, _STREAM)),
    Shape(10, "pong", m.Pong, (_ID, Field("ts_server_ns", Kind.NS))),
    Shape(
        11,
        "error",
        m.Error,
        (_ID, Field("code", Kind.ENUM, m.ErrorCode), Field("message", Kind.TEXT, text_max=TEXT_MAX)),
    ),
    Shape(12, "restored", m.Restored, (_ID, Field("subscriptions", Kind.U32))),
)
UPDATES = (BOOK, TRADES, QUOTE, STATUS)
SERVER_SHAPES = (*UPDATES, *REPLIES)

COMMAND_SHAPES = (
    Shape(
        2,
        "subscribe",
        m.Subscribe,
        (
            _ID,
            _INSTRUMENT,
            _CHANNEL,
            _DEPTH,
            _INTERVAL,
            Field("resume", Kind.RESUME),
            Field("slow_policy", Kind.ENUM, m.SlowPolicy),
        ),
    ),
    Shape(3, "unsubscribe", m.Unsubscribe, (_ID, _STREAM)),
    Shape(4, "ping", m.Ping, (_ID,)),
    Shape(5, "auth", m.Auth, (_ID, Field("token", Kind.TEXT, text_max=TOKEN_MAX))),
    Shape(6, "restore", m.Restore, (_ID, Field("session_id", Kind.TEXT, text_max=TEXT_MAX))),
)

RANGES: dict[Kind, tuple[int, int]] = {
    Kind.U32: (0, U32_MAX),
    Kind.CRC: (0, U32_MAX),
    Kind.FLAGS: (0, U32_MAX),
    Kind.ENUM: (-(2**31), U32_MAX),
    Kind.COUNT: (0, COUNT_MAX),
    Kind.NS: (0, NS_MAX),
    Kind.TICKS: (-VALUE_MAX, VALUE_MAX),
    Kind.LOTS: (0, VALUE_MAX),
}

_E = TypeVar("_E", bound=IntEnum)


def integer(value: object, name: str, low: int, high: int) -> int:
    """``value`` if it is an integer (not a bool, not a float) in range, else `CodecError`."""
    if type(value) is not int:
        raise CodecError(f"{name} is not an integer")
    if not low <= value <= high:
        raise CodecError(f"{name} is not in {low}..{high}")
    return value


def text(value: object, name: str, length_max: int) -> str:
    """``value`` if it is text of bounded length, else `CodecError`."""
    if type(value) is not str:
        raise CodecError(f"{name} is not text")
    if len(value) > length_max:
        raise CodecError(f"{name} has {len(value)} characters, at most {length_max} are allowed")
    return value


def member(enum: type[_E], value: int, name: str, strict: bool) -> _E:
    """The enum's member; of an unknown number the 0 member, or `CodecError` if ``strict``."""
    try:
        return enum(value)
    except ValueError:
        if strict:
            raise CodecError(f"{name} {value} is unknown") from None
        return enum(0)


def scalar(field: Field, value: object, strict: bool) -> object:
    """A field that is one number, text or truth value, checked; enums become members and flags lose unknown bits."""
    kind, name = field.kind, field.name
    if kind is TEXT:
        return text(value, name, field.text_max)
    if kind is BOOL:
        if type(value) is not bool:
            raise CodecError(f"{name} is not true or false")
        return value
    if kind is CRC and value is None:
        return None
    number = integer(value, name, *RANGES[kind])
    if kind is ENUM:
        return member(field.enum, number, name, strict)
    return number & FLAGS_KNOWN if kind is FLAGS else number


def scale(price_exponent: object, size_exponent: object) -> m.Scale:
    """A scale with both exponents in range, else `CodecError`. Numbers are never counted coarser than units."""
    return m.Scale(
        integer(price_exponent, "price_exponent", EXPONENT_MIN, 0),
        integer(size_exponent, "size_exponent", EXPONENT_MIN, 0),
    )


def levels(found: m.Levels, name: str) -> m.Levels:
    """Levels whose prices strictly ascend and whose numbers are in range, else `CodecError`."""
    if not found:
        return found
    if len(found) > LEVELS_MAX:
        raise CodecError(f"{name} has {len(found)} levels, at most {LEVELS_MAX} are allowed")
    before = -VALUE_MAX - 1
    for price, lots in found:
        if not before < price <= VALUE_MAX:
            raise CodecError(f"{name}: prices do not ascend or are out of range")
        if not 0 <= lots <= VALUE_MAX:
            raise CodecError(f"{name}: a size is out of range")
        before = price
    return found


def check_chain(seq: int, prev_seq: int) -> None:
    """`CodecError` if an update claims to follow one after itself."""
    if prev_seq > seq:
        raise CodecError(f"prev_seq {prev_seq} is after seq {seq}")
