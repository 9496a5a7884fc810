"""The highest rate that a server can bear: doubled until it is too much, then halved between the two.

What else happens on a machine makes a server worse, never better. So a rate is tried several times, and is good when
one try is.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, replace
from math import inf
from typing import Any

from loadtest.fanout import WARM_UP_S, Load, Measured, check_references, chosen, connected, window
from loadtest.servers import Reference
from loadtest.swarm import Swarm
from loadtest.target import Server

MEASURED = 200
"""Clients that take latencies: at 6 million a second 1,000 of them cost the generator 71 % of its core, these 48 %."""
TRIES = 3
RATES_MAX = 14
DOWN_MAX = 16.0
"""When not even this part of the first rate is good, none is."""
PRECISION = 1.2
"""Between the highest rate that was good and the lowest that was not; two searches differ by more than a finer one."""
DELIVERED_MIN = 0.97
"""Of what was due in the time: a server that falls behind shows it here before its latencies do."""
HOPELESS = 0.8
"""Of what was due: less is not tried again, slow moments of the machine do not explain it."""


@dataclass(slots=True, frozen=True)
class Limit:
    """A rate is good when it is kept up with, nothing is lost and nobody closed, and the p99 is within ``p99_max_ms``.

    Args:
        usual_pace: Of the latencies outside the machine's slow moments, see `loadtest.pace`.
    """

    p99_max_ms: float = inf
    usual_pace: bool = False

    def holds(self, measured: Measured) -> bool:
        p99_ms = measured.usual_pace_p99_ms if self.usual_pace else measured.p99_ms
        clean = not measured.lost and not measured.closed
        return clean and _delivered(measured) >= DELIVERED_MIN and p99_ms is not None and p99_ms <= self.p99_max_ms


def _delivered(measured: Measured) -> float:
    """Part of what was due; when nobody counted that, all."""
    return measured.deliveries_per_s / measured.expected_per_s if measured.expected_per_s else 1.0


@dataclass(slots=True)
class Tried:
    """All tries of one server, by rate; whatever the limit, no try is wasted."""

    first: float
    tries: int
    by_rate: dict[float, list[Measured]]

    def good(self, limit: Limit) -> tuple[float, Measured] | None:
        """The highest rate that is good, and the try that was."""
        return max(
            ((rate, one) for rate, tried in self.by_rate.items() for one in tried if limit.holds(one)),
            key=lambda found: found[0],
            default=None,
        )

    def next_rate(self, limit: Limit) -> float | None:
        """What to try next; None when the highest rate is found, or there is none."""
        found = self.good(limit)
        good = found[0] if found else 0.0
        above = sorted(rate for rate in self.by_rate if rate > good)
        bad = next((rate for rate in above if self._is_settled(rate)), inf)
        if good and bad / good <= PRECISION:
            return None
        between = [rate for rate in above if rate < bad]
        if between:
            return between[len(between) // 2]
        if good:
            return 2 * good if bad == inf else (good + bad) / 2
        if bad == inf:
            return self.first
        return bad / 2 if bad / 2 >= self.first / DOWN_MAX else None

    def _is_settled(self, rate: float) -> bool:
        """Whether another try of a rate that is not good would change nothing."""
        tried = self.by_rate[rate]
        return len(tried) >= self.tries or any(_delivered(one) < HOPELESS for one in tried)


async def search(attempt: Callable[[float], Awaitable[Measured]], tried: Tried, limit: Limit) -> None:
    """Try rates until the highest that is good is found."""
    rates = set[float]()
    while (rate := tried.next_rate(limit)) is not None:
        rates.add(rate)
        if len(rates) > RATES_MAX:
            break
        tried.by_rate.setdefault(rate, []).append(await attempt(rate))


async def highest_rates(
    server: Server, load: Load, limits: Sequence[Limit], tries: int = TRIES
) -> list[dict[str, Any]]:
    """Search from ``load.rate``; each try is a window of ``load.seconds`` with all clients connected anew.

    Limits cost least from the loosest to the strictest: what one has tried is known to the next.

    Returns:
        For each limit the fields of `Measured` at the highest good rate (without them when none was),
        ``max_deliveries_per_s`` (0 when none was), and ``steps``, all tries by rate.

    Raises:
        LoadTestError: It cannot be measured; the message says why.
    """
    load.check()
    tried = Tried(load.rate, tries, {})
    try:
        target, source = await server.start(load.instruments)

        async def attempt(rate: float) -> Measured:
            swarm = Swarm(target, chosen(load, target), measured=MEASURED)
            async with connected(swarm):
                await swarm.while_alive(source, rate, min(WARM_UP_S, load.seconds))
                return await window(target, replace(load, rate=rate), source, swarm)

        for limit in limits:
            await search(attempt, tried, limit)
    finally:
        await server.stop()
    return [_result(target.name, tried, limit) for limit in limits]


def _result(name: str, tried: Tried, limit: Limit) -> dict[str, Any]:
    found = tried.good(limit)
    best = asdict(found[1]) if found else {"server": name}
    steps = [
        {"rate": round(rate, 1), "good": limit.holds(one), **_short(one)}
        for rate, measured in sorted(tried.by_rate.items())
        for one in measured
    ]
    highest = found[1].deliveries_per_s if found else 0.0
    return {"max_deliveries_per_s": highest, "p99_max_ms": limit.p99_max_ms, **best, "steps": steps}


async def compare_highest(
    server: Server, load: Load, references: list[str], p99_max_ms: float, tries: int
) -> dict[str, Any]:
    """The highest rate with such a p99, then the same for each reference."""
    check_references(references)
    limits = [Limit(p99_max_ms)]
    (ours,) = await highest_rates(server, load, limits, tries)
    result = {"scenario": "highest rate", "load": asdict(load), **ours, "references": {}}
    interval_us = round(ours.get("flush_interval_ms", 1) * 1e3)
    for name in references:
        (theirs,) = await highest_rates(Reference(name, interval_us), load, limits, tries)
        result["references"][name] = theirs
    return result


def _short(measured: Measured) -> dict[str, Any]:
    names = ("deliveries_per_s", "lost", "p50_ms", "p99_ms", "usual_pace_p99_ms", "server_cpu_percent")
    return {name: getattr(measured, name) for name in (*names, "generator_cpu_percent")}
