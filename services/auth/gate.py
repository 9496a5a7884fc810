"""The gate of a streamer: who comes in, for how long, and who is thrown out.

Nothing here makes a connection wait for another machine, but for redeeming a ticket. Tokens are checked with keys that
are here, against revocations that are here; what the streamers share is written and read beside the connections.
"""

import asyncio
import heapq
import itertools
import secrets
from collections.abc import Awaitable, Callable
from hashlib import sha256
from typing import Protocol, TypeVar

import orjson

from protos.messages import CloseCode, Error, ErrorCode
from services.auth.grants import granted_access
from services.auth.presence import Presence
from services.auth.revocations import Revocations, keys_of
from services.auth.sessions import Sessions, Wanted
from services.auth.setup import check_exposure, make_signer, open_store, parse_origins, parse_proxies
from services.auth.store import Store, StoreDown
from services.auth.tokens import TokenError
from services.config import Settings
from services.metrics import Metrics
from services.streamer.clock import Clock
from streamer.access import NEVER_NS, Access, Refusal
from streamer.bucket import Bucket
from streamer.session import Session, State

TURN_S = 0.1
"""Between two looks at what is due: a token ends, and a revoked connection too, at most this much late."""
SLICE = 200
"""Connections closed in one turn of the event loop."""
TICKET_S = 30.0
TICKETS_PER_S, TICKETS_BURST = 10, 100
"""Of one subject: tickets that nobody uses fill the store."""
RATES_MAX = 10_000
_OUTCOMES = {CloseCode.UNAUTHORIZED: "unauthorized", CloseCode.FORBIDDEN: "forbidden", CloseCode.TOO_MANY: "too_many"}

T = TypeVar("T")


class Guest(Protocol):
    """A stream connection, as the gate sees it."""

    session: Session

    def close(self, code: CloseCode, reason: str) -> None: ...

    def turn_away(self) -> None: ...

    def restored(self, command_id: int, found: list[Wanted] | Error) -> None:
        """What `Gate.restore` found."""
        ...

    def expire(self, now_ns: int) -> None:
        """Do what `Session.expire` says."""
        ...

    def kept(self) -> str:
        """What it is subscribed to, as `sessions.dump` writes it; "" when that cannot be told any more."""
        ...


class Gate:
    """
    Args:
        store: What streamers share; None: as the settings say.

    Raises:
        UserError: The settings do not add up.
    """

    def __init__(self, settings: Settings, metrics: Metrics, clock: Clock, store: Store | None = None) -> None:
        check_exposure(settings)
        self.metrics = metrics
        self.signer = make_signer(settings)
        self.door = None if self.signer is None else self
        self.origins, self.proxies = parse_origins(settings), parse_proxies(settings)
        self.store = store or open_store(settings, metrics)
        self.sessions = Sessions(self.store, self._counted("sessions"))
        self.presence: Presence[Guest] = Presence(
            self.store, settings.connections_per_token_max, self._counted("connections")
        )
        self.revocations = Revocations(
            self.store, self._revoke, self._counted("revocations"), lambda: clock.now_ns() / 1e9
        )
        self._clock = clock
        self._due: dict[Guest, int] = {}
        self._counted_as: dict[Guest, Access] = {}
        self._restoring: set[asyncio.Task[None]] = set()
        self._agenda: list[tuple[int, int, Guest]] = []
        self._entry = itertools.count()
        self._indexed: dict[str, dict[Guest, None]] = {}  # what can be revoked -> its connections
        self._condemned: list[Guest] = []
        self._ticket_rates: dict[str, Bucket] = {}
        metrics.revocations.read = lambda: len(self.revocations)
        metrics.revocations_age.read = self.revocations.age_s

    def _counted(self, use: str) -> Callable[[], None]:
        return self.metrics.store_failures.labels(use).inc

    @property
    def now_s(self) -> float:
        return self._clock.now_ns() / 1e9

    # ---- proofs

    def check(self, token: str, now_ns: int) -> Access | Refusal:
        """What a token grants now."""
        assert self.signer is not None  # noqa: S101 - nobody asks without authentication
        return self._judged(self.signer.access(token, now_ns / 1e9))

    def _judged(self, verdict: Access | Refusal) -> Access | Refusal:
        if isinstance(verdict, Access) and self.revocations.revokes(verdict):
            verdict = Refusal(CloseCode.FORBIDDEN, "the token was revoked")
        outcome = _OUTCOMES[verdict.code] if isinstance(verdict, Refusal) else "accepted"
        self.metrics.auth.labels(outcome).inc()
        return verdict

    async def ticket_for(self, token: str) -> str | Refusal:
        """A ticket: what the token grants, once, within seconds.

        Raises:
            StoreDown: It cannot be kept.
        """
        assert self.signer is not None  # noqa: S101 - nobody asks without authentication
        try:
            claims = self.signer.claims(token, self.now_s)
        except TokenError:
            claims = {}
        verdict = self.check(token, self._clock.now_ns())
        if isinstance(verdict, Refusal):
            return verdict
        if not self._ticket_rate(verdict.subject).take(self._clock.now_ns()):
            return Refusal(CloseCode.TOO_MANY, f"at most {TICKETS_PER_S} tickets a second")
        ticket = secrets.token_urlsafe(32)
        await self._tickets(self.store.put_ticket(_hash(ticket), orjson.dumps(claims).decode(), TICKET_S))
        self.metrics.tickets_issued.inc()
        return ticket

    def _ticket_rate(self, subject: str) -> Bucket:
        if len(self._ticket_rates) >= RATES_MAX:
            self._ticket_rates.clear()
        return self._ticket_rates.setdefault(subject, Bucket(TICKETS_BURST, 1_000_000_000 // TICKETS_PER_S))

    async def redeem(self, ticket: str) -> Access | Refusal:
        """What a ticket grants; the second who shows it gets nothing.

        Raises:
            StoreDown: Nobody can say, so nobody comes in.
        """
        claims = await self._tickets(self.store.take_ticket(_hash(ticket)))
        if claims is None:
            return self._judged(Refusal(CloseCode.UNAUTHORIZED, "the ticket is used, too old, or none of ours"))
        access = granted_access(orjson.loads(claims))
        if isinstance(access, Access) and access.expires_ns <= self._clock.now_ns():
            access = Refusal(CloseCode.UNAUTHORIZED, "the token behind the ticket has expired")
        return self._judged(access)

    async def _tickets(self, call: Awaitable[T]) -> T:
        try:
            return await call
        except StoreDown:
            self._counted("tickets")()
            self.metrics.auth.labels("unavailable").inc()
            raise

    # ---- connections

    def opened(self, guest: Guest) -> None:
        """The handshake is done."""
        if self.door is not None:
            self._schedule(guest)
            if guest.session.state is not State.ANONYMOUS:
                self._count(guest, guest.session.access)

    def admitted(self, guest: Guest, access: Access) -> None:
        """It showed a token."""
        self._uncount(guest)
        self._count(guest, access)
        self._schedule(guest)

    def left(self, guest: Guest) -> None:
        """It is gone, or about to go. Harmless when repeated."""
        self.sessions.ended(guest.session.id)
        if self._due.pop(guest, None) is not None:
            self._uncount(guest)
            self.presence.leave(guest, guest.session.access)

    def _count(self, guest: Guest, access: Access) -> None:
        self.presence.enter(guest, access)
        self._counted_as[guest] = access
        for key in keys_of(access):
            self._indexed.setdefault(key, {})[guest] = None

    def _uncount(self, guest: Guest) -> None:
        before = self._counted_as.pop(guest, None)
        for key in () if before is None else keys_of(before):
            guests = self._indexed.get(key, {})
            guests.pop(guest, None)
            if not guests:
                self._indexed.pop(key, None)

    def _schedule(self, guest: Guest) -> None:
        """Look at it when its time comes; an earlier look that is planned already will plan the next."""
        due_ns = guest.session.due_ns
        if due_ns < min(self._due.get(guest, NEVER_NS), NEVER_NS):
            self._due[guest] = due_ns
            heapq.heappush(self._agenda, (due_ns, next(self._entry), guest))

    def restore(self, guest: Guest, command_id: int, session_id: str) -> None:
        """Look up what another session of the same subject had, and hand it to the guest."""
        task = asyncio.create_task(self._restore(guest, command_id, session_id), name="restore")
        self._restoring.add(task)
        task.add_done_callback(self._restoring.discard)

    async def _restore(self, guest: Guest, command_id: int, session_id: str) -> None:
        found: list[Wanted] | Error
        try:
            kept = await self.sessions.find(session_id)
        except StoreDown:
            self._counted("sessions")()
            outcome = "unavailable"
            found = Error(command_id, ErrorCode.NOT_READY, "sessions cannot be looked up now; subscribe anew")
        else:
            if kept is not None and kept.subject == guest.session.access.subject:
                outcome, found = "restored", kept.wanted
            else:
                outcome = "unknown"
                found = Error(command_id, ErrorCode.NOT_SUBSCRIBED, "nothing is kept of that session; subscribe anew")
        self.metrics.restores.labels(outcome).inc()
        guest.restored(command_id, found)

    def _revoke(self, keys: list[str]) -> None:
        for key in keys:
            self._condemned.extend(self._indexed.get(key, ()))

    # ---- what runs beside them, for ever

    async def watch(self) -> None:
        """Warn and close those whose time has come, and close whom a revocation names."""
        while True:
            await asyncio.sleep(TURN_S)
            condemned, self._condemned = self._condemned, []
            for i, guest in enumerate(condemned, 1):
                guest.close(CloseCode.FORBIDDEN, "the token was revoked")
                if i % SLICE == 0:
                    await asyncio.sleep(0)
            await self._expire()

    async def _expire(self) -> None:
        agenda, looked = self._agenda, 0
        while agenda and agenda[0][0] <= self._clock.now_ns():
            due_ns, _, guest = heapq.heappop(agenda)
            if self._due.get(guest) != due_ns:  # it left, or is planned anew
                continue
            self._due[guest] = NEVER_NS  # nothing is planned
            guest.expire(self._clock.now_ns())
            if guest in self._due:
                self._schedule(guest)
            looked += 1
            if looked % SLICE == 0:
                await asyncio.sleep(0)

    async def share(self) -> None:
        """Tell the store what changed here."""
        while True:
            await asyncio.sleep(TURN_S)
            await self.presence.share()
            await self.sessions.share()

    async def follow(self) -> None:
        """Learn what is revoked elsewhere."""
        await self.revocations.follow()


def _hash(ticket: str) -> str:
    """What is kept of a ticket: who reads the store cannot use it."""
    return sha256(ticket.encode()).hexdigest()
