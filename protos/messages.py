"""The messages, as Python values. The meaning and unit of each field is in ``depthcast.proto``.

Books are lists of ``(ticks, lots)`` with prices ascending on both sides; 0 lots remove a level.
"""

from dataclasses import dataclass, field
from enum import IntEnum, IntFlag

Level = tuple[int, int]
"""(ticks, lots)."""
Levels = list[Level]

DEPTHS = (1, 10, 50, 200, 0)
"""Book depths a client may ask for; 0 is the full book."""
INTERVALS_MS = (0, 50, 100, 250, 1000)
"""Book intervals a client may ask for; 0 is every update."""


class Flag(IntFlag):
    NONE = 0
    SNAPSHOT = 1
    CONFLATED = 2
    CROSSED = 4
    STALE = 8
    DERIVED = 16
    GAPPED = 32


class Side(IntEnum):
    UNKNOWN = 0
    BUY = 1
    SELL = 2


class BookState(IntEnum):
    WAITING = 0
    SYNCED = 1
    GAPPED = 2
    STALE = 3


class Reason(IntEnum):
    NONE = 0
    SNAPSHOT = 1
    SEQUENCE_GAP = 2
    CHECKSUM_MISMATCH = 3
    BBO_MISMATCH = 4
    VENUE_RESET = 5
    FEED_GAP = 6
    FEED_DISCONNECTED = 7
    SCALE_CHANGE = 8
    BUFFER_OVERFLOW = 9
    OFFSETS_LOST = 10
    INVALID_BOOK = 11


class NoticeCode(IntEnum):
    UNKNOWN = 0
    SLOW = 1
    SKIPPED = 2
    GAP = 3
    STALE = 4
    RECOVERED = 5
    SHUTDOWN = 6
    AUTH_EXPIRING = 7


class Channel(IntEnum):
    UNKNOWN = 0
    BOOK = 1
    BBO = 2
    TRADES = 3
    RAW = 4
    STATUS = 5


class ErrorCode(IntEnum):
    UNKNOWN = 0
    BAD_COMMAND = 1
    UNKNOWN_INSTRUMENT = 2
    UNKNOWN_CHANNEL = 3
    BAD_DEPTH = 4
    BAD_INTERVAL = 5
    LIMIT = 6
    NOT_SUBSCRIBED = 7
    NOT_READY = 8
    FORBIDDEN = 9


class SlowPolicy(IntEnum):
    CLOSE = 0
    SKIP = 1


class CloseCode(IntEnum):
    """WebSocket close codes (RFC 6455 section 7.4). The range tells the client what to do.

    1001, 1012, 1013: reconnect after the hinted, jittered delay, and resume.
    40xx: reconnect and resume at once, jittered. 44xx: do not reconnect before the cause is mended.
    """

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    INVALID_PAYLOAD = 1007
    POLICY_VIOLATION = 1008
    MESSAGE_TOO_BIG = 1009
    INTERNAL_ERROR = 1011
    SERVICE_RESTART = 1012
    TRY_AGAIN_LATER = 1013
    SLOW_CONSUMER = 4008
    HEARTBEAT_TIMEOUT = 4009
    BAD_COMMANDS = 4400
    UNAUTHORIZED = 4401
    FORBIDDEN = 4403
    TOO_MANY = 4429


@dataclass(slots=True, frozen=True)
class Scale:
    """price = ticks * 10**price_exponent, size = lots * 10**size_exponent."""

    price_exponent: int
    size_exponent: int


@dataclass(slots=True)
class BookUpdate:
    stream: int = 0
    epoch: int = 0
    seq: int = 0
    prev_seq: int = 0
    flags: int = 0
    ts_event_ns: int = 0
    ts_received_ns: int = 0
    ts_published_ns: int = 0
    bids: Levels = field(default_factory=list)
    asks: Levels = field(default_factory=list)
    scale: Scale | None = None
    venue_checksum: int | None = None
    venue_depth: int = 0


@dataclass(slots=True)
class Trade:
    ticks: int
    lots: int
    side: Side = Side.UNKNOWN
    trade_id: str = ""
    ts_event_ns: int = 0


@dataclass(slots=True)
class TradesUpdate:
    stream: int = 0
    epoch: int = 0
    seq: int = 0
    prev_seq: int = 0
    flags: int = 0
    ts_event_ns: int = 0
    ts_received_ns: int = 0
    ts_published_ns: int = 0
    trades: list[Trade] = field(default_factory=list)
    scale: Scale | None = None


@dataclass(slots=True)
class QuoteUpdate:
    stream: int = 0
    epoch: int = 0
    seq: int = 0
    prev_seq: int = 0
    flags: int = 0
    ts_event_ns: int = 0
    ts_received_ns: int = 0
    ts_published_ns: int = 0
    bid_ticks: int = 0
    bid_lots: int = 0
    ask_ticks: int = 0
    ask_lots: int = 0
    scale: Scale | None = None


@dataclass(slots=True)
class StatusUpdate:
    stream: int = 0
    epoch: int = 0
    seq: int = 0
    prev_seq: int = 0
    flags: int = 0
    ts_event_ns: int = 0
    ts_received_ns: int = 0
    ts_published_ns: int = 0
    state: BookState = BookState.WAITING
    reason: Reason = Reason.NONE


@dataclass(slots=True)
class Digest:
    stream: int
    epoch: int
    seq: int
    crc32: int


@dataclass(slots=True)
class Notice:
    code: NoticeCode
    stream: int = 0
    epoch: int = 0
    from_seq: int = 0
    to_seq: int = 0
    retry_after_ms: int = 0
    reason: Reason = Reason.NONE


@dataclass(slots=True)
class Welcome:
    session_id: str
    heartbeat_interval_ms: int
    command_bytes_max: int
    subscriptions_max: int


@dataclass(slots=True)
class Subscribed:
    id: int
    stream: int
    instrument: str
    channel: Channel
    depth: int = 0
    interval_ms: int = 0
    epoch: int = 0
    seq: int = 0
    scale: Scale | None = None
    resumed: bool = False
    state: BookState = BookState.WAITING


@dataclass(slots=True)
class Unsubscribed:
    id: int
    stream: int


@dataclass(slots=True)
class Pong:
    id: int
    ts_server_ns: int


@dataclass(slots=True)
class Error:
    id: int
    code: ErrorCode
    message: str


@dataclass(slots=True)
class Restored:
    id: int
    subscriptions: int


MarketMessage = BookUpdate | TradesUpdate | QuoteUpdate | StatusUpdate
"""What the market topic carries."""
ServerMessage = MarketMessage | Digest | Notice | Welcome | Subscribed | Unsubscribed | Pong | Error | Restored


@dataclass(slots=True, frozen=True)
class Resume:
    epoch: int
    seq: int


@dataclass(slots=True)
class Subscribe:
    id: int
    instrument: str
    channel: Channel
    depth: int = 0
    interval_ms: int = 0
    resume: Resume | None = None
    slow_policy: SlowPolicy = SlowPolicy.CLOSE


@dataclass(slots=True)
class Unsubscribe:
    id: int
    stream: int


@dataclass(slots=True)
class Ping:
    id: int


@dataclass(slots=True)
class Auth:
    id: int
    token: str


@dataclass(slots=True)
class Restore:
    id: int
    session_id: str


Command = Subscribe | Unsubscribe | Ping | Auth | Restore


@dataclass(slots=True)
class InstrumentState:
    """Value of a `snapshots` record keyed by instrument."""

    ticks_offset: int
    book: BookUpdate | None = None
    ingest_state: bytes = b""
    status: StatusUpdate | None = None
    bbo: QuoteUpdate | None = None
    trades: TradesUpdate | None = None


@dataclass(slots=True)
class Checkpoint:
    """Value of a `snapshots` record keyed ``checkpoint/<partition>``."""

    ticks_offset: int
    market_offset: int
