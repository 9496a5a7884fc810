"""A record that a book advances by does what its message does, and goes out as its message would, to the byte."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from protos import delta
from protos.book import Book, prices_of
from protos.codec import CODECS
from protos.messages import BookUpdate, Flag, MarketMessage, Scale, TradesUpdate
from protos.records import decode_market, encode_market
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
        assert delta.advance(encode_market(DELTA), book_at(7, 10)) is None


def book_at(epoch: int, seq: int, bids: Any = (), asks: Any = ()) -> Book:  # noqa: ANN401 - levels
    book = Book()
    book.apply(BookUpdate(epoch=epoch, seq=seq, flags=Flag.SNAPSHOT, bids=list(bids), asks=list(asks)))
    return book


def state(book: Book) -> object:
    book.check()
    return book.epoch, book.seq, book.top(0), book.scale


@given(update=deltas(), bids=sides, asks=sides)
def test_the_book_is_what_the_message_makes_of_it(update: BookUpdate, bids: Any, asks: Any) -> None:  # noqa: ANN401
    ours, expected = book_at(7, 10, bids, asks), book_at(7, 10, bids, asks)
    advanced = delta.advance(encode_market(update), ours)
    expected.apply(update)
    assert state(ours) == state(expected)
    assert advanced == (
        *(update.seq, update.flags, update.ts_event_ns, update.ts_received_ns),
        *(prices_of(update.bids), prices_of(update.asks)),
    )


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
    assert delta.advance(encode_market(other), book) is None
    assert state(book) == before
    assert delta.advance(encode_market(DELTA), book)


def test_a_book_without_a_position_is_not_advanced() -> None:
    assert delta.advance(encode_market(replace(DELTA, epoch=0, prev_seq=0)), Book()) is None


@given(update=updates())
def test_whatever_the_message_nothing_happens_unless_all_of_it_does(update: MarketMessage) -> None:
    book, expected = book_at(update.epoch, update.prev_seq, [(5, 1)]), book_at(update.epoch, update.prev_seq, [(5, 1)])
    if delta.advance(encode_market(update), book):
        assert isinstance(update, BookUpdate)
        expected.apply(update)
    assert state(book) == state(expected)


def test_a_delta_of_many_levels_may_be_left_but_not_be_done_in_part() -> None:
    for count in (63, 64, 65, 1_000):
        book, levels = book_at(7, 10, [(5, 1)]), [(ticks, 1) for ticks in range(count)]
        if delta.advance(encode_market(replace(DELTA, bids=levels)), book):
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
    advanced = delta.advance(harmed, book)
    if advanced is None:
        assert state(book) == state(expected)
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
    assert delta.advance(garbage, book) is None
