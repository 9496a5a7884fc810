"""Tick in Kafka to update applied in a client, at 5,000 ticks/s on a real Kafka, all on one machine.

20 simulated instruments, one partition: a feed, ingest, a streamer and a client that takes four channels of 8
instruments, as in `depthcast dev`. The feed makes its ticks before the first is due (`feed simulate --ahead`): no venue
runs on our cores. Latencies count from Kafka's own time of the record, LogAppendTime, in whole milliseconds rounded
down; beside them, from the moment the tick was due, which has the feed's pace of 5 ms and its write in it, too. A run
before, not counted, warms Kafka, whose second compiler is off. The CPU that each process takes is measured in the
second half of each run; together they must leave room on the cores there are.

"Machine at its usual pace": without the ticks that were on their way while a piece of arithmetic beside it all took
more than 1.5 times its usual CPU time, or up to 0.1 s after (`loadtest/pace.py`).
"""

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from loadtest.pace import Pace, Span, outside
from protos.messages import Flag, MarketMessage, StatusUpdate
from protos.topics import Topics
from services.cli import run as run_loop
from services.config import load_settings
from services.dev import follow
from services.kafka import Reader
from services.stack import Stack, free_port
from tests.benchmarks.common import ROOT, Row, build, kafka

RATE, SYMBOLS, SECONDS = 5_000, 20, 12
FEED_S = SECONDS + 5
"""What comes before the client watches, and after, is not counted."""
BUILD = "compiled"
JAVA = ("-Xms512m", "-Xmx512m", "-XX:TieredStopAtLevel=1")
"""The second compiler takes half a core in the first half minute, a fifth in the next, to spare a tenth later."""
P50_MS, P99_MS = 10, 30
ROLES = {
    "Kafka": "kafka.Kafka",
    "feed": "services feed",
    "ingest": "services ingest",
    "streamer": "services streamer",
    "client": "tests.benchmarks.latency",
}
"""Process -> what its command line has."""
Arrival = tuple[int, int, int]
"""Of an update: when it came, was due, and was in Kafka as a tick; nanoseconds since 1970."""
_TAG = "BENCHMARK_LATENCY"
_TICKS = "depthcast_kafka_records_total"


def cpu_s() -> dict[str, float]:
    """CPU seconds so far of each role, of the processes whose environment has this benchmark's tag."""
    tag = f"{_TAG}={os.environ[_TAG]}".encode()
    found = dict.fromkeys(ROLES, 0.0)
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            if tag not in (directory / "environ").read_bytes():
                continue
            fields = (directory / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it ended, or is not ours to read
            continue
        for role, word in ROLES.items():
            if word in command:
                found[role] += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return found


async def measured(stack: Stack, watched: asyncio.Event) -> dict[str, Any]:
    """Ticks per second that ingest took, and CPU of each role in us a tick offered, once the client watches."""
    await watched.wait()
    await asyncio.sleep(SECONDS / 2)
    before, taken, started = (await stack.ingest.metrics())[_TICKS], cpu_s(), time.monotonic()
    await asyncio.sleep(SECONDS / 2 - 1)
    after, seconds = (await stack.ingest.metrics())[_TICKS], time.monotonic() - started
    cpu = {role: 1e6 * (now - taken[role]) / (RATE * seconds) for role, now in cpu_s().items()}
    return {"rate": (after - before) / seconds, "cpu": cpu}


async def appended_ms(stack: Stack) -> list[int]:
    """Kafka's time of each tick, by offset."""
    ticks = Topics(stack.settings.topic_prefix).ticks, 0
    reader, found = Reader(stack.settings), list[int]()
    await reader.start()
    try:
        await reader.assign({ticks: 0})
        while records := await reader.poll(1_000):
            found += [record.timestamp_ms for record in records]
    finally:
        await reader.stop()
    return found


async def watch(bootstrap: str, name: str) -> dict[str, Any]:
    """One run: what `depthcast dev` says at its end, what was `measured`, and ``arrivals``."""
    settings = load_settings().model_copy(
        update={"topic_prefix": name, "ingest_group": name, "partitions": 1, "http_port": 0, "admin_port": 0}
    )
    came: list[tuple[int, int, int]] = []  # when, due, seq

    def seen(_: object, message: MarketMessage) -> None:
        if not isinstance(message, StatusUpdate) and not message.flags & Flag.SNAPSHOT.value:
            came.append((time.time_ns(), message.ts_received_ns, message.seq))

    async with Stack(settings, bootstrap, {"DEPTHCAST_AUTH": "none"}) as stack:
        feed = f"feed simulate --ahead --symbols {SYMBOLS} --rate {RATE} --seconds {FEED_S}"
        await stack.spawn(feed, free_port())
        watched = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            feeding = asyncio.get_running_loop().create_future()  # it does not end before we do
            result = tasks.create_task(follow(stack, SECONDS, feeding, watched, seen))
            costs = tasks.create_task(measured(stack, watched))
    in_kafka = await appended_ms(stack)
    arrivals = [(at, due, in_kafka[seq - 1] * 1_000_000) for at, due, seq in came]
    return {**result.result(), **costs.result(), "arrivals": arrivals}


def percentiles_ms(arrivals: list[Arrival]) -> dict[str, float]:
    """p50 and p99, from Kafka and from when the ticks were due."""
    found = {}
    for name, since in (("kafka", 2), ("due", 1)):
        cuts = quantiles((arrival[0] - arrival[since] for arrival in arrivals), n=100)
        found |= {f"{name} p50": cuts[49] / 1e6, f"{name} p99": cuts[98] / 1e6}
    return found


def undisturbed(arrivals: list[Arrival], slow: list[Span]) -> list[Arrival]:
    return [arrival for arrival in arrivals if outside(slow, (arrival[2], arrival[0]))]


def watched_by_another(bootstrap: str, run: int) -> dict[str, Any]:
    """`watch` in a process of its own, which runs the build of the working directory."""
    done = subprocess.run(
        (sys.executable, "-m", "tests.benchmarks.latency", bootstrap, f"latency-{run}"),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=120,
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure() -> list[Row]:
    """Medians of three runs, after one that only warms Kafka."""
    os.environ[_TAG] = f"latency-of-{os.getpid()}"
    with kafka(java=JAVA) as bootstrap, build(BUILD), Pace() as pace:
        results = [watched_by_another(bootstrap, run) for run in range(4)][1:]
    slow = pace.slow()
    every = [percentiles_ms(result["arrivals"]) for result in results]
    calm = [undisturbed(result["arrivals"], slow) for result in results]
    share = sum(map(len, calm)) / sum(len(result["arrivals"]) for result in results)
    found = {name: median(run[name] for run in every) for name in every[0]}
    usual = {name: median(run[name] for run in map(percentiles_ms, calm)) for name in every[0]}
    p50, p99, rate = found["kafka p50"], found["kafka p99"], median(result["rate"] for result in results)
    clean = not any(result[name] for result in results for name in ("gaps", "digests_failed", "dlq"))
    cpu = {role: median(result["cpu"][role] for result in results) for role in ROLES}
    room = 1e6 * len(os.sched_getaffinity(0)) / RATE
    what = f"tick in Kafka to client at {rate:,.0f} ticks/s, {BUILD}, p50"
    return [
        Row(what, f"{p50:.1f} ms", f"<= {P50_MS} ms", p50 <= P50_MS),
        Row("  p99", f"{p99:.1f} ms", f"<= {P99_MS} ms", p99 <= P99_MS),
        Row(
            f"  machine at its usual pace, {100 * share:.0f} % of the ticks: p50, p99",
            f"{usual['kafka p50']:.1f}, {usual['kafka p99']:.1f} ms",
            "",
            True,
        ),
        Row("  from due: p50, p99", f"{found['due p50']:.1f}, {found['due p99']:.1f} ms", "", True),
        Row("  gaps, failed digests, dead letters", "none" if clean else "some", "none", clean),
        *(Row(f"  CPU per tick offered: {role}", f"{us:.0f} us", "", True) for role, us in cpu.items()),
        Row("  CPU per tick offered, together", f"{sum(cpu.values()):.0f} us", f"there are {room:.0f} us", True),
    ]


if __name__ == "__main__":
    print(json.dumps(run_loop(watch(*sys.argv[1:]))), flush=True)
