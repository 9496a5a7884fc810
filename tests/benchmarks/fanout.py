"""Fan-out: one core for the streamer, the load generator and its Kafka on the other, beside the C floor.

200 instruments, each client on 20 of them. The floor is `loadtest/reference/floor.c`; it gets the same updates from the
same publisher and flushes as often as the streamer did just before. CPU per delivery is compared below saturation.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from loadtest.fanout import Load, compare
from loadtest.processes import cores, raise_descriptor_limit
from loadtest.servers import Depthcast
from tests.benchmarks.common import BUILDS, Row, build, pinned

RUNS, SECONDS = 3, 4


@dataclass(frozen=True)
class Case:
    """A load, and what must be."""

    clients: int
    rate: int
    p99_ms: float
    ratios: tuple[float, ...] = ()
    """Of pure Python and of the compiled build."""
    loop_lag_ms: float | None = None


CASES = (
    Case(1_000, 5_000, 25, ratios=(1.6, 1.25)),
    Case(1_000, 500, 5, ratios=(1.5, 1.5)),
    Case(5_000, 1_000, 120, loop_lag_ms=5),
)


def quantile_ms(grown: Mapping[str, float], name: str, q: float) -> float:
    """The upper bound of the bucket of a Prometheus histogram where the quantile is; 0 without samples."""
    buckets = sorted(
        (float(key.partition('le="')[2].rstrip('"}')), count)
        for key, count in grown.items()
        if key.startswith(f"{name}_bucket")
    )
    total = buckets[-1][1] if buckets else 0
    return next((1e3 * le for le, count in buckets if total and count >= q * total), 0.0)


def usual_pace(results: list[dict[str, Any]], most_ms: float) -> Row:
    """The p99 of what was not delivered in a moment in which the machine itself was slow."""
    known = [result["usual_pace_p99_ms"] for result in results if result["usual_pace_p99_ms"] is not None]
    percent = median(result["usual_pace_percent"] for result in results)
    what = f"  at the machine's usual pace, {percent:.0f} % of them, p99"
    if not known:
        return Row(what, "not known", f"<= {most_ms:g} ms", False)
    return Row(what, f"{median(known):.1f} ms", f"<= {most_ms:g} ms", median(known) <= most_ms)


def rows(name: str, case: Case, results: list[dict[str, Any]]) -> list[Row]:
    def middle(name: str) -> float:
        return median(result[name] for result in results)

    expected, p99 = results[0]["expected_per_s"], middle("p99_ms")
    lost = sum(result["lost"] for result in results)
    floor_ms = (
        median(result["references"]["c"]["p99_ms"] for result in results if result["references"]) if case.ratios else 0
    )
    found = [
        Row(
            f"{name}: {case.clients:,} clients, {expected:,.0f} deliveries/s, p99",
            f"{p99:.1f} ms" + (f" (C {floor_ms:.1f} ms)" if floor_ms else ""),
            f"<= {case.p99_ms:g} ms",
            p99 <= case.p99_ms,
        ),
        usual_pace(results, case.p99_ms),
        Row("  lost", f"{lost:,}", "none", not lost),
        Row("  streamer's CPU", f"{middle('server_cpu_percent'):.0f} %", "reported", True),
    ]
    if case.ratios:
        ratio, must = middle("ratio"), case.ratios[list(BUILDS).index(name)]
        found.append(Row("  CPU per delivery over the C floor's", f"{ratio:.2f}", f"<= {must:g}", ratio <= must))
    if case.loop_lag_ms is not None:
        lag = median(quantile_ms(result["metrics"], "depthcast_event_loop_lag_seconds", 0.99) for result in results)
        found.append(
            Row("  event loop lag, p99", f"{lag:.1f} ms", f"<= {case.loop_lag_ms:g} ms", lag <= case.loop_lag_ms)
        )
    return found


def measure() -> list[Row]:
    """Medians of three runs of each case, for both builds."""
    raise_descriptor_limit()
    found: list[Row] = []
    with pinned(cores()[1]):
        for case in CASES:
            load = Load(clients=case.clients, rate=case.rate, seconds=SECONDS)
            references = ["c"] if case.ratios else []
            for name in BUILDS:
                with build(name):
                    found += rows(
                        name, case, [asyncio.run(compare(Depthcast(), load, references)) for _ in range(RUNS)]
                    )
    return found
