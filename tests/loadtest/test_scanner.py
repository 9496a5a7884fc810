"""Both scanners count the same books and the same latencies, and neither believes garbage."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.histogram import Histogram
from loadtest.scanner import NativeScanner, PythonScanner, Scanner, has_compiler, scanner
from loadtest.wire import ALL, BBO, BOOK, TRADES, WireError
from protos.codec import CODECS
from protos.messages import BookUpdate, Digest, Pong, QuoteUpdate, Scale, Side, Trade, TradesUpdate

CODEC = CODECS["depthcast.v1.proto"]
NOW_NS = 1_700_000_000_000_000_000
UPDATES = st.lists(
    st.tuples(st.sampled_from([BOOK, TRADES, BBO]), st.integers(-(10**6), 2**41), st.integers(-5, 10**7)), max_size=20
)
"""(kind, how late, from the venue's time to ours)"""


@pytest.fixture(scope="module", params=["python", "native"])
def scan(request: pytest.FixtureRequest) -> Scanner:
    if request.param == "python":
        return PythonScanner()
    if not has_compiler():
        pytest.skip("there is no C compiler; apt-get install gcc libc6-dev")
    fastest = scanner()
    assert isinstance(fastest, NativeScanner)
    return fastest


def frame_of(updates: list[tuple[int, int, int]]) -> bytes:
    frame = CODEC.encode(Pong(7, 0), None)
    for kind, late_ns, transit_ns in updates:
        due_ns = NOW_NS - late_ns
        times = {"ts_event_ns": due_ns - transit_ns, "ts_received_ns": due_ns, "ts_published_ns": due_ns + 5}
        update: BookUpdate | TradesUpdate | QuoteUpdate
        if kind == BOOK:
            levels = [(price, 1 + price) for price in range(late_ns % 80)]
            update = BookUpdate(stream=300, epoch=1, seq=2, prev_seq=1, bids=levels, asks=[(1_000, 1)], **times)
        elif kind == TRADES:
            trades = [Trade(5, 6, Side.BUY, "id", due_ns)]
            update = TradesUpdate(stream=2, epoch=1, seq=2, trades=trades, scale=Scale(0, 0), **times)
        else:
            update = QuoteUpdate(stream=1, epoch=1, seq=2, prev_seq=1, bid_ticks=-4, bid_lots=1, ask_ticks=7, **times)
        frame += CODEC.encode(update, Scale(0, 0)) + CODEC.encode(Digest(300, 1, 2, 0xFFFFFFFF), None)
    return frame


@given(UPDATES, st.sampled_from([ALL, BOOK, TRADES | BBO]))
def test_updates_are_counted_and_their_latencies_taken(
    scan: Scanner, updates: list[tuple[int, int, int]], kinds: int
) -> None:
    frame = frame_of(updates)
    late = [late for kind, late, _ in updates if kind & kinds]
    assert scan.scan(frame, NOW_NS, None, kinds) == len(late)
    found, expected = Histogram(), Histogram()
    assert scan.scan(frame, NOW_NS, found, kinds) == len(late)
    expected.record(late)
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
    scan: Scanner, updates: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    frame = frame_of(updates)
    last = len(frame_of(updates[:-1]))
    with pytest.raises(WireError):
        scan.scan(frame[: data.draw(st.integers(last + 1, last + 8))], NOW_NS, Histogram())
