"""Clients that come, go and change their minds, for seconds or for hours: does anything grow?

`storm` cuts all connections at once and lets all of them come back at once, as after a failed load balancer.
"""

import asyncio
import time
from typing import Any

from loadtest.client import LoadClient, connect
from loadtest.fanout import Load
from loadtest.instruments import subscriptions
from loadtest.processes import descriptors
from loadtest.progress import Progress
from loadtest.servers import Server, Target
from loadtest.swarm import Swarm
from loadtest.wire import handshake

SAMPLES = 20
"""Measurements of memory in a run."""


class Churn:
    """Replaces ``per_s`` connections of a swarm each second, the oldest first.

    A new client sends all its subscriptions again, so each replacement unsubscribes as many as it subscribes.
    """

    def __init__(self, swarm: Swarm, per_s: float) -> None:
        self._swarm = swarm
        self._per_s = per_s
        self.replaced = 0

    async def run(self) -> None:
        """For ever, at due times."""
        started = time.perf_counter()
        while True:
            await asyncio.sleep(max(0.0, started + (self.replaced + 1) / self._per_s - time.perf_counter()))
            await self.replace(self.replaced % len(self._swarm.clients))

    async def replace(self, index: int) -> None:
        """Cut a connection and open another in its place."""
        swarm, target = self._swarm, self._swarm.target
        swarm.clients[index].abort()
        client = LoadClient(index, handshake(target.host, target.port, target.path), swarm)
        swarm.clients[index] = client
        swarm.checkers.pop(index, None)  # it has other books now
        self.replaced += 1
        await connect(target.host, target.port, client)


async def measure_churn(server: Server, load: Load, per_s: float, scenario: str) -> dict[str, Any]:
    """Deliver under churn; sample the server's memory and its open files."""
    load.check()
    try:
        target, publisher = await server.start(load.instruments)
        swarm = Swarm(target, subscriptions(load.clients, load.instruments, load.per_client))
        idle_files = descriptors(target.pid) if target.pid else 0
        progress = Progress(swarm.progress)
        await swarm.connect()
        swarm.reset()
        churn = Churn(swarm, per_s)
        tasks = [asyncio.create_task(churn.run()), asyncio.create_task(publisher.run(load.rate, load.seconds))]
        samples = await _sample(target, load.seconds, tasks)
        progress.stop()
        await swarm.close()
        await asyncio.sleep(1)
        return {
            "scenario": scenario,
            "server": target.name,
            "clients": load.clients,
            "replaced": churn.replaced,
            "deliveries_per_s": round(swarm.received / load.seconds, 1),
            **swarm.pooled().summary_ms(),
            "rss_first_mib": round(samples[0][1] / 1024, 2),
            "rss_last_mib": round(samples[-1][1] / 1024, 2),
            "rss_slope_kib_per_minute": round(60 * slope(samples[len(samples) // 4 :]), 2),
            "files_left": (descriptors(target.pid) if target.pid else 0) - idle_files,
            "digests_passed": swarm.checks().digests_passed,
            "digests_failed": swarm.checks().digests_failed,
            "broken_chains": swarm.checks().broken_chains,
            "rss_samples_kib": samples,
        }
    finally:
        await server.stop()


async def _sample(target: Target, seconds: float, tasks: list[asyncio.Task[Any]]) -> list[tuple[float, int]]:
    started = time.perf_counter()
    samples = []
    for _ in range(SAMPLES):
        done, _ = await asyncio.wait(tasks, timeout=seconds / SAMPLES, return_when=asyncio.FIRST_COMPLETED)
        samples.append((round(time.perf_counter() - started, 3), target.usage().rss_kib))
        for task in done:
            task.result()
    await tasks[1]
    tasks[0].cancel()
    return samples


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
        target, publisher = await server.start(load.instruments)
        wanted = subscriptions(load.clients, load.instruments, load.per_client)
        first = Swarm(target, wanted, measured=0)
        first_s = await first.connect()
        market = asyncio.create_task(publisher.run(load.rate, load.seconds))
        await asyncio.sleep(min(1.0, load.seconds / 4))
        await first.close()
        before = target.usage()
        second = Swarm(target, wanted)
        second_s = await second.connect(load.clients)
        after = target.usage()
        await market
        await second.settle()
        result = {
            "scenario": "storm",
            "server": target.name,
            "clients": load.clients,
            "seconds_until_all_have_books": round(second_s, 3),
            "connects_per_s": round(load.clients / second_s, 1),
            "seconds_when_calm": round(first_s, 3),
            "server_cpu_ms_per_connection": round(1e3 * (after.cpu_s - before.cpu_s) / load.clients, 3),
            "digests_passed": second.checks().digests_passed,
            "digests_failed": second.checks().digests_failed,
            "broken_chains": second.checks().broken_chains,
            "closed": {str(code): count for code, count in second.closed_by.items()},
        }
        await second.close()
        return result
    finally:
        await server.stop()
