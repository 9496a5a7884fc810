"""Both scanners count the same books and the same latencies, and neither believes garbage."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.histogram import Histogram
from loadtest.scanner import NativeScanner, PythonScanner, Scanner, has_compiler, scanner
from loadtest.wire import WireError
from protos.codec import CODECS
from protos.messages import BookUpdate, Digest, Pong

CODEC = CODECS["depthcast.v1.proto"]
NOW_NS = 1_700_000_000_000_000_000
UPDATES = st.lists(st.tuples(st.integers(-(10**6), 2**41), st.integers(0, 80)), max_size=20)
"""(how late, levels)"""


@pytest.fixture(scope="module", params=["python", "native"])
def scan(request: pytest.FixtureRequest) -> Scanner:
    if request.param == "python":
        return PythonScanner()
    if not has_compiler():
        pytest.skip("there is no C compiler; apt-get install gcc libc6-dev")
    fastest = scanner()
    assert isinstance(fastest, NativeScanner)
    return fastest


def frame_of(updates: list[tuple[int, int]]) -> bytes:
    frame = CODEC.encode(Pong(7, 0), None)
    for late_ns, levels in updates:
        bids = [(price, 1 + price) for price in range(levels)]
        due = NOW_NS - late_ns
        update = BookUpdate(
            stream=300, epoch=1, seq=2, prev_seq=1, ts_event_ns=due, ts_received_ns=due, bids=bids, asks=[(1_000, 1)]
        )
        frame += CODEC.encode(update, None) + CODEC.encode(Digest(300, 1, 2, 0xFFFFFFFF), None)
    return frame


@given(UPDATES)
def test_books_are_counted_and_their_latencies_taken(scan: Scanner, updates: list[tuple[int, int]]) -> None:
    frame = frame_of(updates)
    assert scan.scan(frame, NOW_NS, None) == len(updates)
    found, expected = Histogram(), Histogram()
    assert scan.scan(frame, NOW_NS, found) == len(updates)
    expected.record([late for late, _ in updates])
    assert (found.count, found.max) == (expected.count, expected.max)
    assert found.curve_ms() == expected.curve_ms()


@given(st.binary(min_size=1, max_size=200))
def test_garbage_is_a_wire_error_at_most(scan: Scanner, data: bytes) -> None:
    for latencies in (None, Histogram()):
        try:
            scan.scan(data, NOW_NS, latencies)
        except WireError:
            continue


@given(UPDATES.filter(bool), st.data())
def test_a_frame_that_ends_within_a_chunk_is_an_error(
    scan: Scanner, updates: list[tuple[int, int]], data: st.DataObject
) -> None:
    frame = frame_of(updates)
    last = len(frame_of(updates[:-1]))
    with pytest.raises(WireError):
        scan.scan(frame[: data.draw(st.integers(last + 1, last + 8))], NOW_NS, Histogram())
