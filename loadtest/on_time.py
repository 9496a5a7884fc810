"""What a process needs to do things when they are due, though others want its core."""

import asyncio
import ctypes
import gc
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

_NICE = -10
_LIBC = ctypes.CDLL(None, use_errno=True)


@contextmanager
def first_in_line() -> Iterator[str]:
    """Before all others on this core, as far as we may; tells how: ``fifo``, ``nice`` or ``normal``.

    The kernel leaves others a twentieth of the core even so. Collections of garbage leave out what there is already.
    """
    gc.collect()
    gc.freeze()
    how, before = "normal", os.getpriority(os.PRIO_PROCESS, 0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        how = "fifo"
    except OSError:
        try:
            os.setpriority(os.PRIO_PROCESS, 0, _NICE)
            how = "nice"
        except OSError:
            pass
    try:
        yield how
    finally:
        gc.unfreeze()
        if how == "fifo":
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        elif how == "nice":
            os.setpriority(os.PRIO_PROCESS, 0, before)


def kernel_timer(interval_s: float, first_s: float) -> int:
    """A descriptor that becomes readable after ``first_s`` and then every ``interval_s``; 8 bytes are read from it each
    time (timerfd)."""
    timer: int = _LIBC.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
    times = [*divmod(round(interval_s * 1e9), 1_000_000_000), *divmod(max(1, round(first_s * 1e9)), 1_000_000_000)]
    if timer < 0 or _LIBC.timerfd_settime(timer, 0, struct.pack("4l", *times), None):
        raise OSError(ctypes.get_errno(), "no timer")
    return timer


class Timer:
    """Calls back every ``interval_s`` by a timer of the kernel's: asyncio rounds its own up to the next millisecond.

    Calls that were missed are one.

    Args:
        start_ns: From then on, by `time.time_ns`; None: from now on.
    """

    def __init__(self, interval_s: float, callback: Callable[[], object], start_ns: int | None = None) -> None:
        now_ns = time.time_ns()
        self.started_ns = now_ns if start_ns is None else start_ns
        self._fd = kernel_timer(interval_s, (self.started_ns - now_ns) / 1e9 + interval_s)
        self._callback = callback
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._fire)

    def _fire(self) -> None:
        os.read(self._fd, 8)
        self._callback()

    def stop(self) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)


class Ticker:
    """Something to wait for that happens every ``interval_s``; see `Timer`."""

    def __init__(self, interval_s: float, start_ns: int | None = None) -> None:
        self._fired = asyncio.Event()
        self._timer = Timer(interval_s, self._fired.set, start_ns)
        self.started_ns = self._timer.started_ns
        """Tick k comes just after ``started_ns`` + k times the interval."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._timer.stop()

    async def tick(self) -> None:
        """Wait for the next; those that were missed are one."""
        await self._fired.wait()
        self._fired.clear()
