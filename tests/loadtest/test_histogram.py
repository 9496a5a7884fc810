"""Percentiles against the sorted list; subscriptions spread evenly."""

from collections import Counter
from math import ceil

from hypothesis import given
from hypothesis import strategies as st

from loadtest.histogram import Histogram
from loadtest.instruments import market, subscriptions
from protos.book import Book
from protos.messages import Flag


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=300), st.sampled_from([0.0, 0.5, 0.9, 0.99, 0.999]))
def test_a_quantile_is_within_a_hundredth_of_the_exact_one(values: list[int], q: float) -> None:
    histogram = Histogram()
    histogram.record(values)
    exact = sorted(values)[max(0, ceil(q * len(values) - 1e-9) - 1)]
    assert exact * (1 - 1 / 128) <= histogram.quantile(q) <= exact
    assert (histogram.count, histogram.max) == (len(values), max(values))


def test_histograms_add_up() -> None:
    one, other = Histogram(), Histogram()
    one.record([1, 2, 3])
    other.record([1_000_000])
    one.add(other)
    assert (one.count, one.max, one.quantile(0.5)) == (4, 1_000_000, 2)
    assert Histogram().summary_ms() == {"p50_ms": 0, "p99_ms": 0, "p999_ms": 0, "max_ms": 0}


def test_each_client_takes_different_instruments_and_each_instrument_as_many_clients() -> None:
    chosen = subscriptions(100, 50, 20)
    assert {len(set(mine)) for mine in chosen} == {20}
    listeners = Counter(i for mine in chosen for i in mine)
    assert max(listeners.values()) - min(listeners.values()) <= 6


def test_the_synthetic_market_is_a_chain_that_a_book_can_follow() -> None:
    (instrument,) = market(1, 7)
    book = Book()
    book.apply(instrument.snapshot(1))
    for due_ns in range(200):
        update = instrument.delta(due_ns)
        assert (update.epoch, update.prev_seq) == (book.epoch, book.seq)
        assert not update.flags & Flag.SNAPSHOT
        book.apply(update)
        book.check()
    assert not book.crossed
    assert len(book.bids) > 10
