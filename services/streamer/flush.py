"""When clients are written to: at once when idle, and in a bounded share of the core under load.

After a flush that was busy for ``d``, the next one waits ``max(1 ms, d * (1 - U) / U)``. An idle streamer adds about
1 ms; a loaded one flushes less often with more in each write, so latency grows slowly instead of the queue. ``d`` is
CPU time: on a core that others use too, wall time would make us yield twice.
"""

import asyncio
import time
from collections.abc import Sequence

from services.config import Settings
from services.metrics import Metrics
from services.streamer.clients import Clients
from services.streamer.clock import Clock
from streamer.hub import Hub
from streamer.outbox import Outbox

BACKLOG_S = 0.1
"""While a client has a backlog: the longest time between two flushes, which judge it."""
POLL_PAUSE = 0.25
"""Of the time between two flushes. A fetch costs as much as ten updates, whatever it brings."""
POLL_PAUSE_FROM_S = 0.005
SAMPLES_MAX = 32
"""Updates whose latency is measured per flush. They went out together, so more would say the same, at 3 us each."""


class Flusher:
    """The loop that calls `Hub.tick` and `Hub.flush`."""

    def __init__(self, hub: Hub, settings: Settings, metrics: Metrics, clock: Clock) -> None:
        self._hub = hub
        self._metrics = metrics
        self._clock = clock
        self._interval_min_s = settings.flush_interval_min_ms / 1e3
        self._rest = (1 - settings.flush_duty_max) / settings.flush_duty_max
        self._slice = settings.flush_slice_clients
        self._awake = False
        self._waiter: asyncio.Future[None] | None = None
        self._samples: list[tuple[int, int]] = []
        self._interval_s = 0.0  # from the last flush to the one after it, as the load decides it

    def wake(self) -> None:
        """There is something to flush, or to do at another time than before."""
        self._awake = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def applied(self, ts_received_ns: int, ts_record_ns: int) -> None:
        """An update was applied, whose way to the clients is to be measured."""
        if len(self._samples) < SAMPLES_MAX:
            self._samples.append((ts_received_ns, ts_record_ns))

    @property
    def poll_pause_s(self) -> float:
        """How long who feeds us should wait between two polls: under load, little of that misses a flush."""
        return self._interval_s * POLL_PAUSE if self._interval_s > POLL_PAUSE_FROM_S else 0.0

    async def run(self, clients: Clients) -> None:
        """Flush for ever."""
        backlog = False
        while True:
            await self._wait(backlog)
            started = time.thread_time()
            now_ns = self._clock.now_ns()
            self._hub.tick(now_ns)
            dirty = self._hub.flush(now_ns)
            busy_s = await self._write(clients, dirty, started)
            self._measure(bool(dirty), busy_s)
            backlog = bool(dirty)
            rest_s = max(self._interval_min_s, busy_s * self._rest)
            self._interval_s = busy_s + rest_s
            await asyncio.sleep(rest_s)

    async def _wait(self, backlog: bool) -> None:
        loop = asyncio.get_running_loop()
        seconds = (self._hub.due_ns - self._clock.now_ns()) / 1e9
        if backlog:
            seconds = min(seconds, BACKLOG_S)
        if not self._awake and seconds > 0:
            self._waiter = loop.create_future()
            timer = loop.call_later(min(seconds, 3600), self.wake)
            await self._waiter
            timer.cancel()
        self._awake = False

    async def _write(self, clients: Clients, dirty: Sequence[Outbox], started: float) -> float:
        """Write to each client; returns the seconds it took, without the event loop's turns between slices."""
        busy_s = 0.0
        for start in range(0, len(dirty), self._slice):
            clients.flush(dirty[start : start + self._slice])
            busy_s += time.thread_time() - started
            if start + self._slice < len(dirty):
                await asyncio.sleep(0)
            started = time.thread_time()
        return busy_s + time.thread_time() - started

    def _measure(self, written: bool, busy_s: float) -> None:
        metrics = self._metrics
        metrics.flush_duration.observe(busy_s)
        if written:
            now_ns = time.time_ns()
            for ts_received_ns, ts_record_ns in self._samples:
                metrics.end_to_end.observe((now_ns - ts_received_ns) / 1e9)
                metrics.publish_to_send.observe((now_ns - ts_record_ns) / 1e9)
        self._samples.clear()
