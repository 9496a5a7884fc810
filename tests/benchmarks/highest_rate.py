"""The highest rate: 1,000 clients, 200 instruments, each client on 20 of them, one core for the server.

It is doubled until it is too much and then searched between the two, in windows of 2 s. A rate is tried up to three
times and is good when one try is: at least 97 % delivered in time, nothing lost, nobody closed, and, in the second and
third row, a p99 within 50 ms, of all latencies or of those outside the moments in which the machine itself was slow
(`loadtest/pace.py`). The C floor gets the same updates from the same publisher and flushes every 20 ms; it is also the
proof that the generator can do more than is measured.
"""

import asyncio

from loadtest.fanout import Load
from loadtest.processes import cores, raise_descriptor_limit
from loadtest.search import Limit, highest_rates
from loadtest.servers import Depthcast, Reference
from loadtest.target import Server
from tests.benchmarks.common import BUILDS, Row, build, pinned

P99_MS = 50
LIMITS = {
    "kept up with": Limit(),
    f"with p99 <= {P99_MS} ms at the machine's usual pace": Limit(P99_MS, usual_pace=True),
    f"with p99 <= {P99_MS} ms": Limit(P99_MS),
}
MUST = {"pure Python": 3e6, "compiled": 6e6}
"""With a p99 of all latencies."""
FIRST = {"pure Python": 10_000, "compiled": 30_000, "C": 100_000}
"""Updates/s, of each 100 deliveries: near what was found before, so that few steps are needed."""
FLUSH_US = 20_000
"""Of the floor: long enough for few sends, short enough for the p99."""


def highest(server: Server, name: str) -> list[float]:
    """Deliveries/s, for each of LIMITS."""
    load = Load(rate=FIRST[name], seconds=2)
    found = asyncio.run(highest_rates(server, load, list(LIMITS.values())))
    return [result["max_deliveries_per_s"] for result in found]


def measure() -> list[Row]:
    """One search for each build, and one for the floor."""
    raise_descriptor_limit()
    with pinned(cores()[1]):
        floor = highest(Reference("c", FLUSH_US), "C")
        found: list[Row] = []
        for name in BUILDS:
            with build(name):
                ours = highest(Depthcast(), name)
            for (what, limit), rate, floors in zip(LIMITS.items(), ours, floor, strict=True):
                must = MUST[name] if limit == Limit(P99_MS) else 0
                figure = f"{rate / 1e6:.2f}M/s (C {floors / 1e6:.2f}M/s)"
                found.append(
                    Row(
                        f"{name}: highest rate {what}",
                        figure,
                        f">= {must / 1e6:g}M/s" if must else "reported",
                        rate >= must,
                    )
                )
    return found
