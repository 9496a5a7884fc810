"""Clients that come, go and change their minds, for seconds or for hours: does anything grow?

`storm` cuts all connections at once and lets all of them come back at once, as after a failed load balancer.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from loadtest.client import LoadClient
from loadtest.fanout import Load, chosen, connected
from loadtest.processes import descriptors
from loadtest.swarm import Swarm
from loadtest.target import Live, Server, Target
from loadtest.wire import OP_BINARY, client_frame
from protos.codec import CODECS
from protos.messages import Channel, Subscribe, Subscribed, Unsubscribe

HISTORY = 2_500
"""Updates of each instrument before a long run: what a server keeps of the past is full then, and no leak."""
_HISTORY_PER_S = 20_000
SAMPLES = 20
"""Measurements of memory in a run."""
FLIP = 1_000_000
"""Number of the command with which a client subscribes to something more."""
_LEFT_S = 10.0
"""For the server to notice that all clients are gone."""


class ChurningSwarm(Swarm):
    """Each second ``per_s`` clients are replaced by new ones, and as many subscribe to something more and leave it."""

    def __init__(self, target: Target, wanted: Sequence[Sequence[int]], per_s: float) -> None:
        super().__init__(target, wanted)
        self._per_s = per_s
        self._codec = CODECS["depthcast.v1.proto"]
        self._asked: set[int] = set()
        self.replaced = self.flipped = 0

    async def churn(self) -> None:
        """For ever, at due times."""
        started = time.perf_counter()
        while True:
            await asyncio.sleep(max(0.0, started + (self.replaced + 1) / self._per_s - time.perf_counter()))
            index = self.replaced % len(self.clients)
            self.replaced += 1
            await self.replace(index)
            self.flip((index + len(self.clients) // 2) % len(self.clients))

    def flip(self, index: int) -> None:
        """Subscribe to the quotes of an instrument, and unsubscribe when that is confirmed."""
        if not self.target.speaks_depthcast:
            return
        self._asked.add(index)
        self.receiver.counts[index].kept = True
        command = Subscribe(FLIP, self.target.names[self.wanted[index][0]], Channel.BBO)
        self.clients[index].send(client_frame(OP_BINARY, self._codec.encode_command(command)))

    def frame(self, client: LoadClient, payload: bytes) -> None:
        super().frame(client, payload)
        if client.index not in self._asked:
            return
        for message in self._codec.decode(payload):
            if isinstance(message, Subscribed) and message.id == FLIP:
                self._asked.discard(client.index)
                self.receiver.counts[client.index].kept = client.index in self.checkers
                self.flipped += 1
                command = Unsubscribe(FLIP + 1, message.stream)
                client.send(client_frame(OP_BINARY, self._codec.encode_command(command)))


async def measure_churn(server: Server, load: Load, per_s: float, *, long: bool = False) -> dict[str, Any]:
    """Deliver under churn; sample the server's memory, and what it has open.

    Args:
        long: Begin when the server's history of each instrument is full, so that a slope is a leak.
    """
    load.check()
    try:
        target, source = await server.start(load.instruments)
        if long and not isinstance(source, Live):
            await source.run(_HISTORY_PER_S, HISTORY * load.instruments / _HISTORY_PER_S)
        swarm = ChurningSwarm(target, chosen(load, target), per_s)
        idle = await _held(target)
        async with connected(swarm):
            swarm.reset()
            tasks = [
                asyncio.create_task(swarm.churn()),
                asyncio.create_task(swarm.while_alive(source, load.rate, load.seconds)),
            ]
            samples = await _sample(target, load.seconds, tasks)
            swarm.check_alive()
            under_load = await _held(target)
        checks, left = swarm.checks(), await _left(target, idle)
        return {
            "scenario": "soak" if long else "churn",
            "server": target.name,
            "clients": load.clients,
            "replaced": swarm.replaced,
            "flipped": swarm.flipped,
            "deliveries_per_s": round(swarm.received / load.seconds, 1),
            **swarm.latencies_ms(),
            "rss_first_mib": round(samples[0][1] / 1024, 2),
            "rss_last_mib": round(samples[-1][1] / 1024, 2),
            "rss_slope_kib_per_minute": round(60 * slope(samples[len(samples) // 4 :]), 2),
            "tasks_idle": idle.tasks,
            "tasks_under_load": under_load.tasks,
            "tasks_left": left.tasks,
            "files_left": left.files,
            "digests_passed": checks.digests_passed,
            "digests_failed": checks.digests_failed,
            "broken_chains": checks.broken_chains,
            "rss_samples_kib": samples,
        }
    finally:
        await server.stop()


async def _sample(target: Target, seconds: float, tasks: list[asyncio.Task[Any]]) -> list[tuple[float, int]]:
    """(seconds, RSS) over the run; ends the first task when the second has ended, and raises what either raises."""
    started = time.perf_counter()
    samples = []
    try:
        for i in range(1, SAMPLES + 1):
            left = started + i * seconds / SAMPLES - time.perf_counter()
            done, _ = await asyncio.wait(tasks, timeout=max(0.0, left), return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
            samples.append((round(time.perf_counter() - started, 3), target.usage().rss_kib))
        await tasks[1]
    finally:
        for task in tasks:
            task.cancel()
    return samples


class Held(NamedTuple):
    """What a server has open; 0 where it does not tell."""

    files: int
    tasks: int
    """Of its event loop."""


async def _held(target: Target) -> Held:
    files = descriptors(target.pid) if target.pid else 0
    return Held(files, int((await target.metrics()).get("depthcast_tasks", 0)))


async def _left(target: Target, idle: Held) -> Held:
    """What it has more than before there were clients, once it has had its time to close it."""
    until = time.perf_counter() + _LEFT_S
    while True:
        held = await _held(target)
        left = Held(held.files - idle.files, held.tasks - idle.tasks)
        if max(left) <= 0 or time.perf_counter() > until:
            return left
        await asyncio.sleep(0.1)


def slope(samples: list[tuple[float, int]]) -> float:
    """Least squares, in units per second; 0 for a single sample. The first quarter, when caches fill, is left out."""
    count = len(samples)
    mean_x = sum(x for x, _ in samples) / count
    mean_y = sum(y for _, y in samples) / count
    spread = sum((x - mean_x) ** 2 for x, _ in samples)
    return sum((x - mean_x) * (y - mean_y) for x, y in samples) / spread if spread else 0.0


async def measure_storm(server: Server, load: Load) -> dict[str, Any]:
    """Cut all connections, reconnect all at once while the market goes on; how long until all have their books."""
    load.check()
    try:
        target, source = await server.start(load.instruments)
        wanted = chosen(load, target)
        first = Swarm(target, wanted, measured=0)
        async with connected(first):
            market = asyncio.create_task(source.run(load.rate, load.seconds))
            await asyncio.sleep(min(1.0, load.seconds / 4))
        before = target.usage()
        second = Swarm(target, wanted)
        async with connected(second, load.clients):
            after = target.usage()
            await market
            second.check_alive()
            checks = second.checks()
            return {
                "scenario": "storm",
                "server": target.name,
                "clients": load.clients,
                "seconds_until_all_have_books": round(second.connect_s, 3),
                "connects_per_s": round(load.clients / second.connect_s, 1),
                "refused": second.refused,
                "seconds_when_calm": round(first.connect_s, 3),
                "server_cpu_ms_per_connection": round(1e3 * (after.cpu_s - before.cpu_s) / load.clients, 3),
                "digests_passed": checks.digests_passed,
                "digests_failed": checks.digests_failed,
                "broken_chains": checks.broken_chains,
                "closed": second.closings(),
            }
    finally:
        await server.stop()
