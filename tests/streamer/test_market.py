import pytest

from protos.messages import BookState, BookUpdate, Flag, Scale, Trade, TradesUpdate
from streamer.limits import Limits
from streamer.market import Chain, Link, Market


@pytest.mark.parametrize(
    ("update", "link"),
    [
        ((4, 99, 0), Link.OLD_EPOCH),
        ((5, 10, 9), Link.DUPLICATE),
        ((5, 9, 0), Link.DUPLICATE),
        ((5, 11, 10), Link.NEXT),
        ((5, 11, 0), Link.START),
        ((5, 12, 11), Link.BROKEN),
        ((5, 12, 9), Link.BROKEN),
        ((6, 3, 0), Link.START),
        ((6, 3, 10), Link.BROKEN),
    ],
)
def test_links_of_a_chain_at_epoch_5_seq_10(update: tuple[int, int, int], link: Link) -> None:
    chain = Chain()
    chain.move(5, 10)
    assert chain.link(*update) is link


def book(epoch: int, seq: int, prev_seq: int, flags: int = 0) -> BookUpdate:
    return BookUpdate(epoch=epoch, seq=seq, prev_seq=prev_seq, flags=flags, bids=[(1, 1)], asks=[(2, 1)])


def test_only_a_snapshot_begins_a_book_and_ends_a_gap() -> None:
    market = Market("x:y:Z", Limits())
    assert market.state is BookState.WAITING
    assert market.link_book(book(5, 10, 0)) is Link.BROKEN, "a delta with prev_seq 0 is no snapshot"
    market.apply_book(book(5, 10, 0, Flag.SNAPSHOT))
    assert market.state is BookState.SYNCED
    assert market.link_book(book(5, 11, 10)) is Link.NEXT
    assert market.link_book(book(5, 12, 11)) is Link.BROKEN
    assert market.link_book(book(5, 10, 0, Flag.SNAPSHOT)) is Link.DUPLICATE
    assert market.link_book(book(4, 11, 0, Flag.SNAPSHOT)) is Link.OLD_EPOCH
    market.gapped = market.stale = True
    assert market.state is BookState.GAPPED
    assert market.link_book(book(5, 11, 10)) is Link.BROKEN, "the chain is not continued past a gap"
    assert market.link_book(book(5, 11, 0, Flag.SNAPSHOT)) is Link.START
    market.gapped = False
    assert market.state is BookState.STALE


def trades(seq: int, number: int, scale: Scale | None = None) -> TradesUpdate:
    return TradesUpdate(epoch=1, seq=seq, trades=[Trade(seq, i) for i in range(number)], scale=scale)


def test_the_tape_is_bounded_and_speaks_one_scale() -> None:
    market = Market("x:y:Z", Limits(trades_kept=5))
    market.learn(Scale(-1, 0))
    for seq in range(1, 6):
        market.keep_trades(trades(seq, 2))
    assert [update.seq for update in market.tape] == [4, 5]
    assert [(trade.ticks, trade.lots) for trade in market.last_trades(3)] == [(4, 1), (5, 0), (5, 1)]
    market.keep_trades(trades(6, 9))
    assert [update.seq for update in market.tape] == [6], "one update is kept whatever its size"
    market.learn(Scale(-2, 0))
    market.keep_trades(trades(7, 1))
    assert [trade.ticks for trade in market.last_trades(100)] == [7]
    market.forget_trades()
    assert market.last_trades(100) == []
