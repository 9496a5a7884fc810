"""Tick received by the feed to update applied in a client, at 5,000 ticks/s on a real Kafka, all on one machine."""

import json
import subprocess
import sys
from statistics import median

from services.stack import free_port
from tests.benchmarks.common import Row, kafka

RATE, SYMBOLS, SECONDS = 5_000, 20, 15
P50_MS, P99_MS = 10, 30


def dev(bootstrap: str, run: int) -> dict[str, float]:
    """The result of `depthcast dev` on that Kafka."""
    environment = {
        "DEPTHCAST_TOPIC_PREFIX": f"latency-{run}",
        "DEPTHCAST_INGEST_GROUP": f"latency-{run}",
        "DEPTHCAST_HTTP_PORT": str(free_port()),
        "DEPTHCAST_ADMIN_PORT": str(free_port()),
    }
    command = (
        *("env", *(f"{name}={value}" for name, value in environment.items())),
        *(sys.executable, "-m", "services", "dev", "--kafka", bootstrap),
        *("--rate", str(RATE), "--symbols", str(SYMBOLS), "--seconds", str(SECONDS)),
    )
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure() -> list[Row]:
    """Medians of three runs."""
    with kafka() as bootstrap:
        results = [dev(bootstrap, run) for run in range(3)]
    p50, p99 = (median(result[name] for result in results) for name in ("p50_ms", "p99_ms"))
    rate = median(result["ticks"] for result in results) / SECONDS
    clean = not any(result[name] for result in results for name in ("gaps", "digests_failed", "dlq"))
    return [
        Row(f"tick to client at {rate:,.0f} ticks/s, p50", f"{p50:.1f} ms", f"<= {P50_MS} ms", p50 <= P50_MS),
        Row("  p99", f"{p99:.1f} ms", f"<= {P99_MS} ms", p99 <= P99_MS),
        Row("  gaps, failed digests, dead letters", "none" if clean else "some", "none", clean),
    ]
