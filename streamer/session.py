"""The client protocol, as a table.

The rules:

1. `Session.open` first: Welcome is the first message on every connection.
2. Every command gets exactly one reply with its id: what it asked for, or a typed Error that says what to do.
3. A fault costs a reply, never the connection; the tenth within minutes (`Limits.bad_commands_max`) closes it: 4400, or
   4429 when the tenth was a command over the rate.
4. The server pings every heartbeat interval; after `Limits.pongs_missed_max` intervals without any sign of life, 4009.
5. OPEN takes everything. DRAINING (SHUTDOWN was announced) takes no new subscription. CLOSED takes nothing.
6. Without authentication (`auth: none`) an `auth` command has nothing to prove, and is answered by a Pong.

Pure: what the peer sends never raises, it gives effects, which the shell carries out in order. Time is ``now_ns``.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from protos.messages import (
    Auth,
    CloseCode,
    Command,
    Error,
    ErrorCode,
    Notice,
    NoticeCode,
    Ping,
    Pong,
    Resume,
    ServerMessage,
    SlowPolicy,
    Subscribe,
    Unsubscribe,
    Welcome,
)
from streamer.limits import Limits
from streamer.streams import StreamKey, check_key

_MS = 1_000_000
_S = 1_000_000_000


class State(Enum):
    OPEN = "open"
    DRAINING = "draining"
    CLOSED = "closed"


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
class DoPing:
    """Send a WebSocket ping."""


@dataclass(slots=True)
class DoClose:
    """Close the connection; the last effect of a session."""

    code: CloseCode
    reason: str


Effect = Reply | DoSubscribe | DoUnsubscribe | DoPing | DoClose


class Catalog(Protocol):
    """What the session asks the hub."""

    ready: bool

    def knows(self, instrument: str) -> bool: ...


class Bucket:
    """A rate with a burst, in one integer (GCRA, ITU-T I.371): the time when the bucket would be empty."""

    __slots__ = ("_empty_ns", "_period_ns", "_span_ns")

    def __init__(self, burst: int, period_ns: int) -> None:
        self._period_ns = period_ns
        self._span_ns = burst * period_ns
        self._empty_ns = 0

    def take(self, now_ns: int) -> bool:
        """One more. False: there were ``burst`` already, and no period has passed since."""
        empty_ns = max(self._empty_ns, now_ns) + self._period_ns
        if empty_ns - now_ns > self._span_ns:
            return False
        self._empty_ns = empty_ns
        return True


class Session:
    """One connection's side of the protocol."""

    __slots__ = ("_alive_ns", "_commands", "_faults", "_pinged_ns", "catalog", "id", "limits", "state", "streams")

    def __init__(
        self, session_id: str, limits: Limits, catalog: Catalog, streams: Collection[int], now_ns: int
    ) -> None:
        """
        Args:
            streams: Ids of the streams the connection is subscribed to, as they change: ``outbox.lanes``.
        """
        self.id = session_id
        self.state = State.OPEN
        self.limits = limits
        self.catalog = catalog
        self.streams = streams
        self._commands = Bucket(limits.commands_burst, _S // limits.commands_per_s)
        self._faults = Bucket(limits.bad_commands_max - 1, limits.bad_command_forgiven_ms * _MS)
        self._alive_ns = now_ns
        self._pinged_ns = now_ns

    def open(self) -> list[Effect]:
        """The connection is established."""
        limits = self.limits
        welcome = Welcome(self.id, limits.heartbeat_interval_ms, limits.command_bytes_max, limits.subscriptions_max)
        return [Reply(welcome)]

    def receive(self, command: Command, now_ns: int) -> list[Effect]:
        """A command of the client."""
        self._alive_ns = now_ns
        if self.state is State.CLOSED:
            return []
        if not self._commands.take(now_ns):
            message = f"too many commands; at most {self.limits.commands_per_s} a second"
            return self._fault(Error(command.id, ErrorCode.LIMIT, message), CloseCode.TOO_MANY, now_ns)
        effect = _TABLE[self.state][type(command)](self, command, now_ns)
        if isinstance(effect, Error):
            return self._fault(effect, CloseCode.BAD_COMMANDS, now_ns)
        return [effect]

    def bad_command(
        self, now_ns: int, message: str = "the command cannot be decoded", command_id: int = 0
    ) -> list[Effect]:
        """The client sent what is no command, or too large a one."""
        self._alive_ns = now_ns
        if self.state is State.CLOSED:
            return []
        return self._fault(Error(command_id, ErrorCode.BAD_COMMAND, message), CloseCode.BAD_COMMANDS, now_ns)

    def pong(self, now_ns: int) -> None:
        """The client answered a ping, or showed otherwise that it lives."""
        self._alive_ns = now_ns

    def tick(self, now_ns: int) -> list[Effect]:
        """Time passes; to be called once or more per heartbeat interval."""
        if self.state is State.CLOSED:
            return []
        interval_ns = self.limits.heartbeat_interval_ms * _MS
        if now_ns - self._alive_ns > (self.limits.pongs_missed_max + 1) * interval_ns:
            return self._close(CloseCode.HEARTBEAT_TIMEOUT, "no answer to pings")
        if now_ns - self._pinged_ns >= interval_ns:
            self._pinged_ns = now_ns
            return [DoPing()]
        return []

    def drain(self, retry_after_ms: int) -> list[Effect]:
        """This pod stops: tell the client when to be back elsewhere. The shell closes it later with 1012."""
        if self.state is not State.OPEN:
            return []
        self.state = State.DRAINING
        return [Reply(Notice(NoticeCode.SHUTDOWN, retry_after_ms=retry_after_ms))]

    def closed(self) -> None:
        """The connection is gone, whoever closed it."""
        self.state = State.CLOSED

    def _close(self, code: CloseCode, reason: str) -> list[Effect]:
        self.state = State.CLOSED
        return [DoClose(code, reason)]

    def _fault(self, error: Error, code: CloseCode, now_ns: int) -> list[Effect]:
        if self._faults.take(now_ns):
            return [Reply(error)]
        reason = "too many commands" if code is CloseCode.TOO_MANY else "too many bad commands"
        return [Reply(error), *self._close(code, reason)]


# ---- the table's actions: one effect, or the Error that the command deserves


def _subscribe(session: Session, command: Subscribe, _now_ns: int) -> Effect | Error:
    if not session.catalog.ready:
        return Error(command.id, ErrorCode.NOT_READY, "the server is catching up; try again in a second")
    key = StreamKey(command.instrument, command.channel, command.depth, command.interval_ms)
    problem = check_key(key)
    if problem is not None:
        return Error(command.id, *problem)
    if not session.catalog.knows(command.instrument):
        name = command.instrument[:64]
        return Error(command.id, ErrorCode.UNKNOWN_INSTRUMENT, f"no instrument {name!r}; GET /v1/instruments lists all")
    if len(session.streams) >= session.limits.subscriptions_max:
        message = f"at most {session.limits.subscriptions_max} subscriptions; unsubscribe from one first"
        return Error(command.id, ErrorCode.LIMIT, message)
    return DoSubscribe(command.id, key, command.resume, command.slow_policy)


def _refuse_subscribe(_session: Session, command: Subscribe, _now_ns: int) -> Effect | Error:
    return Error(command.id, ErrorCode.NOT_READY, "the server is shutting down; reconnect as its notice says")


def _unsubscribe(session: Session, command: Unsubscribe, _now_ns: int) -> Effect | Error:
    if command.stream not in session.streams:
        return Error(command.id, ErrorCode.NOT_SUBSCRIBED, f"not subscribed to stream {command.stream}")
    return DoUnsubscribe(command.id, command.stream)


def _pong(_session: Session, command: Ping | Auth, now_ns: int) -> Effect | Error:
    return Reply(Pong(command.id, now_ns))


_Action = Callable[[Session, Any, int], Effect | Error]

_TABLE: dict[State, dict[type, _Action]] = {
    State.OPEN: {
        Subscribe: _subscribe,
        Unsubscribe: _unsubscribe,
        Ping: _pong,
        Auth: _pong,
    },
    State.DRAINING: {
        Subscribe: _refuse_subscribe,
        Unsubscribe: _unsubscribe,
        Ping: _pong,
        Auth: _pong,
    },
}
"""What each command does in each state. CLOSED has no row: nothing is received there."""
