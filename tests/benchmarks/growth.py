"""How the cost grows: the same 1,000 updates a second for more clients, and spread over more instruments.

Each client is on 20 instruments (on all 10 of 10); clients grow at 200 instruments, instruments at 1,000 clients. One
core for the streamer, compiled. The last row is a fit of two costs to all the runs: of an update and of a send.

![deliveries per second and core](growth.svg)

![p99](growth-p99.svg)
"""

import asyncio
from math import log10
from pathlib import Path

from loadtest.fanout import Load, Measured
from loadtest.fanout import measure as measure_load
from loadtest.processes import cores, raise_descriptor_limit
from loadtest.report import plot
from loadtest.servers import Depthcast
from tests.benchmarks.common import Row, build, pinned

RATE, SECONDS, PER_CLIENT = 1_000, 3, 20
CLIENTS, INSTRUMENTS = (100, 1_000, 5_000, 10_000), (10, 200, 2_000)
AT_CLIENTS, AT_INSTRUMENTS = 1_000, 200
DOCS = Path(__file__).parents[2] / "docs"
TICKS = [(1.0, "10"), (2.0, "100"), (3.0, "1,000"), (4.0, "10,000")]


def per_core(run: Measured) -> float:
    """Deliveries per second of the streamer's CPU time."""
    return 1e6 / run.server_cpu_s_per_million


def costs_us(runs: list[Measured]) -> tuple[float, float]:
    """(microseconds of an update, of a send): least squares of the relative error over the runs."""
    aa = ab = bb = ay = by = 0.0
    for run in runs:
        cpu = run.server_cpu_percent * 1e4  # microseconds a second
        update, send = RATE / cpu, run.deliveries_per_s / run.frames_per_send / cpu
        aa, ab, bb = aa + update * update, ab + update * send, bb + send * send
        ay, by = ay + update, by + send
    determinant = aa * bb - ab * ab
    return (ay * bb - by * ab) / determinant, (aa * by - ab * ay) / determinant


def measure() -> list[Row]:
    """One run of each: it is the shape that counts."""
    raise_descriptor_limit()
    shapes = {*((n, AT_INSTRUMENTS) for n in CLIENTS), *((AT_CLIENTS, s) for s in INSTRUMENTS)}
    runs: dict[tuple[int, int], Measured] = {}
    with pinned(cores()[1]), build("compiled"):
        for clients, instruments in sorted(shapes):
            load = Load(clients, instruments, min(PER_CLIENT, instruments), RATE, SECONDS)
            runs[clients, instruments] = asyncio.run(measure_load(Depthcast(), load))
    write_plots(runs)
    rows = []
    for (clients, instruments), run in runs.items():
        what = f"{clients:,} clients, {instruments:,} instruments, {run.deliveries_per_s:,.0f} deliveries/s"
        figure = f"{per_core(run) / 1e3:,.0f}k/s per core, p99 {run.p99_ms:.1f} ms, {run.server_cpu_percent:.0f} % CPU"
        rows.append(Row(what, figure, "none lost", not run.lost))
    update_us, send_us = costs_us(list(runs.values()))
    figure = f"{update_us:.0f} us per update + {send_us:.1f} us per send"
    return [*rows, Row("the cost is proportional to the updates and to the sends", figure, "reported", True)]


def write_plots(runs: dict[tuple[int, int], Measured]) -> None:
    """docs/growth.svg and docs/growth-p99.svg."""
    by_clients = [(log10(n), runs[n, AT_INSTRUMENTS]) for n in CLIENTS]
    by_instruments = [(log10(s), runs[AT_CLIENTS, s]) for s in INSTRUMENTS]
    both = {
        f"clients, at {AT_INSTRUMENTS} instruments": by_clients,
        f"instruments, at {AT_CLIENTS:,} clients": by_instruments,
    }
    rates = {name: [(x, per_core(run) / 1e3) for x, run in line] for name, line in both.items()}
    p99s = {name: [(x, run.p99_ms) for x, run in line] for name, line in both.items()}
    (DOCS / "growth.svg").write_text(plot(rates, TICKS, "k/s"))
    (DOCS / "growth-p99.svg").write_text(plot(p99s, TICKS, "ms"))
