"""The client protocol, as a table.

The rules:

1. `Session.open` first: Welcome is the first message on every connection.
2. Every command gets exactly one reply with its id: what it asked for, or a typed Error that says what to do.
3. A fault costs a reply, never the connection; the tenth within minutes (`Limits.bad_commands_max`) closes it: 4400, or
   4429 when the tenth was a command over the rate.
4. The server pings every heartbeat interval; after `Limits.pongs_missed_max` intervals without any sign of life, 4009.
5. ANONYMOUS (no token yet) takes `auth` and `ping`. OPEN takes everything. DRAINING (SHUTDOWN was announced) takes no
   new subscription. CLOSED takes nothing.
6. `auth` is answered by a Pong. A wrong token costs an ANONYMOUS client the connection (4401, 4403), others a fault.
   Without authentication it has nothing to prove.
7. No token within `Limits.auth_wait_ms`: 4401. Before one expires, AUTH_EXPIRING; if no other comes, 4401.

Pure: what the peer sends never raises, it gives effects, which the shell carries out in order. Time is ``now_ns``.
"""

from collections.abc import Callable, Collection, Sequence
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
    Restore,
    Restored,
    SlowPolicy,
    Subscribe,
    Unsubscribe,
    Welcome,
)
from streamer.access import EVERYTHING, NEVER_NS, NOTHING, Access, Refusal
from streamer.bucket import Bucket
from streamer.effects import DoAdmit, DoClose, DoPing, DoRestore, DoSubscribe, DoUnsubscribe, Effect, Reply
from streamer.limits import Limits
from streamer.streams import StreamKey, check_key

_MS = 1_000_000
_S = 1_000_000_000


class State(Enum):
    ANONYMOUS = "anonymous"
    OPEN = "open"
    DRAINING = "draining"
    CLOSED = "closed"


class Catalog(Protocol):
    """What the session asks the hub."""

    ready: bool

    def knows(self, instrument: str) -> bool: ...


class Door(Protocol):
    """Who checks tokens."""

    def check(self, token: str, now_ns: int) -> Access | Refusal: ...


class Session:
    """One connection's side of the protocol."""

    __slots__ = (
        "_alive_ns",
        "_commands",
        "_deadline_ns",
        "_faults",
        "_pinged_ns",
        "_restored",
        "_warning_ns",
        "access",
        "catalog",
        "door",
        "id",
        "limits",
        "state",
        "streams",
    )

    def __init__(
        self,
        session_id: str,
        limits: Limits,
        catalog: Catalog,
        streams: Collection[int],
        now_ns: int,
        door: Door | None = None,
        access: Access | None = None,
    ) -> None:
        """
        Args:
            streams: Ids of the streams the connection is subscribed to, as they change: ``outbox.lanes``.
            door: None: no authentication.
            access: What the handshake proved; None: nothing.
        """
        self.id = session_id
        self.state = State.OPEN
        self.limits = limits
        self.catalog = catalog
        self.streams = streams
        self.door = door
        self.access = NOTHING
        self._commands = _bucket(limits, 0)
        if door is not None and access is None:
            self.state = State.ANONYMOUS
            self._warning_ns, self._deadline_ns = NEVER_NS, now_ns + limits.auth_wait_ms * _MS
        else:
            self.admit(access or EVERYTHING, now_ns)
        self._faults = Bucket(limits.bad_commands_max - 1, limits.bad_command_forgiven_ms * _MS)
        self._alive_ns = now_ns
        self._pinged_ns = now_ns
        self._restored = False

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
        outcome = _TABLE[self.state][type(command)](self, command, now_ns)
        if isinstance(outcome, Error):
            return self._fault(outcome, CloseCode.BAD_COMMANDS, now_ns)
        return outcome if isinstance(outcome, list) else [outcome]

    def restored(self, command_id: int, wanted: Sequence[tuple[StreamKey, SlowPolicy]]) -> list[Effect]:
        """What the session asked for by `restore` had; what it may not have (any more) is left out."""
        if self.state is not State.OPEN:
            return [Reply(Error(command_id, ErrorCode.NOT_READY, "reconnect, and restore there"))]
        room = max(0, self.limits.subscriptions_max - len(self.streams))
        allowed = [one for one in wanted if self._may_have(one[0])][:room]
        subscribes = [DoSubscribe(0, key, None, slow_policy) for key, slow_policy in allowed]
        return [Reply(Restored(command_id, len(allowed))), *subscribes]

    def may_restore(self) -> bool:
        """Once: it is one command that costs the server as much as a thousand."""
        first, self._restored = not self._restored, True
        return first

    def _may_have(self, key: StreamKey) -> bool:
        return not (check_key(key) or self.access.refuses(key)) and self.catalog.knows(key.instrument)

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
            return self.close(CloseCode.HEARTBEAT_TIMEOUT, "no answer to pings")
        if now_ns - self._pinged_ns >= interval_ns:
            self._pinged_ns = now_ns
            return [DoPing()]
        return []

    @property
    def due_ns(self) -> int:
        """When `expire` has something to say; `NEVER_NS` without authentication."""
        return min(self._warning_ns, self._deadline_ns)

    def expire(self, now_ns: int) -> list[Effect]:
        """Time passes; to be called at `due_ns`."""
        if self.state is State.CLOSED:
            return []
        if now_ns >= self._deadline_ns:
            late = f"no token within {self.limits.auth_wait_ms / 1e3:g} s"
            return self.close(CloseCode.UNAUTHORIZED, late if self.access is NOTHING else "the token has expired")
        if now_ns < self._warning_ns:
            return []
        self._warning_ns = NEVER_NS
        return [Reply(Notice(NoticeCode.AUTH_EXPIRING, retry_after_ms=(self._deadline_ns - now_ns) // _MS))]

    def drain(self, retry_after_ms: int) -> list[Effect]:
        """This pod stops: tell the client when to be back elsewhere. The shell closes it later with 1012."""
        if self.state not in (State.ANONYMOUS, State.OPEN):
            return []
        self.state = State.DRAINING
        return [Reply(Notice(NoticeCode.SHUTDOWN, retry_after_ms=retry_after_ms))]

    def closed(self) -> None:
        """The connection is gone, whoever closed it."""
        self.state = State.CLOSED

    def admit(self, access: Access, now_ns: int) -> None:
        """The client showed a valid token."""
        if self.state is State.ANONYMOUS:
            self.state = State.OPEN
        if access.commands_per_s != self.access.commands_per_s:  # else to show a token again would fill it
            self._commands = _bucket(self.limits, access.commands_per_s)
        self.access = access
        self._deadline_ns = access.expires_ns
        # of a token that ends soon anyway, half of its time: a warning at once would be none
        ahead_ns = min(self.limits.auth_warning_ms * _MS, (access.expires_ns - now_ns) // 2)
        self._warning_ns = access.expires_ns - ahead_ns if access.expires_ns < NEVER_NS else NEVER_NS

    def close(self, code: CloseCode, reason: str) -> list[Effect]:
        """End it from our side."""
        self.state = State.CLOSED
        return [DoClose(code, reason)]

    def _fault(self, error: Error, code: CloseCode, now_ns: int) -> list[Effect]:
        if self._faults.take(now_ns):
            return [Reply(error)]
        reason = "too many commands" if code is CloseCode.TOO_MANY else "too many bad commands"
        return [Reply(error), *self.close(code, reason)]


def _bucket(limits: Limits, per_s: int) -> Bucket:
    """Of the limits' size, or as much larger or smaller as the rate is."""
    burst = limits.commands_burst * per_s // limits.commands_per_s if per_s else limits.commands_burst
    return Bucket(max(burst, 1), _S // (per_s or limits.commands_per_s))


# ---- the table's actions: effects, or the Error that the command deserves

Outcome = Effect | list[Effect] | Error


def _subscribe(session: Session, command: Subscribe, _now_ns: int) -> Outcome:
    if not session.catalog.ready:
        return Error(command.id, ErrorCode.NOT_READY, "the server is catching up; try again in a second")
    key = StreamKey(command.instrument, command.channel, command.depth, command.interval_ms)
    problem = check_key(key)
    if problem is not None:
        return Error(command.id, *problem)
    if reason := session.access.refuses(key):  # before the next one: nobody learns what there is by asking
        return Error(command.id, ErrorCode.FORBIDDEN, reason)
    if not session.catalog.knows(command.instrument):
        name = command.instrument[:64]
        return Error(command.id, ErrorCode.UNKNOWN_INSTRUMENT, f"no instrument {name!r}; GET /v1/instruments lists all")
    if len(session.streams) >= session.limits.subscriptions_max:
        message = f"at most {session.limits.subscriptions_max} subscriptions; unsubscribe from one first"
        return Error(command.id, ErrorCode.LIMIT, message)
    return DoSubscribe(command.id, key, command.resume, command.slow_policy)


def _refuse_subscribe(_session: Session, command: Subscribe | Restore, _now_ns: int) -> Outcome:
    return Error(command.id, ErrorCode.NOT_READY, "the server is shutting down; reconnect as its notice says")


def _unsubscribe(session: Session, command: Unsubscribe, _now_ns: int) -> Outcome:
    if command.stream not in session.streams:
        return Error(command.id, ErrorCode.NOT_SUBSCRIBED, f"not subscribed to stream {command.stream}")
    return DoUnsubscribe(command.id, command.stream)


def _restore(session: Session, command: Restore, _now_ns: int) -> Outcome:
    if not session.catalog.ready:
        return Error(command.id, ErrorCode.NOT_READY, "the server is catching up; try again in a second")
    if not session.may_restore():
        return Error(command.id, ErrorCode.LIMIT, "one restore for each connection; subscribe to what is missing")
    return DoRestore(command.id, command.session_id)


def _ask_for_token(_session: Session, command: Subscribe | Unsubscribe | Restore, _now_ns: int) -> Outcome:
    return Error(command.id, ErrorCode.FORBIDDEN, "send `auth` with a token first")


def _pong(_session: Session, command: Ping | Auth, now_ns: int) -> Outcome:
    return Reply(Pong(command.id, now_ns))


def _auth(session: Session, command: Auth, now_ns: int) -> Outcome:
    if session.door is None:
        return _pong(session, command, now_ns)
    verdict = session.door.check(command.token, now_ns)
    unproven = session.access is NOTHING
    if isinstance(verdict, Refusal):
        error = Error(command.id, ErrorCode.FORBIDDEN, verdict.text)
        return [Reply(error), *session.close(verdict.code, verdict.text)] if unproven else error
    if not unproven and verdict.subject != session.access.subject:
        return Error(command.id, ErrorCode.FORBIDDEN, "this connection belongs to another subject; open a new one")
    session.admit(verdict, now_ns)
    return [Reply(Pong(command.id, now_ns)), DoAdmit(verdict)]


_Action = Callable[[Session, Any, int], Outcome]

_TABLE: dict[State, dict[type, _Action]] = {
    State.ANONYMOUS: {
        Subscribe: _ask_for_token,
        Restore: _ask_for_token,
        Unsubscribe: _ask_for_token,
        Ping: _pong,
        Auth: _auth,
    },
    State.OPEN: {
        Subscribe: _subscribe,
        Restore: _restore,
        Unsubscribe: _unsubscribe,
        Ping: _pong,
        Auth: _auth,
    },
    State.DRAINING: {
        Subscribe: _refuse_subscribe,
        Restore: _refuse_subscribe,
        Unsubscribe: _unsubscribe,
        Ping: _pong,
        Auth: _auth,
    },
}
"""What each command does in each state. CLOSED has no row: nothing is received there."""
