"""A process that goes first, and a timer that does not drift."""

import os
import time

from loadtest.on_time import Ticker, first_in_line


def test_the_rank_is_given_back() -> None:
    before = os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0)
    with first_in_line() as how:
        assert (os.sched_getscheduler(0) == os.SCHED_FIFO) == (how == "fifo")
        assert (os.getpriority(os.PRIO_PROCESS, 0) < before[1]) == (how == "nice")
        assert how in ("fifo", "nice", "normal")
    assert (os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0)) == before


async def test_ticks_come_at_multiples_of_the_interval_whatever_was_missed() -> None:
    with Ticker(0.01) as ticker:
        for k in range(1, 6):
            await ticker.tick()
            assert time.time_ns() - ticker.started_ns >= k * 9_900_000
        time.sleep(0.055)  # noqa: ASYNC251 - a loop that is busy
        await ticker.tick()
        passed = (time.time_ns() - ticker.started_ns) // 10_000_000
        await ticker.tick()
        assert time.time_ns() - ticker.started_ns >= (passed + 1) * 9_900_000, "those that were missed are one"
