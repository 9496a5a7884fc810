"""The gate of a slow client, by times alone."""

from services.streamer.gate import WINDOW_NS, Gate

MS = 1_000_000


def exchange(gate: Gate, started_ns: int, *took_ms: int) -> list[bool]:
    """Frames and their pongs, one after the other; what each pong says."""
    said, now_ns = [], started_ns
    for ms in took_ms:
        gate.sent(now_ns)
        assert gate.shut
        now_ns += ms * MS
        said.append(gate.pong(now_ns))
        assert not gate.shut
    return said


def test_a_client_that_reads_at_once_is_fast_again_after_a_window() -> None:
    assert exchange(Gate(5), 5, *[1_000] * 12) == [False] * 9 + [True, False, False]


def test_a_long_way_is_not_slowness() -> None:
    said = exchange(Gate(1), 1, *[300, 320, 340] * 12)
    assert True in said
    assert not any(said[:30])


def test_a_client_whose_reading_takes_longer_the_more_there_is_stays_slow() -> None:
    assert not any(exchange(Gate(1), 1, *[20, 80, 400] * 200))


def test_a_pong_that_nobody_asked_for_says_nothing() -> None:
    gate = Gate(1)
    assert not gate.pong(2 * WINDOW_NS)
    assert not gate.shut
