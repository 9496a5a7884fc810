"""9,500 idle connections with one subscription each: the streamer's memory for each, and how many come per second."""

import asyncio
from statistics import median

from loadtest.connect import measure_connections
from loadtest.processes import cores, raise_descriptor_limit
from loadtest.servers import Depthcast
from tests.benchmarks.common import BUILDS, Row, build, pinned

CLIENTS, KIB, PER_S = 9_500, 8, 2_000


def measure() -> list[Row]:
    """Medians of three runs of each build."""
    raise_descriptor_limit()
    found: list[Row] = []
    with pinned(cores()[1]):
        for name in BUILDS:
            with build(name):
                runs = [asyncio.run(measure_connections(Depthcast(), CLIENTS, 200, 1)) for _ in range(3)]
            kib, per_s = (median(run[key] for run in runs) for key in ("kib_per_connection", "connects_per_s"))
            what = f"{name}: {CLIENTS:,} idle connections, each"
            found.append(Row(what, f"{kib:.1f} KiB", f"<= {KIB} KiB", kib <= KIB))
            found.append(Row("  connects", f"{per_s:,.0f}/s", f">= {PER_S:,}/s", per_s >= PER_S))
    return found
