"""A record that a book advances by does what its message does, and goes out as its message would, to the byte."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from protos import delta, ring, shortcut
from protos.book import Book, prices_of
from protos.codec import CODECS
from protos.ladder import PlainLadder
from protos.messages import BookUpdate, Flag, MarketMessage, Scale, TradesUpdate
from protos.records import decode_market, encode_market
from protos.ring import PlainRing, Ring
from protos.wire import COUNT_MAX, FLAGS_KNOWN, NS_MAX, VALUE_MAX
from tests.protos.test_codec import updates
from tests.support.shortcuts import shortcuts

T = 1_723_161_254_206_652_067
SCALE = Scale(-2, -5)
DELTA = BookUpdate(
    epoch=7, seq=12, prev_seq=10, ts_event_ns=T, ts_received_ns=T + 5, bids=[(-3, 7), (5, 0)], asks=[(6, 9)]
)

prices = st.integers(-6, 6) | st.integers(-VALUE_MAX, VALUE_MAX)
sizes = st.integers(0, 3) | st.integers(0, VALUE_MAX)
sides = st.dictionaries(prices, sizes, max_size=8).map(lambda found: sorted(found.items()))
times = st.integers(0, NS_MAX // 2)  # differences of more bits are left


@st.composite
def deltas(draw: st.DrawFn) -> BookUpdate:
    """What continues (7, 10)."""
    return BookUpdate(
        epoch=7,
        seq=draw(st.integers(11, 300) | st.integers(11, COUNT_MAX)),
        prev_seq=10,
        flags=draw(st.integers(0, FLAGS_KNOWN)) & ~Flag.SNAPSHOT,
        ts_event_ns=draw(times),
        ts_received_ns=draw(times),
        bids=draw(sides),
        asks=draw(sides),
    )


@pytest.fixture(scope="module", autouse=True)
def native() -> Iterator[None]:
    """Without the C module nothing is advanced."""
    with shortcuts("native"):
        yield


def test_without_the_c_module_all_is_left() -> None:
    with shortcuts("python"):
        assert delta.advance(encode_market(DELTA), book_at(7, 10), new_ring(), None) is None


def book_at(epoch: int, seq: int, bids: Any = (), asks: Any = ()) -> Book:  # noqa: ANN401 - levels
    book = Book()
    book.apply(BookUpdate(epoch=epoch, seq=seq, flags=Flag.SNAPSHOT, bids=list(bids), asks=list(asks)))
    return book


def new_ring() -> Ring:
    """At (7, 10)."""
    made = ring.new_ring(100, 1_000)
    made.reset(7, 10)
    return made


def state(book: Book) -> object:
    book.check()
    return book.epoch, book.seq, book.top(0), book.scale


@given(update=deltas(), bids=sides, asks=sides, listed=st.booleans())
def test_the_book_is_what_the_message_makes_of_it(update: BookUpdate, bids: Any, asks: Any, listed: bool) -> None:  # noqa: ANN401
    ours, expected = book_at(7, 10, bids, asks), book_at(7, 10, bids, asks)
    touched, prices = new_ring(), list[list[int]]() if listed else None
    advanced = delta.advance(encode_market(update), ours, touched, prices)
    expected.apply(update)
    assert state(ours) == state(expected)
    assert advanced == (update.seq, update.flags, update.ts_event_ns, update.ts_received_ns)
    bids, asks = prices_of(update.bids), prices_of(update.asks)
    assert prices == ([bids, asks] if listed else None)
    assert touched.touched(7, 10) == (set(bids), set(asks))
    assert touched.touched(7, update.seq) == (set(), set())


@given(
    update=deltas(), stream=st.integers(1, 2**32 - 1), flags=st.integers(0, FLAGS_KNOWN), at_ns=st.integers(1, NS_MAX)
)
@pytest.mark.parametrize("codec", CODECS.values(), ids=lambda codec: codec.name)
def test_it_goes_out_as_the_message_would(update: BookUpdate, stream: int, flags: int, at_ns: int, codec: Any) -> None:  # noqa: ANN401
    record = encode_market(update)
    expected = codec.encode(replace(update, stream=stream, flags=flags, ts_published_ns=at_ns), SCALE)
    assert delta.passed_on(record, stream, flags, at_ns, codec, SCALE) == expected


@pytest.mark.parametrize(
    "other",
    [
        replace(DELTA, epoch=8),
        replace(DELTA, epoch=6),
        replace(DELTA, prev_seq=11),
        replace(DELTA, prev_seq=9),
        replace(DELTA, seq=10),
        replace(DELTA, prev_seq=0, scale=SCALE),
        replace(DELTA, flags=Flag.SNAPSHOT),
        replace(DELTA, scale=SCALE),
        replace(DELTA, venue_checksum=0),
        replace(DELTA, venue_depth=5),
        TradesUpdate(epoch=7, seq=12, prev_seq=10),
    ],
    ids=str,
)
def test_what_is_no_plain_delta_or_does_not_continue_the_book_is_left(other: MarketMessage) -> None:
    book = book_at(7, 10, [(5, 1)])
    before = state(book)
    touched, prices = new_ring(), list[list[int]]()
    assert delta.advance(encode_market(other), book, touched, prices) is None
    assert state(book) == before
    assert (touched.touched(7, 10), touched.holds(7, 12), prices) == ((set(), set()), False, [])
    assert delta.advance(encode_market(DELTA), book, touched, prices)
    assert prices == [[-3, 5], [6]]


def test_a_book_without_a_position_is_not_advanced() -> None:
    assert delta.advance(encode_market(replace(DELTA, epoch=0, prev_seq=0)), Book(), new_ring(), None) is None


@given(update=updates())
def test_whatever_the_message_nothing_happens_unless_all_of_it_does(update: MarketMessage) -> None:
    book, expected = book_at(update.epoch, update.prev_seq, [(5, 1)]), book_at(update.epoch, update.prev_seq, [(5, 1)])
    if delta.advance(encode_market(update), book, new_ring(), None):
        assert isinstance(update, BookUpdate)
        expected.apply(update)
    assert state(book) == state(expected)


def test_a_delta_of_many_levels_may_be_left_but_not_be_done_in_part() -> None:
    for count in (63, 64, 65, 1_000):
        book, levels = book_at(7, 10, [(5, 1)]), [(ticks, 1) for ticks in range(count)]
        if delta.advance(encode_market(replace(DELTA, bids=levels)), book, new_ring(), None):
            assert len(book.bids) == count
        else:
            assert book.top(0) == ([(5, 1)], [])


@given(at=st.integers(0, 100), byte=st.integers(0, 255), cut=st.booleans())
def test_harmed_bytes_do_what_they_say_or_nothing(at: int, byte: int, cut: bool) -> None:
    """Whatever advances a book could be decoded, does to it what its message does, and goes out as that."""
    record = bytearray(encode_market(DELTA))
    assume(at < len(record))
    record[at] = byte
    harmed = bytes(record[:at] if cut else record)
    book, expected = book_at(7, 10, [(5, 1), (-3, 4)]), book_at(7, 10, [(5, 1), (-3, 4)])
    touched, prices = new_ring(), list[list[int]]()
    if delta.advance(harmed, book, touched, prices) is None:
        assert state(book) == state(expected)
        assert (touched.touched(7, 10), touched.holds(7, 12), prices) == ((set(), set()), False, [])
        return
    message = decode_market(harmed)
    assert isinstance(message, BookUpdate)
    expected.apply(message)
    assert state(book) == state(expected)
    codec = next(iter(CODECS.values()))
    (sent,) = codec.decode(delta.passed_on(harmed, 3, 0, T, codec, SCALE))
    assert sent == replace(message, stream=3, flags=0, ts_published_ns=T)


@pytest.mark.parametrize("garbage", [b"", b"\x0a", b"\x0a\x00", b"\x12\x00", b"\xff" * 20])
def test_garbage_is_left(garbage: bytes) -> None:
    book = book_at(7, 10, [(5, 1)])
    assert delta.advance(garbage, book, new_ring(), None) is None


def test_only_what_is_of_c_is_advanced() -> None:
    record, side, touched = encode_market(DELTA), Book().bids, new_ring()
    for arguments in (
        (PlainLadder(), side, touched, None),
        (side, PlainLadder(), touched, None),
        (side, side, PlainRing(9, 9), None),
        (side, side, touched, ()),
        (side, side, touched),
    ):
        with pytest.raises(TypeError):
            shortcut.advance(record, 7, 10, *arguments)  # type: ignore[arg-type]
    assert (len(side), touched.holds(7, 12)) == (0, False)


def test_nothing_is_kept() -> None:
    """Neither by what is done nor by what is left."""
    book, touched = book_at(7, 10, [(ticks, 1) for ticks in range(0, 2_000, 7)]), new_ring()
    records = [
        encode_market(
            BookUpdate(
                *(0, 7, 11 + i, 10 + i, 0, T, T + 5, 0),
                bids=[(10**12 + i % 97, i % 3), (10**12 + i % 101 + 200, 5**20)],
                asks=[(10**13 - i % 89, i % 2)],
            )
        )
        for i in range(20_000)
    ]

    def run() -> None:
        book.seq = 10
        touched.reset(7, 10)
        for record in records:
            prices: list[list[int]] = []
            assert delta.advance(record, book, touched, prices)
            assert delta.advance(record, book, touched, prices) is None

    run()
    blocks = sys.getallocatedblocks()
    for _ in range(5):
        run()
    assert sys.getallocatedblocks() - blocks < 100
    book.check()


def test_out_of_memory_is_an_error_and_nothing_has_happened() -> None:
    testing = pytest.importorskip("_testcapi")
    levels = [(ticks, 5) for ticks in range(60)]
    record = encode_market(replace(DELTA, bids=levels, asks=levels))
    tracer = sys.gettrace()
    sys.settrace(None)  # who measures coverage allocates, too
    try:
        for allocation in range(300):
            book, touched, prices = book_at(7, 10, [(5, 1)]), new_ring(), list[list[int]]()
            before = state(book)
            testing.set_nomemory(allocation, allocation + 1)
            try:
                advanced = shortcut.advance(record, 7, 10, book.bids, book.asks, touched, prices)
            except MemoryError:
                advanced = None
            finally:
                testing.remove_mem_hooks()
            if advanced is None:
                assert state(book) == before
                assert (touched.touched(7, 10), touched.holds(7, 12)) == ((set(), set()), False)
            else:
                assert (len(book.bids), len(book.asks), touched.holds(7, 12)) == (60, 60, True)
    finally:
        sys.settrace(tracer)
