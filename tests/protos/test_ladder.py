"""One side of a book, in Python and in C: one contract, and what C can get wrong alone."""

import gc
import tracemalloc
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos.ladder import END, Ladder, PlainLadder, absolute
from protos.messages import Levels
from protos.wire import VALUE_MAX
from tests.support.native import native

prices = st.integers(-30, 30) | st.integers(-VALUE_MAX, VALUE_MAX)
sizes = st.integers(0, 3) | st.just(VALUE_MAX)
some_levels = st.lists(st.tuples(prices, sizes), max_size=25)
once_each = st.dictionaries(prices, sizes, max_size=25).flatmap(lambda lots: st.permutations(list(lots.items())))
steps = st.lists(
    st.tuples(st.sampled_from(["apply", "replace"]), some_levels) | st.tuples(st.just("merge"), once_each), max_size=8
)


@pytest.fixture(scope="module", params=["python", "native"])
def new(request: pytest.FixtureRequest) -> Callable[[], Ladder]:
    found: Callable[[], Ladder] = PlainLadder if request.param == "python" else native("protos.native").Ladder
    return found


@pytest.fixture(scope="module")
def compiled() -> Callable[[], Any]:
    ladder: Callable[[], Any] = native("protos.native").Ladder
    return ladder


class TestContract:
    """What both do."""

    def test_an_empty_one_has_no_ends(self, new: Callable[[], Ladder]) -> None:
        side = new()
        assert (len(side), side.levels(), side.part(0, 0), side.prices(0, 0)) == (0, [], [], [])
        assert (side.lowest, side.highest) == (None, None)
        assert side.get(5, 7) == 7

    def test_a_snapshot_takes_any_order(self, new: Callable[[], Ladder]) -> None:
        side = new()
        side.replace([(3, 1), (1, 1), (2, 0), (4, 2), (3, 5), (4, 0)])
        assert side.levels() == [(1, 1), (3, 5)]

    @given(steps=steps)
    def test_it_is_a_dictionary_in_order(self, new: Callable[[], Ladder], steps: list[tuple[str, Levels]]) -> None:
        side: Ladder = new()
        model: dict[int, int] = {}
        for name, levels in steps:
            if name == "merge":
                undo = [(7, 7)]
                assert side.merge(levels, undo) == [(price, lots) for price, lots in levels if lots or price in model]
                assert undo == [
                    (7, 7),
                    *((price, model.get(price, 0)) for price, lots in levels if lots or price in model),
                ]
            elif name == "apply":
                side.apply(levels)
            else:
                side.replace(levels)
                model.clear()
            model.update(levels)
            model = {price: lots for price, lots in sorted(model.items()) if lots}
            expected = list(model.items())
            assert side.levels() == side.part(0, END) == expected
            assert len(side) == len(expected)
            for start, stop in ((0, 2), (1, 4), (-3, -1), (-2, END), (-40, 2), (2, 1), (40, END), (0, -40)):
                assert side.part(start, stop) == expected[start:stop]
                assert side.prices(start, stop) == list(model)[start:stop]
            assert (side.lowest, side.highest) == (min(model, default=None), max(model, default=None))
            asked = [*model, *range(-30, 31)][::-1]
            assert [side.get(price, -1) for price in asked] == [model.get(price, -1) for price in asked]

    @given(start=some_levels, changes=once_each)
    def test_what_undoes_a_merge_can_be_applied(
        self, new: Callable[[], Ladder], start: Levels, changes: Levels
    ) -> None:
        side: Ladder = new()
        side.replace(start)
        before, undo = side.levels(), []
        side.merge(changes, undo)
        side.apply(undo)
        assert side.levels() == before

    @pytest.mark.parametrize("low", [0, 3_000])
    def test_it_grows_at_either_end_and_in_between(self, new: Callable[[], Ladder], low: int) -> None:
        side, model, random = new(), dict[int, int](), Random(7)
        for i in range(3_000):
            changes = {low - i if low else i: 1, random.randrange(3_000): random.randrange(3)}
            model.update(changes)
            side.merge(sorted(changes.items()), [])
        assert side.levels() == [(price, lots) for price, lots in sorted(model.items()) if lots]


@pytest.mark.parametrize("method", ["merge", "apply", "replace"])
@pytest.mark.parametrize(
    ("levels", "error"),
    [
        (((1, 1),), TypeError),
        ([[1, 1]], TypeError),
        ([(1,)], TypeError),
        ([(1, "1")], TypeError),
        ([("1", 1)], TypeError),
        ([(1 << 64, 1)], OverflowError),
        ([(1, 1 << 64)], OverflowError),
    ],
)
def test_c_refuses_what_are_no_levels(
    compiled: Callable[[], Any],
    method: str,
    levels: Any,  # noqa: ANN401
    error: type[Exception],
) -> None:
    side = compiled()
    with pytest.raises(error):
        getattr(side, method)(levels, *([[]] if method == "merge" else []))
    assert side.levels() == []


def test_a_snapshot_that_c_refuses_changes_nothing(compiled: Callable[[], Any]) -> None:
    side = compiled()
    side.replace([(1, 5), (2, 5)])
    for levels in ([(7, 1), None], None):
        with pytest.raises(TypeError):
            side.replace(levels)
    assert side.levels() == [(1, 5), (2, 5)]


def test_c_refuses_other_arguments(compiled: Callable[[], Any]) -> None:
    side = compiled()
    for wrong in ((), (1,), (0, 1, 2), ("0", 1), (0, None)):
        for ask in (side.part, side.prices):
            with pytest.raises(TypeError):
                ask(*wrong)
    for wrong in ((), (1,), (1, 2, 3), ("1", 2), (None, 2)):
        with pytest.raises(TypeError):
            side.get(*wrong)
    with pytest.raises(OverflowError):
        side.get(1 << 64, 0)
    with pytest.raises(TypeError):
        type(side)(1)


def test_the_numbers_of_64_bits_are_held(compiled: Callable[[], Any]) -> None:
    side, low, high = compiled(), -(1 << 63), (1 << 63) - 1
    side.apply([(high, high), (low, high), (-1, 1), (0, 1)])
    assert side.levels() == [(low, high), (-1, 1), (0, 1), (high, high)]
    assert [side.get(price, 0) for price in (low, high, -1)] == [high, high, 1]
    side.apply([(low, 0), (high, 0)])
    assert side.levels() == [(-1, 1), (0, 1)]


def test_nothing_is_kept(compiled: Callable[[], Any]) -> None:
    """Neither by what succeeds nor by what fails."""

    def everything() -> None:
        side, undo = compiled(), []
        side.replace([(3000005, 7000)])
        for changes in ([(3000000, 100075), (3000015, 100025)], [(3000000, 0), (3000010, 5000)]):
            side.merge(changes, undo)
        side.apply(undo)
        side.replace([*side.levels(), *side.part(0, 0)])
        assert [side.get(price, 0) for price in side.prices(0, END)] == [lots for _, lots in side.levels()]
        for bad in ([(3000000, 7000), (1 << 64, 1)], [(3000000, "1")]):
            for refuse in (side.replace, side.apply, lambda levels: side.merge(levels, undo)):
                with pytest.raises((OverflowError, TypeError)):
                    refuse(bad)

    for _ in range(10):
        everything()
    tracemalloc.start()
    try:
        everything()
        gc.collect()  # `raises` makes cycles
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(500):
            everything()
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] - before < 10_000
    finally:
        tracemalloc.stop()


def test_absolute_sizes_ascend_and_gone_levels_have_no_lots() -> None:
    assert absolute({5, -2, 9}, {5: 3, -2: 1}.get) == [(-2, 1), (5, 3), (9, 0)]
