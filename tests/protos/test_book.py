"""The book against a naive model: two dictionaries, sorted when asked."""

from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from protos.book import DIGEST_DEPTH, Book, InvariantError, digest_of
from protos.ladder import PlainLadder
from protos.messages import BookUpdate, Flag, Levels, Scale

pytestmark = pytest.mark.usefixtures("both")

prices = st.integers(-20, 20) | st.integers(-(10**18), 10**18)
levels = st.dictionaries(prices, st.just(0) | st.integers(1, 9), max_size=60).map(lambda found: sorted(found.items()))
depths = st.sampled_from([1, 2, 5, 10, 25, 50])


class BookMachine(RuleBasedStateMachine):
    """Any order of snapshots, deltas and cuts."""

    @initialize()
    def start(self) -> None:
        self.book = Book()
        self.bids: dict[int, int] = {}
        self.asks: dict[int, int] = {}
        self.position = (0, 0)

    @rule(bids=levels, asks=levels, seq=st.integers(1, 99))
    def snapshot(self, bids: Levels, asks: Levels, seq: int) -> None:
        self.book.apply(
            BookUpdate(epoch=7, seq=seq, flags=int(Flag.SNAPSHOT), bids=bids, asks=asks, scale=Scale(-1, -2))
        )
        self.bids = {price: lots for price, lots in bids if lots}
        self.asks = {price: lots for price, lots in asks if lots}
        self.position = (7, seq)

    @rule(bids=levels, asks=levels, seq=st.integers(1, 99))
    def delta(self, bids: Levels, asks: Levels, seq: int) -> None:
        self.book.apply(BookUpdate(epoch=8, seq=seq, bids=bids, asks=asks))
        for model, changes in ((self.bids, bids), (self.asks, asks)):
            model.update(changes)
            for price in [price for price, lots in model.items() if not lots]:
                del model[price]
        self.position = (8, seq)

    @rule(depth=depths)
    def cut(self, depth: int) -> None:
        self.book.cut(depth)
        self.bids = dict(sorted(self.bids.items(), reverse=True)[:depth])
        self.asks = dict(sorted(self.asks.items())[:depth])

    @invariant()
    def the_book_is_the_model(self) -> None:
        book = self.book
        book.check()
        best_bids = sorted(self.bids.items(), reverse=True)
        best_asks = sorted(self.asks.items())
        assert book.top(0) == (best_bids, best_asks)
        assert book.bids.levels() == best_bids[::-1]
        assert (len(book.bids), len(book.asks)) == (len(best_bids), len(best_asks))
        for depth in (1, 3, DIGEST_DEPTH, 50):
            assert book.top(depth) == (best_bids[:depth], best_asks[:depth])
            shown = min(depth, DIGEST_DEPTH)
            assert book.digest(depth) == digest_of(best_bids[:shown], best_asks[:shown])
        assert book.digest(0) == book.digest() == book.digest(DIGEST_DEPTH)
        assert book.crossed == bool(best_bids and best_asks and best_bids[0][0] >= best_asks[0][0])
        assert (book.epoch, book.seq) == self.position


def test_the_book_is_its_model() -> None:
    run_state_machine_as_test(BookMachine, settings=settings(max_examples=40, stateful_step_count=20))


def test_the_digest_interleaves_while_both_sides_last() -> None:
    assert digest_of([(10, 1), (9, 2)], [(11, 3)]) == crc32(b"10:1:11:3:9:2")
    assert digest_of([(-10, 1)], [(11, 3), (12, 4), (13, 5)]) == crc32(b"-10:1:11:3:12:4:13:5")
    assert digest_of([], [(11, 3), (12, 4)]) == crc32(b"11:3:12:4")
    assert digest_of([], []) == crc32(b"")


@given(levels, levels)
def test_the_digest_is_the_documented_text(bids: Levels, asks: Levels) -> None:
    expected: list[str] = []
    for i in range(max(len(bids), len(asks))):
        expected += [f"{side[i][0]}:{side[i][1]}" for side in (bids, asks) if i < len(side)]
    assert digest_of(bids, asks) == crc32(":".join(expected).encode())


def test_the_scale_stays_until_another_comes() -> None:
    book = Book()
    book.apply(BookUpdate(flags=int(Flag.SNAPSHOT), scale=Scale(-2, -5)))
    book.apply(BookUpdate(bids=[(1, 1)]))
    assert book.scale == Scale(-2, -5)


@pytest.mark.parametrize(
    ("prices", "lots"),
    [
        ([2, 1], {1: 1, 2: 1}),
        ([1, 1], {1: 1}),
        ([99, 100, 100], {99: 1, 100: 1}),
        ([1, 2], {1: 1}),
        ([1], {1: 0}),
        ([1], {1: -1}),
        ([1], {2: 1}),
    ],
)
@pytest.mark.parametrize("name", ["bids", "asks"])
def test_check_finds_a_broken_book(name: str, prices: list[int], lots: dict[int, int]) -> None:
    book, side = Book(), PlainLadder()
    side._prices, side._lots = prices, lots
    setattr(book, name, side)
    with pytest.raises(InvariantError, match=name):
        book.check()


def test_a_book_of_many_levels_is_a_book() -> None:
    book = Book()
    book.apply(BookUpdate(flags=Flag.SNAPSHOT, bids=[(price, 1) for price in range(1_000)]))
    book.check()


def test_only_the_flag_of_a_snapshot_replaces() -> None:
    book = Book()
    book.apply(BookUpdate(flags=Flag.SNAPSHOT, bids=[(1, 5)], asks=[(9, 5)]))
    for flag in (Flag.CONFLATED, Flag.CROSSED, Flag.STALE, Flag.GAPPED):
        book.apply(BookUpdate(flags=flag, bids=[(2, int(flag))]))
    assert book.bids.levels() == [(1, 5), (2, int(Flag.GAPPED))]


def test_a_digest_is_of_25_levels() -> None:
    book = Book()
    book.apply(BookUpdate(flags=Flag.SNAPSHOT, asks=[(price, 1) for price in range(1, 31)]))
    assert book.digest() == book.digest(25) == digest_of([], [(price, 1) for price in range(1, 26)])


def test_a_locked_book_is_crossed() -> None:
    book = Book()
    book.apply(BookUpdate(epoch=1, seq=1, flags=Flag.SNAPSHOT, bids=[(100, 1)], asks=[(100, 1)]))
    assert book.crossed
