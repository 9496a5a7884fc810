"""The search for the highest rate: on a server that is its capacity, on a machine that is slow now and then."""

from collections.abc import Iterator
from dataclasses import fields, replace
from itertools import cycle, repeat
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.fanout import Measured
from loadtest.search import DOWN_MAX, PRECISION, RATES_MAX, Limit, Tried, search

PER_UPDATE = 100
P99, USUAL, KEPT_UP = Limit(50), Limit(50, usual_pace=True), Limit()
_NOTHING: dict[str, Any] = {field.name: 0 for field in fields(Measured)}
FINE = replace(Measured(**_NOTHING), closed={}, p99_ms=10.0, usual_pace_p99_ms=10.0)


class Machine:
    """A server with a capacity in updates/s, whose p99 leaves 50 ms at half of that, or at 0.8 at the usual pace.

    Args:
        slow: For each window, by how much the machine is slowed.
    """

    def __init__(self, capacity: float, slow: Iterator[float] | None = None) -> None:
        self._capacity = capacity
        self._slow = slow or repeat(1.0)
        self.rates: list[float] = []

    async def attempt(self, rate: float) -> Measured:
        self.rates.append(rate)
        capacity = self._capacity * next(self._slow)
        return replace(
            FINE,
            deliveries_per_s=PER_UPDATE * min(rate, capacity),
            expected_per_s=PER_UPDATE * rate,
            p99_ms=50 * rate / (0.5 * capacity),
            usual_pace_p99_ms=50 * rate / (0.8 * capacity),
        )


async def highest(machine: Machine, first: float, limit: Limit, tries: int = 3) -> float:
    tried = Tried(first, tries, {})
    await search(machine.attempt, tried, limit)
    found = tried.good(limit)
    return found[0] if found else 0.0


@given(st.floats(1_000, 100_000), st.floats(0.1, 8), st.sampled_from([P99, USUAL, KEPT_UP]))
async def test_the_highest_good_rate_is_found_wherever_the_search_begins(
    capacity: float, first: float, limit: Limit
) -> None:
    true = capacity * {P99: 0.5, USUAL: 0.8, KEPT_UP: 1 / 0.97}[limit]
    machine = Machine(capacity)
    found = await highest(machine, first * capacity, limit)
    assert true / PRECISION * 0.999 <= found <= true * 1.001
    assert len(set(machine.rates)) <= RATES_MAX


async def test_a_rate_is_good_when_one_try_is() -> None:
    found = {}
    for tries in (1, 3):
        machine = Machine(1_000, cycle([0.5, 0.5, 1.0]))
        found[tries] = await highest(machine, 400, P99, tries)
        assert max(map(machine.rates.count, machine.rates)) == tries
    assert found[1] < 400
    assert found[3] == pytest.approx(500, rel=0.1)


async def test_who_is_never_good_is_asked_less_and_less_but_not_for_ever() -> None:
    machine = Machine(1e-3)
    assert await highest(machine, 1_600, P99) == 0
    assert machine.rates == [1_600 / 2**step for step in range(5)], "what is hopeless is not tried again"
    assert machine.rates[-1] == 1_600 / DOWN_MAX


async def test_what_one_limit_has_tried_is_known_to_the_next() -> None:
    machine, tried = Machine(1_000), Tried(600, 3, {})
    found = []
    for limit in (KEPT_UP, USUAL, P99):
        await search(machine.attempt, tried, limit)
        good = tried.good(limit)
        assert good
        found.append(good[0])
    assert found == sorted(found, reverse=True)
    alone = 0
    for limit in (KEPT_UP, USUAL, P99):
        other = Machine(1_000)
        await highest(other, 600, limit)
        alone += len(other.rates)
    assert len(machine.rates) < alone
    assert max(map(machine.rates.count, machine.rates)) <= 3


@pytest.mark.parametrize(
    ("bad", "holds"),
    [
        ({}, [P99, USUAL, KEPT_UP]),
        ({"p99_ms": 51.0}, [USUAL, KEPT_UP]),
        ({"usual_pace_p99_ms": 51.0}, [P99, KEPT_UP]),
        ({"usual_pace_p99_ms": None}, [P99, KEPT_UP]),
        ({"lost": 1}, []),
        ({"closed": {"4008": 1}}, []),
        ({"expected_per_s": 100.0, "deliveries_per_s": 96.9}, []),
        ({"expected_per_s": None}, [P99, USUAL, KEPT_UP]),
    ],
)
def test_what_is_good(bad: dict[str, Any], holds: list[Limit]) -> None:
    assert [limit for limit in (P99, USUAL, KEPT_UP) if limit.holds(replace(FINE, **bad))] == holds
