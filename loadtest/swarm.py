"""Many clients on one event loop: who counts, who measures, who checks.

All clients count book updates, and all or many of them take latencies, see `loadtest.scanner`. Checking decodes
everything; so that the generator's core is never the bottleneck, only some clients do that, evenly spread, and mostly
when the measured time is over.
"""

import asyncio
import time
from collections import deque
from collections.abc import Sequence

from loadtest.checker import Checker, Checks
from loadtest.client import LoadClient, connect_all
from loadtest.errors import LoadTestError
from loadtest.histogram import Histogram
from loadtest.instruments import names
from loadtest.processes import raise_descriptor_limit
from loadtest.scanner import scanner
from loadtest.servers import Target
from loadtest.wire import OP_BINARY, client_frame, handshake
from protos.codec import CODECS
from protos.messages import Channel, SlowPolicy, Subscribe

CHECKED = 5
UNCHECKED_BYTES = 64 << 20
"""What checked clients have received waits up to this, so that a short run is checked after it."""
_QUIET_S = 0.3
"""Nothing came for so long: everything has come."""
_CONNECT_S = 120.0


class Swarm:
    """Clients of one target.

    Args:
        wanted: For each client, the instruments it subscribes to.
        channel, depth, interval_ms: Of every subscription.
        measured: How many clients take latencies; as many as the scanner can by default.
        checked: How many clients, or which, check chains and digests; only of depthcast.
    """

    def __init__(
        self,
        target: Target,
        wanted: Sequence[Sequence[int]],
        *,
        channel: Channel = Channel.BOOK,
        depth: int = 0,
        interval_ms: int = 0,
        measured: int | None = None,
        checked: int | Sequence[int] = CHECKED,
    ) -> None:
        self.target = target
        self.wanted = wanted
        self._subscription = (channel, depth, interval_ms)
        self._names = names(1 + max((max(mine, default=0) for mine in wanted), default=0))
        self.clients = [LoadClient(i, self._hello(i), self) for i in range(len(wanted))]
        self._scan = scanner().scan
        measured = scanner().measured_max if measured is None else measured
        self.latencies = {i: Histogram() for i in _spread(len(wanted), measured)}
        self._checks = Checks()
        self._unchecked: deque[tuple[Checker, bytes]] = deque()
        self._unchecked_bytes = 0
        spread = _spread(len(wanted), checked) if isinstance(checked, int) else checked
        self.checkers = {i: Checker(self._checks) for i in spread if target.speaks_depthcast}
        self.opened_count = 0
        self.closed_by: dict[int, int] = {}
        self.received = 0
        self.last_ns = 0
        self._shown = 0

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
        channel, depth, interval_ms = self._subscription
        codec = CODECS["depthcast.v1.proto"]
        policy = SlowPolicy.SKIP if channel is Channel.TRADES else SlowPolicy.CLOSE
        commands = [
            Subscribe(number, self._names[i], channel, depth, interval_ms, slow_policy=policy)
            for number, i in enumerate(self.wanted[index], 1)
        ]
        return [client_frame(OP_BINARY, codec.encode_command(command)) for command in commands]

    def frame(self, client: LoadClient, payload: bytes) -> None:
        index = client.index
        now_ns = time.time_ns()
        count = self._scan(payload, now_ns, self.latencies.get(index))
        if count:
            self.last_ns = now_ns
            self.received += count
            client.books += count
        checker = self.checkers.get(index)
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

    def closed(self, client: LoadClient, code: int) -> None:  # noqa: ARG002
        self.closed_by[code] = self.closed_by.get(code, 0) + 1

    # ---- the life of the swarm

    async def connect(self, at_once: int = 64) -> float:
        """Connect and subscribe all; returns the seconds until every snapshot had come.

        Raises:
            LoadTestError: Not in time, or connections were refused or closed.
        """
        raise_descriptor_limit(len(self.clients))
        started = time.perf_counter()
        await connect_all(self.target.host, self.target.port, self.clients, self.receive_buffer, at_once=at_once)
        expected = sum(len(mine) for mine in self.wanted) if self.target.speaks_depthcast else 0
        while self.opened_count < len(self.clients) or self.received < expected:
            if self.closed_by:
                raise LoadTestError(f"{self.target.name} closed connections while they connected: {self.closed_by}")
            if time.perf_counter() - started > _CONNECT_S:
                raise LoadTestError(f"{self.target.name}: {self.opened_count} connections in {_CONNECT_S:.0f} s")
            await asyncio.sleep(0.01)
        return time.perf_counter() - started

    def receive_buffer(self, index: int) -> int:  # noqa: ARG002
        """Bytes of the kernel's receive buffer (SO_RCVBUF) of a client; 0 leaves it to the kernel."""
        return 0

    def reset(self) -> None:
        """Count anew from here."""
        self.checks()
        self.received = 0
        for client in self.clients:
            client.books = client.frames = client.received_bytes = 0
        for checker in self.checkers.values():
            checker.delivered = checker.conflated = 0
        for i in self.latencies:
            self.latencies[i] = Histogram()

    async def settle(self, expected: int = 0, timeout_s: float = 10.0) -> None:
        """Wait until ``expected`` updates have come, or nothing comes any more."""
        until = time.perf_counter() + timeout_s
        before = -1
        while self.received < expected or not expected:
            if self.received == before or time.perf_counter() > until:
                return
            before = self.received
            await asyncio.sleep(_QUIET_S)

    def pooled(self) -> Histogram:
        """Latencies of all measured clients."""
        total = Histogram()
        for histogram in self.latencies.values():
            total.add(histogram)
        return total

    def worst_p99_ms(self) -> float:
        """The p99 of the measured client that has the highest."""
        return max((histogram.quantile_ms(0.99) for histogram in self.latencies.values()), default=0.0)

    def progress(self, seconds: float) -> str:
        """How it goes, in a line; ``seconds`` since the last."""
        per_s = (self.received - self._shown) / seconds
        self._shown = self.received
        connected = self.opened_count - sum(self.closed_by.values())
        return f"{self.target.name}: {connected} connections, {per_s:,.0f} deliveries/s"

    async def close(self) -> None:
        """Cut all connections."""
        for client in self.clients:
            client.abort()
        while any(client.connected for client in self.clients):
            await asyncio.sleep(0.01)


def _spread(total: int, count: int) -> list[int]:
    """``count`` indices evenly over ``total``."""
    count = min(total, count)
    return [i * total // count for i in range(count)]
