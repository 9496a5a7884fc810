"""Who comes back, and a hub that comes back: positions and saved states."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from protos.codec import Codec
from protos.messages import (
    BookState,
    BookUpdate,
    Channel,
    Flag,
    InstrumentState,
    Notice,
    NoticeCode,
    Reason,
    Resume,
    Scale,
    Trade,
    TradesUpdate,
)
from streamer.limits import Limits
from streamer.streams import StreamKey
from tests.support.world import BBO, BOOK, NAME, STATUS, TRADES, World, kinds


def test_trades_resume_exactly_or_say_what_is_missing(maker: Callable[..., Any], codec: Codec) -> None:
    world = World(maker, codec, Limits(trades_kept=3))
    trades = [world.maker.trade() for _ in range(6)]
    seqs = [trade.seq for trade in trades]
    world.apply(*trades)
    epoch = world.maker.epoch
    subscribed, *missed = world.read(world.join(TRADES, resume=Resume(epoch, seqs[3]), take=False))
    assert subscribed.resumed  # type: ignore[union-attr]
    assert [message.seq for message in missed] == seqs[4:]  # type: ignore[union-attr]
    assert [message.prev_seq for message in missed] == seqs[3:5]  # type: ignore[union-attr]
    subscribed, hole, snapshot = world.read(world.join(TRADES, resume=Resume(epoch, seqs[0]), take=False))
    assert not subscribed.resumed  # type: ignore[union-attr]
    assert hole == Notice(NoticeCode.SKIPPED, 1, epoch, seqs[0], seqs[5])
    assert isinstance(snapshot, TradesUpdate)
    assert [trade.trade_id for trade in snapshot.trades] == [f"{epoch}.{seq}.0" for seq in seqs[3:]]
    _, hole, _ = world.read(world.join(TRADES, resume=Resume(epoch - 1, 7), take=False))
    assert hole == Notice(NoticeCode.SKIPPED, 1, epoch, 0, seqs[5])
    _, current = world.read(world.join(TRADES, resume=Resume(epoch, seqs[5]), take=False))
    assert kinds([current]) == ["RECOVERED 1"], "nothing is missing"
    counters = world.hub.counters
    assert (counters.resumes_delta, counters.resumes_snapshot) == (2, 2)


def test_trades_of_another_scale_are_not_replayed(world: World) -> None:
    first = world.maker.trade()
    world.apply(first)
    finer = TradesUpdate(epoch=world.maker.epoch, seq=first.seq + 1, prev_seq=first.seq, scale=Scale(-4, -4))
    finer.trades = [Trade(1, 1)]
    world.apply(finer)
    _, hole, snapshot = world.read(world.join(TRADES, resume=Resume(first.epoch, first.seq), take=False))
    assert kinds([hole]) == ["SKIPPED 1"]
    assert len(snapshot.trades) == 1  # type: ignore[union-attr]
    assert world.hub.last_trades(NAME) == finer.trades


def test_resuming_a_book_merges_the_updates_between(world: World) -> None:
    maker = world.maker
    world.apply(maker.snapshot())
    resume = Resume(maker.epoch, maker.seq)
    world.apply(*(maker.delta() for _ in range(5)))
    subscribed, merged = world.read(world.join(BOOK, resume=resume, take=False))
    assert subscribed.resumed  # type: ignore[union-attr]
    assert isinstance(merged, BookUpdate)
    assert (merged.prev_seq, merged.seq) == (resume.seq, maker.seq)
    assert merged.flags & (Flag.SNAPSHOT | Flag.CONFLATED) == Flag.CONFLATED


@pytest.mark.parametrize("channel", [Channel.BBO, Channel.STATUS])
def test_resuming_a_state_gets_the_latest(world: World, channel: Channel) -> None:
    maker = world.maker
    world.apply(maker.snapshot(), maker.quote(), maker.status(BookState.SYNCED))
    have = Resume(maker.epoch, maker.chains[channel])
    world.apply(maker.quote(), maker.status(BookState.STALE))
    subscribed, update = world.read(world.join(StreamKey(NAME, channel), resume=have, take=False))
    assert subscribed.resumed  # type: ignore[union-attr]
    assert update.prev_seq == have.seq  # type: ignore[union-attr]
    assert update.flags & Flag.CONFLATED  # type: ignore[union-attr]
    subscribed, update = world.read(
        world.join(StreamKey(NAME, channel), resume=Resume(have.epoch - 1, have.seq), take=False)
    )
    assert not subscribed.resumed  # type: ignore[union-attr]
    assert update.flags & Flag.SNAPSHOT  # type: ignore[union-attr]


def state_of(maker: Any) -> InstrumentState:  # noqa: ANN401
    book = maker.snapshot()
    return InstrumentState(1, book, b"", maker.status(BookState.SYNCED), maker.quote(), maker.trade(2))


def test_load_serves_what_was_saved(world: World) -> None:
    state = state_of(world.maker)
    world.hub.load(NAME, state)
    assert world.hub.instruments() == [NAME]
    assert world.hub.book(NAME).top(0) == world.maker.book.top(0)  # type: ignore[union-attr]
    assert world.hub.status(NAME).state is BookState.SYNCED  # type: ignore[union-attr]
    assert len(world.hub.last_trades(NAME)) == 2
    world.apply(world.maker.delta(), world.maker.trade(), world.maker.quote(), world.maker.status(BookState.STALE))
    assert world.hub.counters.chain_breaks == 0, "the market topic continues what was saved"


def test_load_over_a_running_hub_takes_only_what_is_newer_and_tells(world: World) -> None:
    old = state_of(world.maker)
    world.apply(world.maker.snapshot(), world.maker.trade(), world.maker.quote(), world.maker.status(BookState.SYNCED))
    outbox = world.join(BOOK, TRADES, BBO, STATUS)
    world.hub.load(NAME, old)
    assert world.read(outbox) == []
    world.hub.gap(NAME, Reason.OFFSETS_LOST, 1)
    world.read(outbox)
    new = InstrumentState(
        2, world.maker.snapshot(new_epoch=False), b"", world.maker.status(BookState.SYNCED), None, world.maker.trade()
    )
    assert new.trades is not None
    world.hub.load(NAME, new)
    messages = world.read(outbox)
    assert sorted(kinds(messages)) == ["BookUpdate", "RECOVERED 1", "SKIPPED 2", "StatusUpdate"]
    (skipped,) = [m for m in messages if isinstance(m, Notice) and m.code is NoticeCode.SKIPPED]
    assert (skipped.epoch, skipped.to_seq) == (new.trades.epoch, new.trades.seq)
    world.apply(world.maker.trade())
    (trade,) = world.read(outbox)
    assert trade.prev_seq == skipped.to_seq  # type: ignore[union-attr]
    assert world.hub.instruments() == [NAME]


def test_a_state_beyond_a_gap_at_our_own_position_ends_the_gap(world: World) -> None:
    world.apply(world.maker.snapshot(), world.maker.status(BookState.SYNCED))
    outbox = world.join(BOOK)
    world.hub.gap(NAME, Reason.OFFSETS_LOST, 1)
    world.read(outbox)
    saved = world.hub.book(NAME)
    assert saved is not None
    bids, asks = saved.top(0)
    state = BookUpdate(0, saved.epoch, saved.seq, 0, Flag.SNAPSHOT | Flag.GAPPED, bids=bids[::-1], asks=asks)
    state.scale = saved.scale
    world.hub.load(NAME, InstrumentState(1, replace(state)))
    assert world.hub.status(NAME).state is BookState.GAPPED  # type: ignore[union-attr]
    state.flags = Flag.SNAPSHOT
    world.hub.load(NAME, InstrumentState(1, replace(state)))
    assert world.hub.status(NAME).state is BookState.SYNCED  # type: ignore[union-attr]
    assert sorted(kinds(world.read(outbox))) == ["BookUpdate", "RECOVERED 1"]
    world.apply(world.maker.delta())
    assert kinds(world.read(outbox)) == ["BookUpdate"]


def test_load_of_nothing_is_nothing(world: World) -> None:
    world.hub.load(NAME, InstrumentState(1))
    assert world.hub.book(NAME) is None
    assert world.hub.knows(NAME)


def test_a_lost_epoch_of_trades_is_announced_in_the_new_one(world: World) -> None:
    maker = world.maker
    world.apply(maker.snapshot(), maker.trade())
    outbox = world.join(TRADES)
    world.apply(maker.snapshot())
    missing = maker.trade()
    world.apply(maker.trade())
    hole, trade = world.read(outbox)
    assert hole == Notice(NoticeCode.SKIPPED, 1, maker.epoch, 0, missing.seq)
    assert trade.prev_seq == missing.seq  # type: ignore[union-attr]
