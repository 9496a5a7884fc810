"""Slow and dead consumers among fast ones: what each gets, and whether every update is accounted for.

The synthetic sequences are dense, so a client can say for itself how many updates a merged one stands for::

    offered == delivered + conflated + skipped + lost with closed connections + unaccounted

For every client that stayed connected, ``unaccounted`` must be 0. The server's own account must close as well.
"""

import asyncio
from typing import Any

from loadtest.errors import LoadTestError
from loadtest.fanout import Load, chosen, connected
from loadtest.histogram import Histogram
from loadtest.swarm import Swarm
from loadtest.target import Live, Server, Source, Target

TURN_S = 0.05
"""A slow client reads its share of the bytes once in each."""
RECEIVE_BUFFER = 4_096
"""Of slow and dead clients, so that the kernel hides little of what they do not read."""


DEAD, SLOW = {0}, {1, 2, 3, 4}
"""Of 20 clients: 5 % and 20 %."""


class MixedSwarm(Swarm):
    """Some read too little, or nothing.

    Args:
        fast_only: Leaves those out; the others are the same.
    """

    def __init__(self, target: Target, wanted: list[list[int]], bytes_per_turn: int, *, fast_only: bool) -> None:
        if fast_only:
            wanted = [mine for i, mine in enumerate(wanted) if i % 20 not in DEAD | SLOW]
        indices = range(len(wanted))
        self.dead = [] if fast_only else [i for i in indices if i % 20 in DEAD]
        self.slow = [] if fast_only else [i for i in indices if i % 20 in SLOW]
        super().__init__(target, wanted, measured=0, checked=[*self.dead, *self.slow])
        special = {*self.dead, *self.slow}
        self.fast = [i for i in indices if i not in special]
        every = -(-len(self.fast) // self.receiver.measured_max)
        self.latencies = {i: Histogram() for i in self.fast[::every]}
        self._slow = frozenset(self.slow)
        self._bytes_per_turn = bytes_per_turn
        self._until: dict[int, int] = {}
        self.tasks: list[asyncio.Task[None]] = []

    def receive_buffer(self, index: int) -> int:
        return RECEIVE_BUFFER if index in self._slow or index in self.dead else 0

    def begin(self) -> None:
        """From now on the dead do not read, and the slow read too little."""
        for i in self.dead:
            self.clients[i].read_to(0)
        self.tasks.append(asyncio.create_task(self._turn(), name="slow-readers"))

    async def _turn(self) -> None:
        while True:
            for i in self.slow:
                until = self._until.get(i, self.receiver.counts[i].bytes) + self._bytes_per_turn
                self._until[i] = until  # what was read beyond a share counts against the next
                self.clients[i].read_to(until)
            await asyncio.sleep(TURN_S)

    async def end(self) -> None:
        """The slow read what waits for them; the dead read to learn how they ended."""
        for task in self.tasks:
            task.cancel()
        self._until.clear()
        for i in (*self.slow, *self.dead):
            self.clients[i].read_to()


async def measure_slow(server: Server, load: Load) -> dict[str, Any]:
    """The same load twice: the fast clients alone, then with 5 % dead and 20 % slow ones beside them."""
    load.check()
    try:
        target, source = await server.start(load.instruments)
        if isinstance(source, Live):
            raise LoadTestError("slow accounts for what it publishes itself: give --kafka, where the server reads")
        alone = await _run(target, source, load, fast_only=True)
        mixed = await _run(target, source, load, fast_only=False)
    finally:
        await server.stop()
    ratio = mixed["fast_p99_ms"] / max(0.001, alone["fast_p99_ms"])
    return {
        "scenario": "slow",
        "server": target.name,
        **mixed,
        "fast_p99_alone_ms": alone["fast_p99_ms"],
        "fast_p99_ratio": round(ratio, 2),
    }


async def _run(target: Target, source: Source, load: Load, *, fast_only: bool) -> dict[str, Any]:
    needed = load.rate * load.per_client / load.instruments * 55  # bytes/s of a client, about
    swarm = MixedSwarm(target, chosen(load, target), int(needed / 2 * TURN_S), fast_only=fast_only)
    async with connected(swarm):
        await swarm.settle()
        swarm.reset()
        before = await target.metrics()
        rss_before = target.usage().rss_kib
        swarm.begin()
        run = await swarm.while_alive(source, load.rate, load.seconds)
        rss_after = target.usage().rss_kib
        await swarm.end()
        await swarm.settle()
        after = await target.metrics()
        result = account(swarm, run["published"])
        result |= server_account(before, after)
        result["server_rss_growth_kib"] = rss_after - rss_before
        return result


_FATES = ("updates_sent_total", "conflated_total", "skipped_total", "lost_total", "updates_waiting")
_ACCOUNT = ("updates_offered_total", *_FATES, "disconnects_total")


def server_account(before: dict[str, float], after: dict[str, float]) -> dict[str, Any]:
    """What the server says became of the updates, by its metrics; ``server_unaccounted`` must be 0 for each channel."""
    grown = {
        name.removeprefix("depthcast_"): value - before.get(name, 0.0)
        for name, value in after.items()
        if name.partition("{")[0].removeprefix("depthcast_") in _ACCOUNT
    }
    left: dict[str, float] = {}
    for name, value in grown.items():
        metric, _, labels = name.partition("{")
        if metric == "updates_offered_total":
            left[labels] = left.get(labels, 0.0) + value
        elif metric in _FATES:
            left[labels] = left.get(labels, 0.0) - value
    return {"server_account": grown, "server_unaccounted": sum(abs(value) for value in left.values())}


def account(swarm: MixedSwarm, published: list[int]) -> dict[str, Any]:
    """Where every update went, by what the clients saw."""
    checks = swarm.checks()
    offered = delivered = conflated = lost_closed = unaccounted = 0
    fast_lost = 0
    for client in swarm.clients:
        expected = sum(published[i] for i in swarm.wanted[client.index])
        checker = swarm.checkers.get(client.index)
        got = checker.delivered if checker is not None else swarm.receiver.counts[client.index].updates
        merged = checker.conflated if checker is not None else 0
        offered += expected
        if not client.connected:
            lost_closed += expected - got - merged
        else:
            unaccounted += expected - got - merged
        delivered += got
        conflated += merged
        if client.index not in swarm.dead and client.index not in swarm.slow:
            fast_lost += expected - got
    latencies = swarm.pooled()
    return {
        "clients": {"fast": len(swarm.fast), "slow": len(swarm.slow), "dead": len(swarm.dead)},
        "offered": offered,
        "delivered": delivered,
        "conflated": conflated,
        "skipped": 0,  # books are conflated instead
        "lost_with_closed": lost_closed,
        "unaccounted": unaccounted,
        "fast_lost": fast_lost,
        "closed": swarm.closings(),
        "dead_closed": sum(not swarm.clients[i].connected for i in swarm.dead),
        "slow_closed": sum(not swarm.clients[i].connected for i in swarm.slow),
        "fast_p50_ms": latencies.quantile_ms(0.5),
        "fast_p99_ms": latencies.quantile_ms(0.99),
        "digests_passed": checks.digests_passed,
        "digests_failed": checks.digests_failed,
        "broken_chains": checks.broken_chains,
    }
