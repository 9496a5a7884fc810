"""When a client comes back."""

from random import Random

import pytest

from protos.messages import CloseCode
from services.client.reconnect import BACKOFF_MAX_MS, BACKOFF_MIN_MS, STEADY_NS, Backoff, Reconnect, Terminal

TERMINAL = {
    CloseCode.NORMAL,
    CloseCode.POLICY_VIOLATION,
    CloseCode.BAD_COMMANDS,
    CloseCode.UNAUTHORIZED,
    CloseCode.FORBIDDEN,
    CloseCode.TOO_MANY,
}


@pytest.mark.parametrize("code", [*CloseCode, None, 1005, 1006, 4000, 4499])
def test_the_code_says_whether(code: int | None) -> None:
    verdict = Backoff().closed(code, 0, 0, Random(1))
    if code in TERMINAL or code == 4499:
        assert isinstance(verdict, Terminal)
        assert verdict.reason
    else:
        assert isinstance(verdict, Reconnect)
        assert 0 <= verdict.delay_ms <= BACKOFF_MIN_MS


def delays(backoff: Backoff, rng: Random, count: int) -> list[int]:
    verdicts = [backoff.closed(None, 0, 0, rng) for _ in range(count)]
    return [verdict.delay_ms for verdict in verdicts if isinstance(verdict, Reconnect)]


def test_delays_are_uniform_below_a_bound_that_doubles() -> None:
    runs = [delays(Backoff(), Random(seed), 20) for seed in range(400)]
    for attempt, column in enumerate(zip(*runs, strict=True)):
        bound = min(BACKOFF_MAX_MS, BACKOFF_MIN_MS * 2**attempt)
        assert 0 <= min(column) < 0.05 * bound
        assert 0.95 * bound < max(column) <= bound
        assert 0.42 * bound < sum(column) / len(column) < 0.58 * bound


def test_only_a_steady_connection_forgives() -> None:
    rng, backoff = Random(1), Backoff()
    delays(backoff, rng, 10)
    backoff.opened(0)
    assert max(r.delay_ms for r in [backoff.closed(None, 0, STEADY_NS - 1, rng)] if isinstance(r, Reconnect)) > 250
    backoff.opened(0)
    steady = backoff.closed(None, 0, STEADY_NS, rng)
    assert isinstance(steady, Reconnect)
    assert steady.delay_ms <= BACKOFF_MIN_MS


def test_a_hint_is_waited_for_in_full_and_jittered() -> None:
    seen = {Backoff().closed(CloseCode.SERVICE_RESTART, 4_000, 0, Random(seed)) for seed in range(200)}
    waits = [verdict.delay_ms for verdict in seen if isinstance(verdict, Reconnect)]
    assert min(waits) >= 4_000
    assert 5_800 < max(waits) <= 6_000
    assert len(waits) > 150


def test_an_absurd_hint_is_not_believed() -> None:
    verdict = Backoff().closed(CloseCode.TRY_AGAIN_LATER, 10**12, 0, Random(1))
    assert isinstance(verdict, Reconnect)
    assert verdict.delay_ms <= 900_000


@pytest.mark.parametrize(("status", "again"), [(503, True), (429, True), (500, True), (401, False), (404, False)])
def test_the_status_of_a_refused_handshake_says_whether(status: int, again: bool) -> None:
    assert isinstance(Backoff().refused(status, 0, Random(1)), Reconnect if again else Terminal)
