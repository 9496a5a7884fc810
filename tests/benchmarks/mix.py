"""The real mix on a real Kafka: 200 books at 1,000 ticks/s, 1,000 clients on 20 each: 10@100 ms, trades, bbo.

The latency is from the time the simulator's tick was due to the client's receipt: ticks topic, ingest, market topic,
streamer. Books wait for the end of their 100 ms, so theirs is told apart. The streamer has its core, the clients have
theirs; Kafka, ingest and simulator take what is free of both.
"""

import asyncio
from dataclasses import asdict
from statistics import median

from loadtest import fanout
from loadtest.mix import MIX, WholePath
from loadtest.processes import cores, raise_descriptor_limit
from tests.benchmarks.common import BUILDS, Row, build, kafka, pinned
from tests.benchmarks.fanout import usual_pace

RATE, SECONDS = 1_000, 5
LOAD = fanout.Load(rate=RATE, seconds=SECONDS, subscriptions=MIX)
P99_MS = 40


def rows(name: str, runs: list[fanout.Measured]) -> list[Row]:
    def middle(name: str) -> float:
        return median(getattr(run, name) for run in runs)

    p99, clean = middle("p99_ms"), not any(run.lost or run.closed or run.checks["digests_failed"] for run in runs)
    return [
        Row(f"{name}: deliveries", f"{middle('deliveries_per_s'):,.0f}/s", "reported", True),
        Row("  bytes to each client", f"{middle('bytes_per_s_per_client') / 1e3:,.1f} kB/s", "reported", True),
        Row("  streamer's CPU", f"{middle('server_cpu_percent'):.0f} %", "reported", True),
        Row("  whole path, trades and bbo, p50", f"{middle('p50_ms'):.1f} ms", "reported", True),
        Row("  p99", f"{p99:.1f} ms", f"<= {P99_MS} ms", p99 <= P99_MS),
        usual_pace([asdict(run) for run in runs], P99_MS),
        Row("  books, with the wait for their 100 ms, p99", f"{middle('tier_p99_ms'):.1f} ms", "reported", True),
        Row("  broken chains, wrong digests, closed", "none" if clean else "some", "none", clean),
    ]


def measure() -> list[Row]:
    """Medians of three runs of each build, at 1,000 ticks/s."""
    raise_descriptor_limit()
    found: list[Row] = []
    with kafka() as bootstrap, pinned(cores()[1]):
        for name in BUILDS:
            with build(name):
                runs = [asyncio.run(fanout.measure(WholePath(RATE, bootstrap), LOAD)) for _ in range(3)]
            found += rows(name, runs)
    return found
