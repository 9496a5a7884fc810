"""What a client reports, and how it fails.

Exception
└── ClientError
    ├── FrameError       the server sent what no server may send; the connection is of no use
    └── TerminalError    no reconnect will help; the message says why
"""

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from protos.messages import Error, MarketMessage, Notice, Resume, Welcome

if TYPE_CHECKING:
    from services.client.subscription import Subscription


class ClientError(Exception):
    """Base of all that the client raises."""


class FrameError(ClientError):
    """A frame that does not decode, or that no server may send. Close the connection with 1002 and open another."""


class TerminalError(ClientError):
    """The server's last word. Reconnecting would not help."""


class StreamState(Enum):
    """How far a stream can be trusted. Only LIVE is the market now."""

    WAITING = "waiting"  # nothing received yet
    LIVE = "live"  # continuity proven
    GAPPED = "gapped"  # an update is missing; waits for a snapshot
    STALE = "stale"  # right at its sequence, but the source or the connection is silent


@dataclass(slots=True, frozen=True)
class Opened:
    """The server greeted. Subscriptions are being renewed."""

    welcome: Welcome


@dataclass(slots=True, frozen=True)
class Disconnected:
    """The connection is lost; the next attempt is in ``delay_ms``."""

    why: str
    delay_ms: int


@dataclass(slots=True, frozen=True)
class Started:
    """A subscription is accepted. ``resumed``: it continues where it was, nothing is sent twice."""

    subscription: "Subscription"
    resumed: bool


@dataclass(slots=True, frozen=True)
class Refused:
    """A command was refused. With a subscription: that one is over."""

    subscription: "Subscription | None"
    error: Error


@dataclass(slots=True, frozen=True)
class Ended:
    """An unsubscription is confirmed."""

    subscription: "Subscription"


@dataclass(slots=True, frozen=True)
class Updated:
    """An update was applied: while this event is handled, the subscription's book is the book at ``message.seq``."""

    subscription: "Subscription"
    message: MarketMessage


@dataclass(slots=True, frozen=True)
class StateChanged:
    """The stream can be trusted more, or less, than before."""

    subscription: "Subscription"
    state: StreamState
    why: str


@dataclass(slots=True, frozen=True)
class BrokenChain:
    """An update does not continue what we have, unannounced. Books: not applied, a snapshot is asked for.

    Trades and quotes: it was taken, what lies between ``have`` and its ``prev_seq`` is lost.
    """

    subscription: "Subscription"
    have: Resume | None
    message: MarketMessage


@dataclass(slots=True, frozen=True)
class DigestChecked:
    """The server's digest against our book at exactly that sequence. Failed: the book is dropped and asked for anew."""

    subscription: "Subscription"
    seq: int
    passed: bool


@dataclass(slots=True, frozen=True)
class Noticed:
    """The server announces something, of one stream or (None) of the connection."""

    subscription: "Subscription | None"
    notice: Notice


@dataclass(slots=True, frozen=True)
class Ponged:
    """Answer to `ClientCore.ping`. ``clock_offset_ns``: the server's clock minus ours, right to half the round trip."""

    round_trip_ns: int
    clock_offset_ns: int


StreamEvent = Updated | StateChanged | BrokenChain | DigestChecked | Noticed
Event = Opened | Disconnected | Started | Refused | Ended | Ponged | StreamEvent
