"""Many clients on one event loop: who counts, who measures, who checks.

All clients count updates, and all or many of them take latencies, see `loadtest.receiver`. Checking decodes
everything; so that the generator's core is never the bottleneck, only some clients do that, evenly spread, and mostly
when the measured time is over.
"""

import asyncio
import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from loadtest.checker import Checker, Checks
from loadtest.client import Address, LoadClient, connect, connect_all
from loadtest.errors import LoadTestError
from loadtest.histogram import Histogram
from loadtest.receiver import receiver
from loadtest.target import Source, Target
from loadtest.wire import OP_BINARY, client_frame, handshake
from protos.codec import CODECS
from protos.messages import Channel, SlowPolicy, Subscribe

CHECKED = 5
UNCHECKED_BYTES = 64 << 20
"""What checked clients have received waits up to this, so that a short run is checked after it."""
AGAIN = 10
"""Refused connections that come back at a time."""
_LOOK_S = 0.5
_QUIET_S = 0.3
"""Nothing came for so long: everything has come."""
STALLED_S = 20.0
"""Neither a connection nor a snapshot for so long while connecting: no more will come."""


class Subscription(NamedTuple):
    """What a client subscribes to of each of its instruments."""

    channel: Channel
    depth: int = 0
    interval_ms: int = 0


BOOKS = (Subscription(Channel.BOOK),)


class Swarm:
    """Clients of one target.

    Args:
        wanted: For each client, the instruments it subscribes to.
        subscriptions: Of each instrument.
        measured: How many clients take latencies; not more than the receiver can.
        checked: How many clients, or which, check chains and digests; only of depthcast.
    """

    def __init__(
        self,
        target: Target,
        wanted: Sequence[Sequence[int]],
        *,
        subscriptions: Sequence[Subscription] = BOOKS,
        measured: int = sys.maxsize,
        checked: int | Sequence[int] = CHECKED,
    ) -> None:
        self.target = target
        self.wanted = wanted
        self._subscriptions = subscriptions
        self._address = Address(target.host, target.port, target.tls)
        self.receiver = receiver(len(wanted), self.handed)
        self.clients = [self._client(i) for i in range(len(wanted))]
        measured = min(measured, self.receiver.measured_max)
        self.latencies = {i: Histogram() for i in _spread(len(wanted), measured)}
        self.tier_latencies = Histogram()
        """Of updates that wait for the end of an interval, which is no fault of the server's; apart from the others."""
        self._has_tiers = any(subscription.interval_ms for subscription in subscriptions)
        self._checks = Checks()
        self._unchecked: deque[tuple[Checker, bytes]] = deque()
        self._unchecked_bytes = 0
        spread = _spread(len(wanted), checked) if isinstance(checked, int) else checked
        self.checkers = {i: Checker(self._checks) for i in spread if target.speaks_depthcast}
        self.opened_count = 0
        self.closed_by: dict[int, int] = {}
        self.refusal = ""
        self.refused = 0
        """Handshakes answered with 503, come back later, which the client then does."""
        self._again: deque[int] = deque()
        self.connect_s = 0.0
        """Seconds that `connect` took."""
        self._shown = 0
        for i in self.checkers:
            self.receiver.counts[i].kept = True
        self._measure()

    def _client(self, index: int) -> LoadClient:
        return LoadClient(index, self._hello(index), self, self.receiver)

    def _measure(self) -> None:
        for i, latencies in self.latencies.items():
            self.receiver.measure(i, latencies)
        if self._has_tiers:
            self.receiver.measure_tiers(self.tier_latencies)

    @property
    def received(self) -> int:
        """Updates, of all clients."""
        return self.receiver.updates

    def _hello(self, index: int) -> bytes:
        target = self.target
        if target.speaks_depthcast:
            return handshake(target.host, target.port, target.path)
        ids = ",".join(str(i + 1) for i in self.wanted[index])
        return handshake(target.host, target.port, f"{target.path}?streams={ids}", None)

    # ---- what happens on the connections

    def opened(self, client: LoadClient) -> None:
        self.opened_count += 1
        if self.target.speaks_depthcast:
            client.send(b"".join(self.subscribes(client.index)))

    def subscribes(self, index: int) -> list[bytes]:
        """The commands of one client, as frames."""
        codec = CODECS["depthcast.v1.proto"]
        frames: list[bytes] = []
        for i in self.wanted[index]:
            for channel, depth, interval_ms in self._subscriptions:
                policy = SlowPolicy.SKIP if channel is Channel.TRADES else SlowPolicy.CLOSE
                command = Subscribe(
                    len(frames) + 1, self.target.names[i], channel, depth, interval_ms, slow_policy=policy
                )
                frames.append(client_frame(OP_BINARY, codec.encode_command(command)))
        return frames

    def handed(self, index: int, what: int, payload: bytes) -> None:
        """Not every frame comes here, see `loadtest.receiver`."""
        if what == OP_BINARY:
            self.frame(self.clients[index], payload)
        else:
            self.clients[index].handed(what, payload)

    def frame(self, client: LoadClient, payload: bytes) -> None:
        """A frame of a client that is kept."""
        checker = self.checkers.get(client.index)
        if checker is not None:
            self._unchecked.append((checker, payload))
            self._unchecked_bytes += len(payload)
            while self._unchecked_bytes > UNCHECKED_BYTES:
                self._check_oldest()

    def _check_oldest(self) -> None:
        checker, payload = self._unchecked.popleft()
        self._unchecked_bytes -= len(payload)
        checker.frame(payload)

    def checks(self) -> Checks:
        """What the checked clients found, in all that has come."""
        while self._unchecked:
            self._check_oldest()
        return self._checks

    def closed(self, client: LoadClient, code: int) -> None:
        self.refusal = self.refusal or client.refusal
        if " 503 " in client.refusal:
            self.refused += 1
            self._again.append(client.index)
        else:
            self.closed_by[code] = self.closed_by.get(code, 0) + 1

    def check_alive(self) -> None:
        """Raises `LoadTestError` when no connection is left: what was measured then is worth nothing."""
        if self.closed_by and not any(client.connected for client in self.clients):
            raise LoadTestError(f"{self.target.name} ended all {len(self.clients)} connections: {self._codes()}")

    def _codes(self) -> str:
        codes = ", ".join(f"{count} with {code or 'no handshake'}" for code, count in sorted(self.closed_by.items()))
        return f"{codes}; it answered {self.refusal}" if self.refusal else codes

    # ---- the life of the swarm

    async def connect(self, at_once: int = 64) -> None:
        """Connect and subscribe all, until every snapshot has come.

        Raises:
            LoadTestError: Not in time, or connections were refused or closed.
        """
        started = time.perf_counter()
        await connect_all(self._address, self.clients, self.receive_buffer, at_once=at_once)
        expected = sum(len(mine) for mine in self.wanted) if self.target.speaks_depthcast else 0
        moved, moved_at = (0, 0), started
        while self.opened_count < len(self.clients) or self.received < expected:
            name, now = self.target.name, time.perf_counter()
            for _ in range(min(AGAIN, len(self._again))):
                index = self._again.popleft()
                client = self.clients[index] = self._client(index)
                await connect(self._address, client, self.receive_buffer(index))
            if self.closed_by:
                raise LoadTestError(f"{name} closed connections while they were being made: {self._codes()}")
            if moved != (self.opened_count, self.received):
                moved, moved_at = (self.opened_count, self.received), now
            elif now - moved_at > STALLED_S:
                raise LoadTestError(
                    f"{name} stands still for {STALLED_S:.0f} s, after {self.opened_count} of {len(self.clients)} "
                    f"connections and {self.received} of {expected} snapshots {self.refusal}"
                )
            await asyncio.sleep(0.01)
        self.connect_s = time.perf_counter() - started

    def receive_buffer(self, index: int) -> int:  # noqa: ARG002
        """Bytes of the kernel's receive buffer (SO_RCVBUF) of a client; 0 leaves it to the kernel."""
        return 0

    def reset(self) -> None:
        """Count anew from here."""
        self.checks()
        self.receiver.reset()
        for checker in self.checkers.values():
            checker.delivered = checker.conflated = 0
        for i in self.latencies:
            self.latencies[i] = Histogram()
        self.tier_latencies = Histogram()
        self._measure()

    async def while_alive(self, source: Source, rate: float, seconds: float) -> dict[str, Any]:
        """`Source.run`, as long as there are connections.

        Raises:
            LoadTestError: The server ended all of them.
        """
        running = asyncio.create_task(source.run(rate, seconds), name="source")
        try:
            while not running.done():
                await asyncio.wait([running], timeout=_LOOK_S)
                self.check_alive()
            return running.result()
        finally:
            running.cancel()

    async def settle(self, expected: int = 0, timeout_s: float = 10.0) -> None:
        """Wait until ``expected`` updates have come, or nothing comes any more.

        Raises:
            LoadTestError: The server ended all connections.
        """
        until = time.perf_counter() + timeout_s
        before = -1
        while self.received < expected or not expected:
            if self.received == before or time.perf_counter() > until:
                break
            before = self.received
            await asyncio.sleep(_QUIET_S)
        self.check_alive()

    def pooled(self) -> Histogram:
        """Latencies of all measured clients."""
        total = Histogram()
        for histogram in self.latencies.values():
            total.add(histogram)
        return total

    def latencies_ms(self) -> dict[str, Any]:
        """Percentiles: of all measured clients together, of the one with the highest p99, and of tiers (None: none)."""
        tiers = self.tier_latencies
        return {
            **self.pooled().summary_ms(),
            "worst_client_p99_ms": max((one.quantile_ms(0.99) for one in self.latencies.values()), default=0.0),
            "tier_p50_ms": tiers.quantile_ms(0.5) if tiers.count else None,
            "tier_p99_ms": tiers.quantile_ms(0.99) if tiers.count else None,
        }

    def closings(self) -> dict[str, int]:
        """How many connections ended with which close code, for JSON."""
        return {str(code): count for code, count in self.closed_by.items()}

    def progress(self, seconds: float) -> str:
        """How it goes, in a line; ``seconds`` since the last."""
        per_s = (self.received - self._shown) / seconds
        self._shown = self.received
        connected = self.opened_count - sum(self.closed_by.values())
        return f"{self.target.name}: {connected} connections, {per_s:,.0f} deliveries/s"

    async def replace(self, index: int) -> None:
        """Cut a connection and open another in its place. It is not checked any more: its books start anew."""
        self.clients[index].abort()
        client = self.clients[index] = self._client(index)
        self.checkers.pop(index, None)
        self.receiver.counts[index].kept = False
        await connect(self._address, client)

    async def close(self) -> None:
        """Cut all connections."""
        for client in self.clients:
            client.abort()
        while any(client.connected for client in self.clients):
            await asyncio.sleep(0.01)
        self.receiver.close()


def _spread(total: int, count: int) -> list[int]:
    """``count`` indices evenly over ``total``."""
    count = min(total, count)
    return [i * total // count for i in range(count)]
