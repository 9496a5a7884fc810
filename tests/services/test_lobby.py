"""Requests that come all at once are answered in slices, between which the event loop does what else there is."""

import asyncio
from collections.abc import Callable
from itertools import pairwise

import pytest

from services.streamer import lobby
from services.streamer.lobby import REST, REST_S, SLICE_S, Caller, Lobby
from streamer.limits import Limits
from tests.support.endpoint import Raw, request, running


class Clock:
    """Goes on only while somebody works."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def perf_counter(self) -> float:
        return self.now_s


class Guest:
    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work

    def serve(self) -> None:
        self._work()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(lobby, "time", clock)
    return clock


async def test_a_crowd_is_answered_in_slices_with_turns_for_others_between(clock: Clock) -> None:
    """By their order; as many in a slice as it has time for."""
    waiting, served = Lobby(), list[tuple[int, int]]()
    turn = 0

    def work(number: int) -> None:
        served.append((number, turn))
        clock.now_s += SLICE_S / 4

    for number in range(12):
        waiting.enter(Guest(lambda number=number: work(number)))  # type: ignore[misc]
    assert served == [], "nobody is answered while others are still read from"
    while len(served) < 12:
        await asyncio.sleep(0)
        turn += 1
    assert [number for number, _ in served] == list(range(12))
    turns = [at for _, at in served]
    assert turns == [first + i * (REST + 1) for i in range(3) for first in [turns[0]] * 4]


async def test_where_each_turn_is_full_callers_have_a_share_of_the_time(clock: Clock) -> None:
    waiting, served = Lobby(), list[float]()

    def work() -> None:
        served.append(clock.now_s)
        clock.now_s += SLICE_S

    for _ in range(4):
        waiting.enter(Guest(work))
    while len(served) < 4:
        await asyncio.sleep(0)
        clock.now_s += REST_S / 2  # what others do in each turn
    assert max(after - before for before, after in pairwise(served)) <= SLICE_S + 1.5 * REST_S


async def test_one_that_takes_longer_than_a_slice_is_answered(clock: Clock) -> None:
    waiting, served = Lobby(), list[int]()

    def work() -> None:
        served.append(1)
        clock.now_s += 10 * SLICE_S

    waiting.enter(Guest(work))
    waiting.enter(Guest(work))
    async with asyncio.timeout(5):
        while len(served) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0)


async def test_the_error_of_one_is_not_the_end_of_all(clock: Clock) -> None:  # noqa: ARG001
    waiting, served, errors = Lobby(), list[int](), list[object]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context["exception"]))
    error = ValueError("of one")

    def fail() -> None:
        raise error

    waiting.enter(Guest(fail))
    waiting.enter(Guest(lambda: served.append(1)))
    async with asyncio.timeout(5):
        while not served:  # noqa: ASYNC110
            await asyncio.sleep(0)
        waiting.enter(Guest(lambda: served.append(2)))
        while len(served) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert errors == [error]


async def test_who_has_said_all_is_answered() -> None:
    """The end of what it says comes with the request, before its turn."""
    async with running() as rig:
        for version, status in (("HTTP/1.1", 101), ("HTTP/1.0", 505)):
            raw = await Raw.connect(rig)
            raw.writer.write(request(version=version))
            raw.writer.write_eof()
            assert (await raw.head())[0] == status


async def test_what_waits_of_one_request_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than a head may have is judged at once, though it is nobody's turn."""
    monkeypatch.setattr(Lobby, "enter", lambda _lobby, _caller: None)
    async with running() as rig:
        raw = await Raw.connect(rig)
        raw.writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nx: ")
        head = asyncio.create_task(raw.head())
        while not head.done():
            raw.writer.write(b"y" * Limits().head_bytes_max)
            await asyncio.sleep(0.01)
        assert (await head)[0] == 431


@pytest.mark.parametrize(("sent", "status"), [(request(), 101), (request()[:-2], 408)], ids=["all", "a part"])
async def test_time_in_the_lobby_is_not_the_clients(sent: bytes, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has said all in time is answered, however late its turn comes; who has not has had its time."""
    callers = list[Caller]()
    monkeypatch.setattr(Lobby, "enter", lambda _lobby, caller: callers.append(caller))
    async with running(request_timeout_ms=100) as rig:
        raw = await Raw.connect(rig)
        raw.writer.write(sent)
        while not callers:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.5)
        callers.pop().serve()
        assert (await raw.head())[0] == status
