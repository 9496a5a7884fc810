"""Many clients on busy books: how many deliveries, how late, at which cost, beside the references in the same run."""

import time
from dataclasses import asdict, dataclass, field
from typing import Any

from loadtest.errors import LoadTestError
from loadtest.instruments import subscriptions
from loadtest.processes import cores
from loadtest.progress import Progress
from loadtest.servers import REFERENCES, Publisher, Reference, Server, Target
from loadtest.swarm import Swarm
from protos.messages import Channel

WARM_UP_S = 1.0
_MILLION = 1e6


@dataclass(slots=True, frozen=True)
class Load:
    """What is asked of a server. ``rate`` is in updates per second of all instruments together."""

    clients: int = 1_000
    instruments: int = 200
    per_client: int = 20
    rate: float = 5_000
    seconds: float = 10
    channel: Channel = Channel.BOOK
    depth: int = 0
    interval_ms: int = 0

    def check(self) -> None:
        """Raises `LoadTestError` when it cannot be."""
        if self.per_client > self.instruments:
            raise LoadTestError(f"--per-client {self.per_client}: there are only {self.instruments} instruments")


@dataclass(slots=True)
class Measured:
    """One run against one server."""

    server: str
    deliveries_per_s: float
    expected_per_s: float
    lost: int
    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    worst_client_p99_ms: float
    server_cpu_s_per_million: float
    server_cpu_percent: float
    server_rss_mib: float
    frames_per_send: float
    """Updates in one WebSocket frame, which is one send."""
    bytes_per_s_per_client: float
    flush_interval_ms: float
    """Seconds over flushes of the server; over frames per client where it does not tell."""
    publisher_late_p99_ms: float
    generator_cpu_percent: float
    closed: dict[str, int]
    checks: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    """How much the server's own counters grew."""
    curve: list[tuple[float, float]] = field(default_factory=list)
    """(quantile, ms)"""


async def measure(server: Server, load: Load) -> Measured:
    """Start, connect, warm up, measure, stop."""
    load.check()
    try:
        target, publisher = await server.start(load.instruments)
        return await _measure(target, publisher, load)
    finally:
        await server.stop()


async def _measure(target: Target, publisher: Publisher, load: Load) -> Measured:
    wanted = subscriptions(load.clients, load.instruments, load.per_client)
    swarm = Swarm(target, wanted, channel=load.channel, depth=load.depth, interval_ms=load.interval_ms)
    progress = Progress(swarm.progress)
    try:
        await swarm.connect()
        await publisher.run(load.rate, min(WARM_UP_S, load.seconds))
        await swarm.settle()
        swarm.reset()
        return await _window(target, load, publisher, swarm)
    finally:
        progress.stop()
        await swarm.close()


async def _window(target: Target, load: Load, publisher: Publisher, swarm: Swarm) -> Measured:
    metrics, used, own = await target.metrics(), target.usage(), time.process_time()
    started = time.perf_counter()
    run = await publisher.run(load.rate, load.seconds)
    listeners = [0] * load.instruments
    for mine in swarm.wanted:
        for i in mine:
            listeners[i] += 1
    expected = sum(count * listeners[i] for i, count in enumerate(run["published"]))
    await swarm.settle(expected if load.interval_ms == 0 else 0)
    used_after, took_s = target.usage(), time.perf_counter() - started
    metrics_after = await target.metrics()
    grown = {
        name: value - metrics.get(name, 0.0)
        for name, value in metrics_after.items()
        if "_total" in name or "_count" in name
    }
    frames = sum(client.frames for client in swarm.clients)
    sending_s = max(load.seconds, (swarm.last_ns - run["started_ns"]) / 1e9)
    cpu_s = used_after.cpu_s - used.cpu_s
    flushes = grown.get("depthcast_flush_duration_seconds_count", frames / load.clients)
    return Measured(
        server=target.name,
        deliveries_per_s=round(swarm.received / sending_s, 1),
        expected_per_s=round(expected / load.seconds, 1),
        lost=max(0, expected - swarm.received) if load.interval_ms == 0 else 0,
        **swarm.pooled().summary_ms(),
        worst_client_p99_ms=swarm.worst_p99_ms(),
        server_cpu_s_per_million=round(cpu_s / max(1, swarm.received) * _MILLION, 4),
        server_cpu_percent=round(100 * cpu_s / took_s, 1),
        server_rss_mib=round(used_after.rss_kib / 1024, 1),
        frames_per_send=round(swarm.received / max(1, frames), 2),
        bytes_per_s_per_client=round(sum(c.received_bytes for c in swarm.clients) / load.clients / sending_s, 1),
        flush_interval_ms=round(1e3 * sending_s / max(1.0, flushes), 3),
        publisher_late_p99_ms=run["late_p99_ms"],
        generator_cpu_percent=round(100 * (time.process_time() - own) / took_s, 1),
        closed={str(code): count for code, count in swarm.closed_by.items()},
        checks={**asdict(swarm.checks()), "clients": len(swarm.checkers)},
        metrics={name: value for name, value in grown.items() if name.startswith("depthcast_") and value},
        curve=swarm.pooled().curve_ms(),
    )


async def compare(server: Server, load: Load, references: list[str]) -> dict[str, Any]:
    """Measure the server, then each reference under the same load; the C program flushes as often as the server did."""
    for name in references:
        if name not in REFERENCES:
            raise LoadTestError(f"--reference {name}: say one of {', '.join(REFERENCES)}")
    ours = await measure(server, load)
    result: dict[str, Any] = {"scenario": "fanout", "load": asdict(load), **asdict(ours), "references": {}}
    for name in references:
        theirs = await measure(Reference(name, max(100, round(ours.flush_interval_ms * 1e3))), load)
        result["references"][name] = asdict(theirs)
    if references:
        first = result["references"][references[0]]
        result["reference_cpu_s_per_million"] = first["server_cpu_s_per_million"]
        result["ratio"] = round(ours.server_cpu_s_per_million / max(1e-9, first["server_cpu_s_per_million"]), 3)
    result["cores"] = {"server": sorted(cores()[0]), "generator": sorted(cores()[1])}
    return result
