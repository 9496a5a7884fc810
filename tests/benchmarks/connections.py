"""9,500 idle connections with one subscription each: the streamer's memory for each, and how many come per second."""

import asyncio
from statistics import median

from loadtest.connect import measure_connections
from loadtest.processes import cores, raise_descriptor_limit
from loadtest.servers import Depthcast
from tests.benchmarks.common import Row, pinned

CLIENTS, KIB, PER_S = 9_500, 8, 2_000


def measure() -> list[Row]:
    """Medians of three runs."""
    raise_descriptor_limit()
    with pinned(cores()[1]):
        runs = [asyncio.run(measure_connections(Depthcast(), CLIENTS, 200, 1)) for _ in range(3)]
    kib, per_s = (median(run[name] for run in runs) for name in ("kib_per_connection", "connects_per_s"))
    return [
        Row(f"{CLIENTS:,} idle connections, each", f"{kib:.1f} KiB", f"<= {KIB} KiB", kib <= KIB),
        Row("  connects", f"{per_s:,.0f}/s", f">= {PER_S:,}/s", per_s >= PER_S),
    ]
