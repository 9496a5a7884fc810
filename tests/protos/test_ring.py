"""The touched prices, in Python and in C: one contract, and what C can get wrong alone."""

import gc
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos.ring import PlainRing, Ring
from tests.support.native import native

New = Callable[[int, int], Ring]
prices = st.lists(st.integers(-50, 50) | st.integers(-(2**63), 2**63 - 1), max_size=6)


@pytest.fixture(scope="module", params=["python", "native"])
def new(request: pytest.FixtureRequest) -> New:
    found: New = PlainRing if request.param == "python" else native("protos.native").Ring
    return found


@pytest.fixture(scope="module")
def compiled() -> Any:  # noqa: ANN401
    return native("protos.native").Ring


class TestContract:
    """What both do."""

    @given(
        updates=st.lists(st.tuples(prices, prices), max_size=40),
        updates_max=st.integers(2, 12),
        prices_max=st.integers(1, 60),
    )
    def test_every_position_it_holds_is_answered_with_all_prices_since(
        self, new: New, updates: list[tuple[list[int], list[int]]], updates_max: int, prices_max: int
    ) -> None:
        ring: Ring = new(updates_max, prices_max)
        ring.reset(7, 1)
        for i, (bids, asks) in enumerate(updates):
            ring.add(2 + i, bids, asks)
            held = [seq for seq in range(3 + i) if ring.holds(7, seq)]
            assert held
            assert held == list(range(held[0], 3 + i)), "the newest positions are held"
            assert len(held) <= updates_max
            for seq in held:
                later = updates[seq - 1 : i + 1]
                assert ring.touched(7, seq) == (
                    {price for bids, _ in later for price in bids},
                    {price for _, asks in later for price in asks},
                )
            kept = sum(len(bids) + len(asks) for bids, asks in updates[held[0] - 1 : i + 1])
            assert kept <= max(prices_max, len(bids) + len(asks))

    def test_other_epochs_positions_between_and_zero_prove_nothing(self, new: New) -> None:
        ring = new(2_048, 8_192)
        ring.reset(7, 10)
        ring.add(20, [1], [])
        assert ring.touched(7, 10) == ({1}, set())
        for epoch, seq in ((6, 10), (8, 10), (7, 15), (7, 21), (7, 9), (7, 0)):
            assert ring.touched(epoch, seq) is None
            assert not ring.holds(epoch, seq)

    def test_a_new_one_and_a_snapshot_at_offset_zero_are_no_position(self, new: New) -> None:
        ring = new(2_048, 8_192)
        assert not ring.holds(0, 0)
        ring.reset(7, 0)
        assert not ring.holds(7, 0), "a client that was sent nothing says 0 too"

    def test_one_huge_update_leaves_its_position_alone(self, new: New) -> None:
        ring = new(100, 10)
        ring.reset(7, 1)
        ring.add(2, [1], [2])
        ring.add(3, list(range(10_000)), [5])
        assert [ring.holds(7, seq) for seq in (1, 2, 3)] == [False, False, True]
        ring.add(4, [8], [9])
        assert ring.touched(7, 3) == ({8}, {9})


@given(
    st.lists(
        st.tuples(st.just("add"), prices, prices) | st.tuples(st.just("reset"), st.integers(1, 3), st.just(0)),
        max_size=60,
    ),
    st.integers(0, 12),
    st.integers(0, 60),
)
def test_both_forget_the_same(
    compiled: Any,  # noqa: ANN401
    steps: list[tuple[str, Any, Any]],
    updates_max: int,
    prices_max: int,
) -> None:
    ours, plain = compiled(updates_max, prices_max), PlainRing(updates_max, prices_max)
    epoch = 0
    for seq, (step, one, other) in enumerate(steps, 5):
        if step == "reset":
            epoch = one
            ours.reset(epoch, seq)
            plain.reset(epoch, seq)
        else:
            ours.add(seq, one, other)
            plain.add(seq, one, other)
        for position in range(seq + 1):
            assert ours.holds(epoch, position) == plain.holds(epoch, position)
            assert ours.touched(epoch, position) == plain.touched(epoch, position)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((5, [1], ["1"]), TypeError),
        ((5, [1.5], []), TypeError),
        ((5, (1,), []), TypeError),
        ((5, [], None), TypeError),
        (("5", [], []), TypeError),
        ((5, []), TypeError),
        ((1 << 64, [], []), OverflowError),
        ((5, [1, 1 << 63], []), OverflowError),
        ((5, [1], [-(1 << 63) - 1]), OverflowError),
    ],
)
def test_what_c_refuses_was_not_added(compiled: Any, arguments: Any, error: type[Exception]) -> None:  # noqa: ANN401
    ring = compiled(10, 100)
    ring.reset(7, 1)
    ring.add(2, [3], [4])
    with pytest.raises(error):
        ring.add(*arguments)
    assert not ring.holds(7, 5)
    assert ring.touched(7, 1) == ({3}, {4})
    for wrong in ((), (1,), ("1", 1), (1, 1, 1)):
        for method in (ring.reset, ring.holds, ring.touched, compiled):
            with pytest.raises(TypeError):
                method(*wrong)


def test_nothing_is_kept(compiled: Any) -> None:  # noqa: ANN401
    """Also not the memory of one huge update."""
    ring = compiled(100, 1_000)

    def everything() -> None:
        ring.reset(7, 1)
        for seq in range(2, 300):
            ring.add(seq, [10**12 + seq], [10**13 + seq, 5])
        assert ring.touched(7, 299) == (set(), set())
        assert len(ring.touched(7, 260)[1]) == 40
        assert ring.touched(7, 2) is None
        compiled(5, 5).add(2, [10**12], [])
        ring.add(300, list(range(100_000)), [])
        with pytest.raises(TypeError):
            ring.add(301, [10**12, None], [])

    everything()
    tracemalloc.start()
    try:
        everything()
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(50):
            everything()
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] - before < 10_000
    finally:
        tracemalloc.stop()
