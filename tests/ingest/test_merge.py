"""A merged delta against the plain way: apply, then cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.merge import merge
from protos import ladder
from protos.book import Book
from protos.messages import Levels

pytestmark = pytest.mark.usefixtures("loops")

levels = st.lists(st.tuples(st.integers(1, 12), st.integers(0, 3)), max_size=12)


def side_of(contents: Levels) -> ladder.Ladder:
    side = ladder.new_ladder()
    side.replace(contents)
    return side


@given(levels, levels, st.integers(0, 6), st.booleans())
def test_it_is_apply_then_cut_and_what_comes_out_says_so(
    before: Levels, changes: Levels, depth: int, is_bid: bool
) -> None:
    plain = Book()
    wanted = plain.bids if is_bid else plain.asks
    wanted.replace(before)
    if depth:
        plain.cut(depth)
    start = wanted.levels()
    side, reader = side_of(start), side_of(start)
    wanted.apply(changes)
    if depth:
        plain.cut(depth)

    undo: Levels = []
    sent = merge(side, sorted(dict(changes).items()), depth, is_bid, undo)

    assert side.levels() == wanted.levels()
    assert [ticks for ticks, _ in sent] == sorted({ticks for ticks, _ in sent})
    assert all(lots or reader.get(ticks, 0) for ticks, lots in sent)
    reader.apply(sent)
    assert reader.levels() == wanted.levels()
    side.apply(undo)
    assert side.levels() == start
