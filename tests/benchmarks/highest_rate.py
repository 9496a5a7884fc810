"""The highest rate with a p99 of at most 50 ms: 1,000 clients, 200 instruments, each client on 20 of them.

The rate is doubled until it is too much and then searched between the two, in windows of 2 s. The references get the
same updates from the same publisher; the C floor is also the proof that the generator can do more than is measured.
"""

import asyncio
from statistics import median

from loadtest.fanout import Load
from loadtest.processes import cores, raise_descriptor_limit
from loadtest.search import highest_rate
from loadtest.servers import Depthcast, Reference
from tests.benchmarks.common import BUILDS, Row, build, pinned

P99_MS = 50
MUST = {"pure Python": 3e6, "compiled": 6e6}
LOAD = Load(seconds=2)
FLUSH_US = 20_000
"""Of the floor: long enough for few sends, short enough for the p99."""


def measure() -> list[Row]:
    """The median of three searches of each build; one for each reference."""
    raise_descriptor_limit()
    slow = Load(rate=200, seconds=2)
    found: list[Row] = []
    with pinned(cores()[1]):
        for name in BUILDS:
            with build(name):
                ours = [asyncio.run(highest_rate(Depthcast(), LOAD, P99_MS)) for _ in range(3)]
            rate = median(result["max_deliveries_per_s"] for result in ours)
            what = f"highest rate with p99 <= {P99_MS} ms, {name}"
            found.append(Row(what, f"{rate / 1e6:.2f}M/s", f">= {MUST[name] / 1e6:g}M/s", rate >= MUST[name]))
        floor = asyncio.run(highest_rate(Reference("c", FLUSH_US), LOAD, P99_MS))
        others = {name: asyncio.run(highest_rate(Reference(name), slow, P99_MS)) for name in ("broadcast", "naive")}
    ceiling = floor["max_deliveries_per_s"]
    found.append(Row("  C floor: the generator's own ceiling", f"{ceiling / 1e6:.2f}M/s", "reported", True))
    for name, result in others.items():
        found.append(Row(f"  {name}", f"{result['max_deliveries_per_s'] / 1e3:.0f}k/s", "reported", True))
    return found
