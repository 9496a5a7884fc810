"""How fast the machine itself is, moment by moment: who shares its host can slow both cores to a third for 0.1 s, and
neither `steal` nor a process of ours tells. The same small piece of arithmetic then takes more CPU time than usual.
"""

import threading
import time
from collections import defaultdict
from statistics import median
from types import TracebackType
from typing import Self

from loadtest.histogram import Histogram
from loadtest.on_time import Timer
from loadtest.receiver import Receiver

PIECE = 3_000
"""Additions: 0.15 ms. With PAUSE_S that is 1.5 % of a core."""
PAUSE_S = 0.01
WINDOW_NS = 50_000_000
SLOW = 1.5
"""Times the usual CPU time of a piece: median of a window to median of all."""
DRAIN_NS = 100_000_000
"""What queued up in a slow window is gone after this."""
SLICE_S = 0.05
SLICES_MAX = 400
"""Of a run, 14 MB: in a long one they are longer."""

Span = tuple[int, int]
"""Nanoseconds since 1970, from and to."""


class Pace:
    """Keeps measuring while it is entered."""

    def __init__(self) -> None:
        self._pieces: list[tuple[int, int]] = []  # when, CPU time
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(PAUSE_S):
            started = time.thread_time_ns()
            sum(range(PIECE))
            self._pieces.append((time.time_ns(), time.thread_time_ns() - started))

    def slow(self) -> list[Span]:
        return slow_spans(self._pieces)


def slow_spans(pieces: list[tuple[int, int]]) -> list[Span]:
    """When the machine was slow, and a moment after each, in order; none overlap."""
    windows = defaultdict(list)
    if not pieces:
        return []
    for at_ns, cpu_ns in pieces:
        windows[at_ns // WINDOW_NS].append(cpu_ns)
    usual = median(cpu_ns for _, cpu_ns in pieces)
    spans: list[Span] = []
    for window in sorted(windows):
        if median(windows[window]) <= SLOW * usual:
            continue
        begin, end = window * WINDOW_NS, (window + 1) * WINDOW_NS + DRAIN_NS
        if spans and begin <= spans[-1][1]:
            begin = spans.pop()[0]
        spans.append((begin, end))
    return spans


def outside(spans: list[Span], span: Span) -> bool:
    """Whether nothing of ``span`` is in them."""
    return not any(begin <= span[1] and span[0] <= end for begin, end in spans)


class Slices:
    """Latencies by the time when updates came, while it is entered, so that those of slow moments can be left out.

    Args:
        seconds: About how long that will be.
    """

    def __init__(self, receiver: Receiver, seconds: float) -> None:
        self._receiver = receiver
        self._seconds = max(SLICE_S, seconds / SLICES_MAX)
        self._begun: list[tuple[int, Histogram]] = []
        self._ended_ns = 0

    def __enter__(self) -> Self:
        self._begin()
        self._timer = Timer(self._seconds, self._begin)
        return self

    def _begin(self) -> None:
        latencies = Histogram()
        self._begun.append((time.time_ns(), latencies))
        self._receiver.measure_now(latencies)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.stop()
        self._receiver.measure_now(None)
        self._ended_ns = time.time_ns()

    def outside(self, slow: list[Span]) -> Histogram:
        """Of the slices of which nothing is in these moments."""
        total = Histogram()
        ends = [*(at for at, _ in self._begun[1:]), self._ended_ns]
        for (begin, latencies), end in zip(self._begun, ends, strict=True):
            if outside(slow, (begin, end)):
                total.add(latencies)
        return total
