"""Many clients on busy books: how many deliveries, how late, at which cost, beside the references in the same run."""

import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from loadtest.compiler import has_compiler
from loadtest.errors import LoadTestError
from loadtest.histogram import Histogram
from loadtest.instruments import subscriptions
from loadtest.pace import Pace, Slices
from loadtest.processes import cores, raise_descriptor_limit
from loadtest.progress import Progress
from loadtest.servers import REFERENCES, Reference
from loadtest.swarm import BOOKS, Subscription, Swarm
from loadtest.target import Live, Server, Source, Target

WARM_UP_S = 1.0
SHARED_MIN = 1.5
"""Updates in one send, from which on sends tell how often a server flushes."""
USUAL_MIN = 0.5
"""When more of the latencies are from slow moments, nobody can say what is usual."""
_MILLION = 1e6
_COUNTER = re.compile("_(total|count|bucket)({|$)")


@dataclass(slots=True, frozen=True)
class Load:
    """What is asked of a server. ``rate`` is in updates per second of all instruments together."""

    clients: int = 1_000
    instruments: int = 200
    per_client: int = 20
    rate: float = 5_000
    seconds: float = 10
    subscriptions: tuple[Subscription, ...] = BOOKS

    def check(self) -> None:
        """Raises `LoadTestError` when it cannot be."""
        if self.per_client > self.instruments:
            raise LoadTestError(f"--per-client {self.per_client}: there are only {self.instruments} instruments")
        raise_descriptor_limit(self.clients)


@dataclass(slots=True)
class Measured:
    """One run against one server."""

    server: str
    deliveries_per_s: float
    expected_per_s: float | None
    """None when nobody counted what was published."""
    lost: int
    """Updates that did not come; when nobody counted, breaks in the chains of the checked clients."""
    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    worst_client_p99_ms: float
    usual_pace_p99_ms: float | None
    """Without what came in moments in which the machine was slow, see `loadtest.pace`; None when they were most."""
    usual_pace_percent: float
    """Of the latencies, those that this is of."""
    server_cpu_s_per_million: float
    server_cpu_percent: float
    server_rss_mib: float
    tier_p50_ms: float | None
    tier_p99_ms: float | None
    """Of books that come at intervals: with the wait for the end of the interval."""
    frames_per_send: float
    """Updates in one WebSocket frame, which is one send."""
    bytes_per_s_per_client: float
    flush_interval_ms: float
    """Seconds over flushes of the server; over frames per client where it does not tell."""
    publisher_late_p99_ms: float
    publisher_cpu_percent: float
    publisher_scheduling: str
    """How it got its core before others: ``fifo``, ``nice`` or ``normal``; "" without a publisher of ours."""
    generator_cpu_percent: float
    closed: dict[str, int]
    checks: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    """How much the server's own counters grew."""
    curve: list[tuple[float, float]] = field(default_factory=list)
    """(quantile, ms)"""


async def measure(server: Server, load: Load) -> Measured:
    """Start, connect, warm up, measure, stop.

    Raises:
        LoadTestError: It cannot be measured; the message says why.
    """
    load.check()
    try:
        target, source = await server.start(load.instruments)
        swarm = Swarm(target, chosen(load, target), subscriptions=load.subscriptions)
        async with connected(swarm):
            await swarm.while_alive(source, load.rate, min(WARM_UP_S, load.seconds))
            return await window(target, load, source, swarm)
    finally:
        await server.stop()


def chosen(load: Load, target: Target) -> list[list[int]]:
    """What each client takes; of a server with fewer instruments than were asked for, all it has at most."""
    count = len(target.names)
    return subscriptions(load.clients, count, min(load.per_client, count))


@asynccontextmanager
async def connected(swarm: Swarm, at_once: int = 64) -> AsyncIterator[None]:
    """The clients, connected and subscribed; with live progress."""
    progress = Progress(swarm.progress)
    try:
        await swarm.connect(at_once)
        yield
    finally:
        progress.stop()
        await swarm.close()


async def window(target: Target, load: Load, source: Source, swarm: Swarm) -> Measured:
    """Measure connected clients for ``load.seconds``."""
    if not isinstance(source, Live):
        await swarm.settle()
    swarm.reset()
    metrics, used, own = await target.metrics(), target.usage(), time.process_time()
    with Pace() as pace, Slices(swarm.receiver, load.seconds) as slices:
        run = await swarm.while_alive(source, load.rate, load.seconds)
        published: list[int] | None = run["published"]
        expected = None if published is None else sum(published[i] for mine in swarm.wanted for i in mine)
        if expected is None:
            swarm.check_alive()
        else:
            await swarm.settle(expected)
    used_after, metrics_after = target.usage(), await target.metrics()
    own_s = time.process_time() - own
    received, checks = swarm.received, swarm.checks()
    grown = {n: value - metrics.get(n, 0.0) for n, value in metrics_after.items() if _COUNTER.search(n)}
    frames = sum(counts.frames for counts in swarm.receiver.counts)
    sending_s = max(load.seconds, (swarm.receiver.last_ns - run["started_ns"]) / 1e9)
    cpu_s = used_after.cpu_s - used.cpu_s
    flushes = grown.get("depthcast_flush_duration_seconds_count", frames / load.clients)
    return Measured(
        server=target.name,
        deliveries_per_s=round(received / sending_s, 1),
        expected_per_s=None if expected is None else round(expected / load.seconds, 1),
        lost=checks.broken_chains if expected is None else max(0, expected - received),
        **swarm.latencies_ms(),
        **usual_pace(slices.outside(pace.slow()), swarm.pooled().count),
        server_cpu_s_per_million=round(cpu_s / max(1, received) * _MILLION, 4),
        server_cpu_percent=round(100 * cpu_s / sending_s, 1),
        server_rss_mib=round(used_after.rss_kib / 1024, 1),
        frames_per_send=round(received / max(1, frames), 2),
        bytes_per_s_per_client=round(sum(c.bytes for c in swarm.receiver.counts) / load.clients / sending_s, 1),
        flush_interval_ms=round(1e3 * sending_s / max(1.0, flushes), 3),
        publisher_late_p99_ms=run["late_p99_ms"],
        publisher_cpu_percent=run["cpu_percent"],
        publisher_scheduling=run["scheduling"],
        generator_cpu_percent=round(100 * own_s / sending_s, 1),
        closed=swarm.closings(),
        checks={**asdict(checks), "clients": len(swarm.checkers)},
        metrics={name: value for name, value in grown.items() if name.startswith("depthcast_") and value},
        curve=swarm.pooled().curve_ms(),
    )


def usual_pace(latencies: Histogram, of: int) -> dict[str, Any]:
    """The fields of `Measured` with this name, from the latencies outside slow moments, of so many in all."""
    share = latencies.count / max(1, of)
    return {
        "usual_pace_p99_ms": latencies.quantile_ms(0.99) if share >= USUAL_MIN else None,
        "usual_pace_percent": round(100 * share, 1),
    }


def check_references(names: list[str]) -> None:
    """Raises `LoadTestError` for one that there is not, or that cannot be compiled: before anything is measured."""
    for name in names:
        if name not in REFERENCES:
            raise LoadTestError(f"--reference {name}: say one of {', '.join(REFERENCES)}")
    if "c" in names and not has_compiler():
        raise LoadTestError("--reference c needs a C compiler named cc; install one, or leave the reference out")


def as_often_us(ours: Measured, clients: int) -> int:
    """The interval of flushes, in us, at which a server makes as many sends as ``ours`` did.

    While clients get several updates at a time, that is the time between two sends to one of them. Otherwise each
    update is a send of its own, however often the server looks, and it looks as often as ours did.
    """
    interval_us = 1e3 * ours.flush_interval_ms
    if ours.frames_per_send >= SHARED_MIN:
        interval_us = 1e6 * ours.frames_per_send * clients / ours.deliveries_per_s
    return max(100, round(interval_us))


async def compare(server: Server, load: Load, references: list[str]) -> dict[str, Any]:
    """Measure the server, then each reference under the same load; the C program sends as often as the server did."""
    check_references(references)
    ours = await measure(server, load)
    result: dict[str, Any] = {"scenario": "fanout", "load": asdict(load), **asdict(ours), "references": {}}
    for name in references:
        theirs = await measure(Reference(name, as_often_us(ours, load.clients)), load)
        result["references"][name] = asdict(theirs)
    if references:
        first = result["references"][references[0]]
        result["reference_cpu_s_per_million"] = first["server_cpu_s_per_million"]
        result["ratio"] = round(ours.server_cpu_s_per_million / max(1e-9, first["server_cpu_s_per_million"]), 3)
    result["cores"] = {"server": sorted(cores()[0]), "generator": sorted(cores()[1])}
    return result
