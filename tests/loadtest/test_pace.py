"""When the machine is taken for slow, and which latencies are left out then."""

import time

from loadtest.histogram import Histogram
from loadtest.pace import DRAIN_NS, WINDOW_NS, Slices, outside, slow_spans
from loadtest.receiver import PythonReceiver
from tests.support.scenario import until

BETWEEN_NS = WINDOW_NS // 5


def pieces(*windows: int) -> list[tuple[int, int]]:
    """Five pieces in each window, of so much CPU time."""
    return [(i * WINDOW_NS + j * BETWEEN_NS, cpu) for i, cpu in enumerate(windows) for j in range(5)]


def test_slow_is_more_than_half_as_much_again_as_usual() -> None:
    assert slow_spans(pieces(100, 100, 150, 100)) == []
    assert slow_spans(pieces(100, 100, 151, 100)) == [(2 * WINDOW_NS, 3 * WINDOW_NS + DRAIN_NS)]


def test_who_was_not_looked_at_is_not_slow() -> None:
    assert slow_spans([]) == []


def test_one_slow_piece_is_not_a_slow_window() -> None:
    found = pieces(100, 100, 100)
    found[7] = (found[7][0], 1_000)
    assert slow_spans(found) == []


def test_windows_that_touch_are_one_span() -> None:
    assert slow_spans(pieces(100, 300, 300, 100, 300, *[100] * 9)) == [(WINDOW_NS, 5 * WINDOW_NS + DRAIN_NS)]


def test_what_was_on_its_way_meanwhile_is_not_outside() -> None:
    spans = [(100, 200), (300, 400)]
    assert [outside(spans, span) for span in ((0, 99), (50, 150), (120, 130), (201, 299), (90, 500))] == [
        *(True, False, False, True, False)
    ]


class NowReceiver(PythonReceiver):
    """Knows what takes the latencies of now."""

    now: Histogram | None = None

    def measure_now(self, latencies: Histogram | None) -> None:
        self.now = latencies


async def test_latencies_of_slices_in_slow_moments_are_left_out() -> None:
    receiver = NowReceiver(1, lambda *_: None)
    times = [time.time_ns()]
    with Slices(receiver, 20) as slices:
        for late in (1, 1_000, 100):
            assert receiver.now
            before = receiver.now
            receiver.now.record([late])
            times.append(time.time_ns())
            await until(lambda before=before: receiver.now is not before, "the next slice")
    assert receiver.now is None
    assert slices.outside([]).count == 3
    calm = slices.outside([(times[2], times[2])])  # somewhere in the second
    assert (calm.count, calm.max) == (2, 100)
    assert slices.outside([(times[0], time.time_ns())]).count == 0
