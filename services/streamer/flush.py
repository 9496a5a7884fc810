"""When clients are written to: at once when idle, and in a bounded share of the core under load.

Clients stand in line: who has something new first is written to first, and gets all that there is until then. A round
of the line goes in slices, of as many clients as take 2 ms, with a turn of the event loop after each. A round that was
busy for ``d`` is followed by the next ``d / U`` after it began, where U is the share of the core that we may take. An
idle streamer adds about 1 ms; a loaded one writes to each less often with more in each write, so latency grows slowly
instead of the queue. ``d`` is CPU time: on a core that others use too, wall time would make us yield twice.

Under load the streamer does one thing after the other: it takes what Kafka has, applies all of it, writes to all
clients, and rests if there is time left. Who is written to while records are being applied is written to again for the
rest of them, and a send costs as much as a record or two.
"""

import asyncio
import time
from collections import deque

from services.config import Settings
from services.metrics import Metrics
from services.streamer.clients import Clients
from services.streamer.clock import Clock
from streamer.hub import Hub

BACKLOG_S = 0.1
"""While a client may have a backlog: the longest time between two flushes, which judge it."""
ROOM_MAX_S = 0.02
"""The longest that who feeds us is held back by a round, beside the rest after it, and clients for records."""
LEAD_S = 0.002
"""So long before the end of a rest we are fed: until Kafka has answered."""
SLICE_S = 0.002
"""Of a slice, if its smallest size allows: so long the event loop waits. More and smaller slices cost more: each takes
0.1 ms whatever its size, because the sends have put all that is not sending out of the caches."""
CLOCK_S = 1e-6
"""The least that a slice is taken to last: not every clock of CPU time ticks in each."""
LATE_S = 0.02
"""What a round comes too late by is made up for, as far as this: it is time in which records were applied, and nobody
needs another rest for."""
SAMPLES_MAX = 2
"""Updates whose latency is measured per slice. They go out together, so more would say the same, at 3 us each."""


class Flusher:
    """The loop that calls `Hub.tick` and `Hub.flush`."""

    def __init__(self, hub: Hub, settings: Settings, metrics: Metrics, clock: Clock) -> None:
        self._hub = hub
        self._metrics = metrics
        self._clock = clock
        self._interval_min_s = settings.flush_interval_min_ms / 1e3
        self._duty = settings.flush_duty_max
        self._slice_min = settings.flush_slice_clients
        self._runs = False
        self._awake = False
        self._waiter: asyncio.Future[None] | None = None
        self._room: asyncio.Future[bool] | None = None
        self._room_s = 0.0  # when it is given at the latest
        self._held_s = 0.0  # no slice before, on the monotonic clock
        self._round_busy_s = 0.0
        self._round_ends = 0  # when so many are served
        self._served = 0  # clients, since the start
        self._samples: list[tuple[int, int]] = []
        self._sent: deque[tuple[int, list[tuple[int, int]]]] = deque()  # samples, and of `_served` when all have them

    def wake(self) -> None:
        """There is something to flush, or to do at another time than before."""
        self._awake = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def applied(self, ts_received_ns: int, ts_record_ns: int) -> None:
        """An update was applied, whose way to the clients is to be measured."""
        if len(self._samples) < SAMPLES_MAX:
            self._samples.append((ts_received_ns, ts_record_ns))

    def hold(self) -> None:
        """Records are being applied, until `room`: write to nobody meanwhile, unless it takes long."""
        self._held_s = time.monotonic() + ROOM_MAX_S

    async def room(self) -> bool:
        """Hold back who feeds us until all who wait have been written to, and the rest after that is over.

        Who is late in the line would get some of what comes meanwhile a write sooner, but a fetch costs as much as ten
        updates, whatever it brings. False: the next slice was enough for all.
        """
        self._held_s = 0.0
        if not (self._runs and (self._awake or self._hub.waiting)):
            return False
        self._room = asyncio.get_running_loop().create_future()
        self._room_s = time.monotonic() + ROOM_MAX_S
        return await self._room

    def _give_room(self, *, loaded: bool) -> None:
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(loaded)

    async def run(self, clients: Clients) -> None:
        """Flush for ever."""
        self._runs = True
        hub = self._hub
        size = self._slice_min
        slices = 0  # of this round
        free_at = 0.0  # when our share of the core allows the next round
        while True:
            await self._wait(backlog=hub.backlog)
            started_at, started = time.monotonic(), time.thread_time()
            now_ns = self._clock.now_ns()
            hub.tick(now_ns)
            queues = hub.flush(now_ns, size)
            served = len(queues)
            clients.flush(queues)
            busy_s = time.thread_time() - started
            self._measure(served, busy_s)
            slices += 1
            if served >= self._slice_min:
                size = max(self._slice_min, int(served * SLICE_S / max(busy_s, CLOCK_S)))
            free_at = max(free_at, started_at - LATE_S) + busy_s / self._duty
            now_s, waiting = time.monotonic(), hub.waiting
            rest_s = free_at - now_s
            if waiting or hub.due_ns <= now_ns:  # or more that are due have to move
                if now_s >= self._room_s or (waiting <= size and rest_s <= LEAD_S):
                    self._give_room(loaded=True)
                await asyncio.sleep(0)
                continue
            if slices == 1:
                self._give_room(loaded=False)
            slices = 0
            rest_s = max(rest_s, self._interval_min_s)
            if self._room is not None and rest_s > LEAD_S:
                await asyncio.sleep(rest_s - LEAD_S)
                rest_s = LEAD_S
            self._give_room(loaded=True)
            await asyncio.sleep(rest_s)

    async def _wait(self, *, backlog: bool) -> None:
        seconds = (self._hub.due_ns - self._clock.now_ns()) / 1e9
        if backlog:
            seconds = min(seconds, BACKLOG_S)
        if not (self._awake or self._hub.waiting or self._room) and seconds > 0:
            loop = asyncio.get_running_loop()
            self._waiter = loop.create_future()
            timer = loop.call_later(min(seconds, 3600), self.wake)
            await self._waiter
            timer.cancel()
        while time.monotonic() < self._held_s:  # noqa: ASYNC110 a few turns, in each of which records are applied
            await asyncio.sleep(0)
        self._awake = False

    def _measure(self, served: int, busy_s: float) -> None:
        """An update has come when the last who waited for it has been written to."""
        metrics = self._metrics
        self._served += served
        self._round_busy_s += busy_s
        if self._served >= self._round_ends:
            metrics.flush_duration.observe(self._round_busy_s)
            self._round_busy_s, self._round_ends = 0.0, self._served + self._hub.waiting
        if self._samples:
            if served or self._hub.waiting:
                self._sent.append((self._served + self._hub.waiting, self._samples))
            self._samples = []
        while self._sent and self._sent[0][0] <= self._served:
            now_ns = time.time_ns()
            for ts_received_ns, ts_record_ns in self._sent.popleft()[1]:
                metrics.end_to_end.observe((now_ns - ts_received_ns) / 1e9)
                metrics.publish_to_send.observe((now_ns - ts_record_ns) / 1e9)
