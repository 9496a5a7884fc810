"""Tick received by the feed to update applied in a client, at 5,000 ticks/s on a real Kafka, all on one machine.

`depthcast dev`, 20 instruments, one partition: the simulator, ingest, a streamer and the client, which takes four
channels of 8 instruments. Latencies count from the moment a tick is due, whenever it was really sent: what the target
counts, from Kafka on, is less by the feed's pace and its write. A run before, not counted, warms Kafka's compiler. The
CPU that each process takes is measured in the second half of each run; together they must leave room on the cores there
are.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from services.stack import free_port
from tests.benchmarks.common import Row, build, kafka

RATE, SYMBOLS, SECONDS = 5_000, 20, 16
BUILD = "compiled"
P50_MS, P99_MS = 10, 30
ROLES = {
    "Kafka": "kafka.Kafka",
    "simulator": "services feed",
    "ingest": "services ingest",
    "streamer": "services streamer",
    "client": "services dev",
}
"""Process -> what its command line has."""


def cpu_s(run: str) -> dict[str, float]:
    """CPU seconds so far of each role, of the processes whose environment or ancestry names this run."""
    found = dict.fromkeys(ROLES, 0.0)
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            if run.encode() not in (directory / "environ").read_bytes():
                continue
            fields = (directory / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it ended, or is not ours to read
            continue
        for role, word in ROLES.items():
            if word in command:
                found[role] += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return found


def dev(bootstrap: str, run: int) -> tuple[dict[str, Any], dict[str, float]]:
    """The result of `depthcast dev` on that Kafka, and the CPU of each role in its second half, in us a tick."""
    environment = {
        "DEPTHCAST_TOPIC_PREFIX": f"latency-{run}",
        "DEPTHCAST_INGEST_GROUP": f"latency-{run}",
        "DEPTHCAST_PARTITIONS": "1",
        "DEPTHCAST_HTTP_PORT": str(free_port()),
        "DEPTHCAST_ADMIN_PORT": str(free_port()),
    }
    command = (
        *("env", *(f"{name}={value}" for name, value in environment.items())),
        *(sys.executable, "-m", "services", "dev", "--kafka", bootstrap),
        *("--rate", str(RATE), "--symbols", str(SYMBOLS), "--seconds", str(SECONDS)),
    )
    tag = os.environ[_TAG]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    time.sleep(SECONDS / 2)
    before, started = cpu_s(tag), time.monotonic()
    time.sleep(SECONDS / 2 - 2)
    after, ticks = cpu_s(tag), RATE * (time.monotonic() - started)
    out, _ = process.communicate(timeout=120)
    result: dict[str, Any] = json.loads(out.splitlines()[-1])
    return result, {role: 1e6 * (after[role] - before[role]) / ticks for role in ROLES}


_TAG = "BENCHMARK_LATENCY"


def measure() -> list[Row]:
    """Medians of three runs, after one that only warms Kafka."""
    os.environ[_TAG] = f"latency-of-{os.getpid()}"
    with kafka() as bootstrap, build(BUILD):
        runs = [dev(bootstrap, run) for run in range(4)][1:]
    results = [result for result, _ in runs]
    p50, p99 = (median(result[name] for result in results) for name in ("p50_ms", "p99_ms"))
    rate = median(result["ticks"] for result in results) / SECONDS
    clean = not any(result[name] for result in results for name in ("gaps", "digests_failed", "dlq"))
    cpu = {role: median(taken[role] for _, taken in runs) for role in ROLES}
    room = 1e6 * len(os.sched_getaffinity(0)) / RATE
    return [
        Row(f"tick to client at {rate:,.0f} ticks/s, {BUILD}, p50", f"{p50:.1f} ms", f"<= {P50_MS} ms", p50 <= P50_MS),
        Row("  p99", f"{p99:.1f} ms", f"<= {P99_MS} ms", p99 <= P99_MS),
        Row("  gaps, failed digests, dead letters", "none" if clean else "some", "none", clean),
        *(Row(f"  CPU per tick offered: {role}", f"{us:.0f} us", "", True) for role, us in cpu.items()),
        Row("  CPU per tick offered, together", f"{sum(cpu.values()):.0f} us", f"there are {room:.0f} us", True),
    ]
