"""The highest rate that a server can bear: doubled until it is too much, then halved between the two."""

from dataclasses import asdict, replace
from typing import Any

from loadtest.fanout import WARM_UP_S, Load, Measured, check_references, chosen, connected, window
from loadtest.servers import Reference
from loadtest.swarm import Swarm
from loadtest.target import Server

MEASURED = 200
"""Clients that take latencies: at 6 million a second 1,000 of them cost the generator 71 % of its core, these 48 %."""
STEPS_MAX = 14
DOWN_MAX = 16.0
"""When not even this part of the first rate is good, none is."""
PRECISION = 1.1
"""Between the highest rate that was good and the lowest that was not."""
DELIVERED_MIN = 0.97
"""Of what was due in the time: a server that falls behind shows it here before its latencies do."""


async def highest_rate(server: Server, load: Load, p99_max_ms: float) -> dict[str, Any]:
    """Search from ``load.rate``; each step is a window of ``load.seconds`` with all clients connected anew.

    Returns:
        The fields of `Measured` at the highest good rate (without them when none was), ``max_deliveries_per_s`` (0
        when none was), and ``steps``.

    Raises:
        LoadTestError: It cannot be measured; the message says why.
    """
    load.check()
    good: tuple[float, Measured] | None = None
    bad = 0.0
    rate = load.rate
    steps: list[dict[str, Any]] = []
    try:
        target, source = await server.start(load.instruments)
        while len(steps) < STEPS_MAX and rate >= load.rate / DOWN_MAX and not _is_found(good, bad):
            step = replace(load, rate=rate)
            swarm = Swarm(target, chosen(load, target), measured=MEASURED)
            async with connected(swarm):
                await swarm.while_alive(source, rate, min(WARM_UP_S, load.seconds))
                measured = await window(target, step, source, swarm)
            fits = _is_good(measured, p99_max_ms)
            steps.append({"rate": round(rate, 1), "good": fits, **_short(measured)})
            if fits:
                good = (rate, measured)
            else:
                bad = rate
            rate = rate * 2 if not bad else bad / 2 if good is None else (good[0] + bad) / 2
    finally:
        await server.stop()
    best = asdict(good[1]) if good else {"server": target.name}
    highest = good[1].deliveries_per_s if good else 0.0
    return {"max_deliveries_per_s": highest, "p99_max_ms": p99_max_ms, **best, "steps": steps}


async def compare_highest(server: Server, load: Load, references: list[str], p99_max_ms: float) -> dict[str, Any]:
    """As `highest_rate`, then the same for each reference."""
    check_references(references)
    ours = await highest_rate(server, load, p99_max_ms)
    result = {"scenario": "highest rate", "load": asdict(load), **ours, "references": {}}
    interval_us = round(ours.get("flush_interval_ms", 1) * 1e3)
    for name in references:
        result["references"][name] = await highest_rate(Reference(name, interval_us), load, p99_max_ms)
    return result


def _is_found(good: tuple[float, Measured] | None, bad: float) -> bool:
    return good is not None and bad > 0 and bad / good[0] <= PRECISION


def _is_good(measured: Measured, p99_max_ms: float) -> bool:
    on_time = measured.deliveries_per_s >= DELIVERED_MIN * (measured.expected_per_s or 0.0)
    return on_time and not measured.lost and not measured.closed and measured.p99_ms <= p99_max_ms


def _short(measured: Measured) -> dict[str, Any]:
    names = ("deliveries_per_s", "lost", "p50_ms", "p99_ms", "server_cpu_percent", "generator_cpu_percent")
    return {name: getattr(measured, name) for name in names}
