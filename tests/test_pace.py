"""When the latency benchmark takes the machine for slow."""

from tests.benchmarks.pace import DRAIN_NS, WINDOW_NS, outside, slow_spans

BETWEEN_NS = WINDOW_NS // 5


def pieces(*windows: int) -> list[tuple[int, int]]:
    """Five pieces in each window, of so much CPU time."""
    return [(i * WINDOW_NS + j * BETWEEN_NS, cpu) for i, cpu in enumerate(windows) for j in range(5)]


def test_slow_is_more_than_half_as_much_again_as_usual() -> None:
    assert slow_spans(pieces(100, 100, 150, 100)) == []
    assert slow_spans(pieces(100, 100, 151, 100)) == [(2 * WINDOW_NS, 3 * WINDOW_NS + DRAIN_NS)]


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
