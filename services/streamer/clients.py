"""All stream connections of this process, and the one wheel that keeps their time: no timer per client."""

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from protos.messages import CloseCode
from services.auth.gate import Gate, Guest
from services.config import Settings
from services.metrics import Metrics
from services.streamer.admission import Admission
from services.streamer.clock import Clock
from services.streamer.sending import send_all
from streamer.hub import Hub
from streamer.line import Queue
from streamer.outbox import Outbox

BEATS = 60
"""Parts of the heartbeat interval: the wheel visits a part of the connections at each, so pings are spread over it."""
TIMER_S = 0.001
"""Resolution of the event loop's timers. Added to each beat, so that a visit is never early for its ping."""
CLOSE_S = 2.0
"""Seconds for our close frame to leave and the peer to answer it; then the socket is aborted."""
SLICE = 200
"""Connections told or closed in one turn of the event loop, about 2 ms."""
WAVES_PER_S = 10
RETRY_MIN_MS = 100
RETRY_MAX_MS = 1_000
"""For one connection that is to come back; those of a draining server are spread over its window."""
AGE_JITTER = 0.1


_RNG = random.Random()  # noqa: S311 - it spreads load, and costs no system call at each connect


class Ending(Protocol):
    """A socket that must be done by a deadline."""

    def abort(self) -> None: ...


class Member(Ending, Guest, Protocol):
    """A stream connection, as the wheel and the flush loop see it."""

    @property
    def address(self) -> str:
        """Of the client."""
        ...

    def flush(self) -> None: ...

    def sent(self, rest: bytes) -> None: ...

    def beat(self) -> None:
        """Once per heartbeat interval."""
        ...

    def unsent(self) -> int:
        """Bytes that the kernel did not take yet."""
        ...

    def drain(self, retry_after_ms: int) -> None: ...


class Deadlines:
    """Sockets with the same time to live, first in first out."""

    def __init__(self, seconds: float) -> None:
        self._timeout_ns = int(seconds * 1e9)
        self._until: dict[Ending, int] = {}

    def start(self, ending: Ending) -> None:
        """Give it the full time, anew if it had some left."""
        self._until.pop(ending, None)
        self._until[ending] = time.monotonic_ns() + self._timeout_ns

    def begin(self, ending: Ending) -> None:
        """Give it the full time if it has none yet."""
        self._until.setdefault(ending, time.monotonic_ns() + self._timeout_ns)

    def stop(self, ending: Ending) -> None:
        self._until.pop(ending, None)

    def expire(self, now_ns: int) -> None:
        """Abort those whose time is over at ``now_ns`` of the monotonic clock."""
        expired = []
        for ending, until_ns in self._until.items():
            if until_ns > now_ns:
                break
            expired.append(ending)
        for ending in expired:
            del self._until[ending]
            ending.abort()

    def expire_all(self) -> None:
        self.expire(1 << 63)


class Clients:
    """What connections share. All of it belongs to one event loop.

    Args:
        wake: Tells the flush loop that there is something to do.
        gate: Who comes in.
    """

    def __init__(
        self,
        hub: Hub,
        settings: Settings,
        metrics: Metrics,
        clock: Clock,
        wake: Callable[[], None],
        gate: Gate,
    ) -> None:
        self.hub = hub
        self.gate = gate
        self.metrics = metrics
        self.clock = clock
        self.wake = wake
        self.members: dict[Outbox, Member] = {}
        self.admission = Admission(settings)
        self.requests = Deadlines(hub.limits.request_timeout_ms / 1e3)
        self.endings = Deadlines(CLOSE_S)
        self.draining = False
        self._none_open = asyncio.Event()
        self._none_open.set()
        self.sends = 0
        self.sent_bytes = 0
        self.commands = {outcome: metrics.commands.labels(outcome) for outcome in ("accepted", "refused", "malformed")}
        self.accepted = metrics.handshakes.labels("101")
        self._age_ns = hub.limits.connection_age_max_ms * 1_000_000
        self._beat_s = settings.heartbeat_interval_ms / 1e3 / BEATS + TIMER_S

    def why_not_ready(self) -> str:
        """Why this process should get no traffic; empty when it should. A Kafka outage later is no reason."""
        if self.draining:
            return "this server is shutting down"
        return "" if self.hub.ready else "the books are catching up with Kafka"

    @property
    def open(self) -> int:
        """Stream connections whose socket is open."""
        return self.admission.open

    def retire_ns(self) -> int:
        """When a connection that opens now is to make place; no two at the same time."""
        return self.clock.now_ns() + int(self._age_ns * (1 - AGE_JITTER * _RNG.random()))

    def retry_after_ms(self) -> int:
        """When one client that is sent away should be back."""
        return _RNG.randrange(RETRY_MIN_MS, RETRY_MAX_MS)

    def limited(self, limit: str) -> None:
        """Count that a client ran into a limit."""
        self.metrics.limited[limit].inc()

    def opened(self, outbox: Outbox, member: Member) -> None:
        self.members[outbox] = member
        self.admission.enter(member.address)
        self._none_open.clear()
        self.metrics.connects.inc()
        self.gate.opened(member)

    def detach(self, outbox: Outbox) -> None:
        """No more data for this client: it is being closed, or gone. Harmless when repeated."""
        member = self.members.pop(outbox, None)
        if member is not None:
            self.gate.left(member)
            self.hub.detach(outbox)

    def closed(self, member: Member, code: int) -> None:
        """The socket is closed; ``code`` is of the close frame sent or answered, 1006 when there was none."""
        self.admission.leave(member.address)
        if not self.open:
            self._none_open.set()
        self.endings.stop(member)
        self.metrics.disconnected(code)

    def flush(self, queues: list[Queue]) -> None:
        """Write to each client what waits for it, as far as the kernel takes it."""
        hub, members = self.hub, self.members
        count = len(queues)
        sent_bytes, tally, left = send_all(queues, hub.limits.frame_bytes_max)
        hub.counters.delivered += tally
        self.sends += count - len(queues)
        self.sent_bytes += sent_bytes
        for queue, rest in left:
            if queue.owner is not None:
                members[queue.owner].sent(rest)
        for queue in queues:
            if queue.owner in members:
                members[queue.owner].flush()

    async def run(self) -> None:
        """Turn the wheel, for ever."""
        while True:
            members = list(self.members.values())
            for beat in range(BEATS):
                await asyncio.sleep(self._beat_s)
                self.clock.follow()
                now_ns = time.monotonic_ns()
                self.requests.expire(now_ns)
                self.endings.expire(now_ns)
                for member in members[beat::BEATS]:
                    member.beat()

    async def drain(self, seconds: float, rng: random.Random) -> None:
        """Announce the shutdown to every connection, each with a delay of its own, then close them in waves.

        Args:
            seconds: The window. Its last tenth is for the closing handshakes.
        """
        self.draining = True
        if not self.open:
            return
        members = list(self.members.values())
        rng.shuffle(members)
        retry_max_ms = max(RETRY_MIN_MS + 1, int(seconds * 1e3))
        for i, member in enumerate(members):
            member.drain(rng.randrange(RETRY_MIN_MS, retry_max_ms))
            if i % SLICE == SLICE - 1:
                await asyncio.sleep(0)
        waves = max(1, int(seconds * 0.9 * WAVES_PER_S), len(members) // SLICE)
        for wave in range(waves):
            await asyncio.sleep(seconds * 0.9 / waves)
            for member in members[wave::waves]:
                member.close(CloseCode.SERVICE_RESTART, "this server restarts")
        with suppress(TimeoutError):
            async with asyncio.timeout(min(CLOSE_S, max(seconds / 10, 0.2))):
                await self._none_open.wait()
        self.endings.expire_all()
