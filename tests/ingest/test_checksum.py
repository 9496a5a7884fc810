"""The venue's checksum, recomputed from ticks, lots and scale alone: every one in the captures."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.checksum import CHECKSUMS, kraken_checksum, okx_checksum
from ingest.events import BookEvent, TextLevel
from ingest.mappers import mapper_for
from protos.book import Book
from protos.fixed import scaled, split_decimal, trim
from protos.messages import BookUpdate, Flag, Levels, Scale
from tests.support.captures import Tick, ticks_of


def book_events(ticks: list[Tick]) -> Iterator[tuple[Tick, BookEvent]]:
    for tick in ticks:
        for event in mapper_for(tick.feed).parse(tick.feed, tick.instrument, tick.value):
            if isinstance(event, BookEvent):
                yield tick, event


def exponent(text: str, trimmed: bool) -> int:
    mantissa, exponent = split_decimal(text)
    return trim(mantissa, exponent)[1] if trimmed else exponent


def scales_of(ticks: list[Tick]) -> dict[str, Scale]:
    """The finest decimals of each instrument's book."""
    finest: defaultdict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for tick, event in book_events(ticks):
        trimmed = mapper_for(tick.feed).TRIM
        for price, size in (*event.bids, *event.asks):
            have = finest[tick.instrument]
            finest[tick.instrument] = (min(have[0], exponent(price, trimmed)), min(have[1], exponent(size, trimmed)))
    return {instrument: Scale(*exponents) for instrument, exponents in finest.items()}


def integers(levels: Sequence[TextLevel], scale: Scale) -> Levels:
    return [(scaled(price, scale.price_exponent), scaled(size, scale.size_exponent)) for price, size in levels]


@pytest.mark.parametrize(("venue", "expected", "without"), [("kraken", 2551, 10), ("okx", 290, 0)])
def test_every_checksum_of_the_capture(venue: str, expected: int, without: int) -> None:
    scales, books, depths, seen = scales_of(ticks_of(venue)), defaultdict(Book), {}, Counter()
    for tick, event in book_events(ticks_of(venue)):
        book, scale = books[tick.instrument], scales[tick.instrument]
        bids, asks = integers(event.bids, scale), integers(event.asks, scale)
        book.apply(BookUpdate(flags=Flag.SNAPSHOT if event.snapshot else 0, bids=bids, asks=asks))
        depths[tick.instrument] = event.depth or depths.get(tick.instrument, 0)
        if depths[tick.instrument]:
            book.cut(depths[tick.instrument])
        matches = None if event.checksum is None else CHECKSUMS[venue](book, scale) == event.checksum
        seen[matches] += 1
    assert seen == Counter({True: expected, None: without})


def book_of(bids: Levels, asks: Levels) -> Book:
    book = Book()
    book.apply(BookUpdate(flags=Flag.SNAPSHOT, bids=bids, asks=asks))
    return book


def test_kraken_is_asks_then_bids_without_dots_and_leading_zeros() -> None:
    """The text of the venue's guide: price 0.05000 and size 0.00000500 become 5000500."""
    book = book_of(bids=[(4990, 7)], asks=[(5000, 500), (5005, 120)])
    assert kraken_checksum(book, Scale(-5, -8)) == crc32(b"5000500" + b"5005120" + b"49907")


def test_okx_interleaves_and_appends_the_longer_side() -> None:
    """The two cases of the venue's documentation: equal depth, and a side that is shorter."""
    book = book_of(bids=[(33661, 6), (33663, 5)], asks=[(33672, 10)])
    assert okx_checksum(book, Scale(-1, 0)) == crc32(b"3366.3:5:3367.2:10:3366.1:6")


@given(st.integers(1, 10**12), st.integers(1, 10**12), st.integers(-8, 0), st.integers(-8, 0))
def test_okx_text_does_not_depend_on_how_fine_the_scale_is(
    ticks_: int, lots: int, price_exponent: int, size_exponent: int
) -> None:
    coarse = okx_checksum(book_of([(ticks_, lots)], []), Scale(price_exponent, size_exponent))
    finer = Scale(price_exponent - 1, size_exponent - 2)
    assert okx_checksum(book_of([(ticks_ * 10, lots * 100)], []), finer) == coarse


@pytest.mark.parametrize("venue", CHECKSUMS)
def test_a_single_wrong_lot_is_seen(venue: str) -> None:
    right = book_of([(100 + i, 5) for i in range(10)], [(200 + i, 5) for i in range(10)])
    wrong = book_of([(100 + i, 5 + (i == 5)) for i in range(10)], [(200 + i, 5) for i in range(10)])
    assert CHECKSUMS[venue](right, Scale(-1, -1)) != CHECKSUMS[venue](wrong, Scale(-1, -1))
