from hypothesis import given
from hypothesis import strategies as st

from protos.book import prices_of
from protos.messages import Level
from streamer.limits import Limits
from streamer.since import Ring, absolute

levels = st.lists(st.tuples(st.integers(-50, 50), st.integers(0, 3)), max_size=6)


@given(
    updates=st.lists(st.tuples(levels, levels), max_size=40),
    updates_max=st.integers(2, 12),
    prices_max=st.integers(1, 60),
)
def test_every_position_it_holds_is_answered_with_all_prices_since(
    updates: list[tuple[list[Level], list[Level]]], updates_max: int, prices_max: int
) -> None:
    ring = Ring(Limits(since_updates_max=updates_max, since_prices_max=prices_max))
    ring.reset(7, 1)
    for i, (bids, asks) in enumerate(updates):
        ring.add(2 + i, prices_of(bids), prices_of(asks))
        held = [seq for seq in range(3 + i) if ring.holds(7, seq)]
        assert held
        assert held == list(range(held[0], 3 + i)), "the newest positions are held"
        assert len(held) <= updates_max
        for seq in held:
            later = updates[seq - 1 : i + 1]
            assert ring.touched(7, seq) == (
                {price for bids, _ in later for price, _ in bids},
                {price for _, asks in later for price, _ in asks},
            )
        prices = sum(len(bids) + len(asks) for bids, asks in updates[held[0] - 1 : i + 1])
        assert prices <= max(prices_max, len(bids) + len(asks))


def test_other_epochs_positions_between_and_zero_prove_nothing() -> None:
    ring = Ring(Limits())
    ring.reset(7, 10)
    ring.add(20, [1], [])
    assert ring.touched(7, 10) == ({1}, set())
    for epoch, seq in ((6, 10), (8, 10), (7, 15), (7, 21), (7, 9), (7, 0)):
        assert ring.touched(epoch, seq) is None
        assert not ring.holds(epoch, seq)


def test_a_snapshot_at_offset_zero_is_no_position() -> None:
    ring = Ring(Limits())
    ring.reset(7, 0)
    assert not ring.holds(7, 0), "a client that was sent nothing says 0 too"


def test_absolute_sizes_ascend_and_gone_levels_have_no_lots() -> None:
    assert absolute({5, -2, 9}, {5: 3, -2: 1}) == [(-2, 1), (5, 3), (9, 0)]
