"""What a session tells its shell to do, in order."""

from dataclasses import dataclass

from protos.messages import CloseCode, Resume, ServerMessage, SlowPolicy
from streamer.access import Access
from streamer.streams import StreamKey


@dataclass(slots=True)
class Reply:
    """Queue a message: ``outbox.reply(message)``."""

    message: ServerMessage


@dataclass(slots=True)
class DoSubscribe:
    """``hub.subscribe(outbox, key, resume, slow_policy, now_ns, id)``, which queues the reply."""

    id: int
    key: StreamKey
    resume: Resume | None
    slow_policy: SlowPolicy


@dataclass(slots=True)
class DoUnsubscribe:
    """``hub.unsubscribe(outbox, stream, id)``, which queues the reply."""

    id: int
    stream: int


@dataclass(slots=True)
class DoRestore:
    """Look up what a session was subscribed to; then `Session.restored`, or an Error in reply to ``id``."""

    id: int
    session_id: str


@dataclass(slots=True)
class DoAdmit:
    """The client showed a token: what it may have from now on."""

    access: Access


@dataclass(slots=True)
class DoPing:
    """Send a WebSocket ping."""


@dataclass(slots=True)
class DoClose:
    """Close the connection; the last effect of a session."""

    code: CloseCode
    reason: str


Effect = Reply | DoSubscribe | DoUnsubscribe | DoRestore | DoAdmit | DoPing | DoClose
