"""What the hub promises, one scenario each; the random ones are in test_hub_model.py."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from protos.codec import CODECS, Codec
from protos.messages import (
    BookState,
    BookUpdate,
    Channel,
    CloseCode,
    Flag,
    InstrumentState,
    Notice,
    NoticeCode,
    QuoteUpdate,
    Reason,
    Resume,
    Scale,
    ServerMessage,
    SlowPolicy,
    StatusUpdate,
    Subscribed,
    Trade,
    TradesUpdate,
    Unsubscribed,
)
from streamer.counters import count
from streamer.hub import Hub
from streamer.limits import Limits
from streamer.outbox import Outbox
from streamer.streams import StreamKey, check_key

NAME = "x:spot:A"
MS = 1_000_000
BOOK, RAW, BBO, TRADES, STATUS = (
    StreamKey(NAME, channel) for channel in (Channel.BOOK, Channel.RAW, Channel.BBO, Channel.TRADES, Channel.STATUS)
)
TIER = StreamKey(NAME, Channel.BOOK, 10, 100)


class World:
    def __init__(self, make: Callable[..., Any], codec: Codec, limits: Limits | None = None) -> None:
        self.hub = Hub(limits or Limits())
        self.codec = codec
        self.maker = make(NAME)

    def apply(self, *messages: Any) -> None:  # noqa: ANN401
        for message in messages:
            assert self.hub.apply(NAME, message, 1)

    def join(
        self, *keys: StreamKey, resume: Resume | None = None, policy: SlowPolicy = SlowPolicy.CLOSE, take: bool = True
    ) -> Outbox:
        outbox = self.hub.attach(self.codec)
        for i, key in enumerate(keys):
            self.hub.subscribe(outbox, key, resume, policy, 1, i + 1)
        if take:
            self.read(outbox)
        return outbox

    def read(self, outbox: Outbox, now_ns: int = 2) -> list[ServerMessage]:
        self.hub.flush(now_ns)
        return self.codec.decode(self.hub.payload(outbox, 1 << 20))


@pytest.fixture
def world(maker: Callable[..., Any], codec: Codec) -> World:
    return World(maker, codec)


def kinds(messages: list[ServerMessage]) -> list[str]:
    return [
        f"{message.code.name} {message.stream}" if isinstance(message, Notice) else type(message).__name__
        for message in messages
    ]


def test_subscribed_comes_first_then_the_snapshot_on_the_same_socket(world: World) -> None:
    world.apply(world.maker.snapshot(), world.maker.trade(), world.maker.status(BookState.SYNCED))
    outbox = world.join(BOOK, BBO, TRADES, STATUS, RAW, TIER, take=False)
    messages = world.read(outbox)
    assert [message.id for message in messages[:6] if isinstance(message, Subscribed)] == [1, 2, 3, 4, 5, 6]
    first = messages[0]
    assert isinstance(first, Subscribed)
    assert (first.epoch, first.seq, first.scale) == (world.maker.epoch, world.maker.book.seq, Scale(-2, -3))
    assert (first.state, first.resumed) == (BookState.SYNCED, False)
    assert kinds(messages[6:]) == [
        "BookUpdate", "QuoteUpdate", "TradesUpdate", "StatusUpdate", "BookUpdate", "BookUpdate",
    ]  # fmt: skip
    assert all(message.flags & Flag.SNAPSHOT for message in messages[6:])  # type: ignore[union-attr]
    assert world.read(outbox) == []


def test_an_instrument_without_a_book_waits(world: World) -> None:
    outbox = world.join(BOOK, BBO, TRADES, STATUS, TIER, take=False)
    messages = world.read(outbox)
    assert kinds(messages) == ["Subscribed"] * 5
    assert all(message.state is BookState.WAITING and message.epoch == 0 for message in messages)  # type: ignore[union-attr]
    world.apply(world.maker.snapshot())
    assert kinds(world.read(outbox)) == ["BookUpdate", "BookUpdate", "QuoteUpdate"]


def test_duplicates_and_epochs_that_are_over_are_dropped_and_counted(world: World) -> None:
    first = world.maker.snapshot()
    old = BookUpdate(epoch=first.epoch - 1, seq=first.seq + 50, flags=Flag.SNAPSHOT)
    world.apply(first)
    trade = world.maker.trade()
    world.apply(trade)
    for message in (first, old, trade):
        assert not world.hub.apply(NAME, message, 1)
    counters = world.hub.counters
    assert (counters.applied, counters.duplicates, counters.old_epochs) == (2, 2, 1)


def test_a_gap_is_told_at_once_and_its_snapshots_are_flagged_until_recovery(world: World) -> None:
    maker = world.maker
    world.apply(maker.snapshot(), maker.trade())
    outbox = world.join(BOOK, RAW, BBO, TRADES, TIER, STATUS)
    world.apply(maker.status(BookState.GAPPED, Reason.CHECKSUM_MISMATCH))
    told = world.read(outbox)
    assert kinds(told) == ["StatusUpdate", "GAP 1", "GAP 2", "GAP 3", "GAP 5"]
    assert all(m.reason is Reason.CHECKSUM_MISMATCH for m in told)  # type: ignore[union-attr]
    assert world.hub.counters.gaps == 1
    (_, late) = world.read(world.join(BOOK, take=False))
    assert isinstance(late, BookUpdate)
    assert late.flags == Flag.SNAPSHOT | Flag.GAPPED
    world.hub.tick(3_600_000 * MS)
    assert world.read(outbox) == [], "no digest and no tier of a book that is not proven"
    world.apply(maker.status(BookState.SYNCED), maker.snapshot())
    recovery = world.read(outbox)
    assert sorted(kinds(recovery)) == sorted(
        ["StatusUpdate", *["BookUpdate"] * 3, "QuoteUpdate", *(f"RECOVERED {stream}" for stream in (1, 2, 3, 5))]
    )
    for stream in (1, 2, 5):
        of_stream = [m for m in recovery if getattr(m, "stream", 0) == stream]
        assert kinds(of_stream) == ["BookUpdate", f"RECOVERED {stream}"]
        assert of_stream[0].flags == Flag.SNAPSHOT  # type: ignore[union-attr]


def test_a_broken_chain_is_never_applied(world: World) -> None:
    maker = world.maker
    world.apply(maker.snapshot())
    outbox = world.join(BOOK)
    before = world.hub.book(NAME).digest()  # type: ignore[union-attr]
    maker.delta()
    world.apply(maker.delta(), maker.delta())
    (notice,) = world.read(outbox)
    assert isinstance(notice, Notice)
    assert (notice.code, notice.reason) == (NoticeCode.GAP, Reason.OFFSETS_LOST)
    assert world.hub.book(NAME).digest() == before  # type: ignore[union-attr]
    status = world.hub.status(NAME)
    assert status is not None
    assert (status.state, status.reason) == (BookState.GAPPED, Reason.OFFSETS_LOST)
    assert world.hub.counters.chain_breaks == 2


def test_the_shell_can_say_that_records_were_lost(world: World) -> None:
    world.hub.gap("no:such:thing", Reason.OFFSETS_LOST, 1)
    world.hub.apply("w:w:W", world.maker.status(BookState.WAITING), 1)
    world.hub.gap("w:w:W", Reason.OFFSETS_LOST, 1)
    assert world.hub.status("w:w:W").state is BookState.WAITING  # type: ignore[union-attr]
    world.apply(world.maker.snapshot())
    outbox = world.join(BOOK)
    world.hub.gap(NAME, Reason.OFFSETS_LOST, 1)
    assert kinds(world.read(outbox)) == ["GAP 1"]


def test_an_old_gap_is_ignored_when_the_book_is_past_it(world: World) -> None:
    world.apply(world.maker.snapshot())
    old = StatusUpdate(epoch=world.maker.epoch - 1, seq=5, state=BookState.GAPPED)
    world.apply(old)
    assert world.hub.status(NAME).state is BookState.SYNCED  # type: ignore[union-attr]


def test_stale_goes_to_every_stream_and_ends(world: World) -> None:
    maker = world.maker
    world.apply(maker.snapshot(), maker.trade())
    outbox = world.join(BOOK, TRADES, BBO)
    world.hub.mark_stale(5)
    world.hub.mark_stale(6)
    assert kinds(world.read(outbox)) == ["STALE 1", "STALE 2", "STALE 3"]
    assert world.hub.stale
    assert world.hub.status(NAME).state is BookState.STALE  # type: ignore[union-attr]
    world.apply(maker.delta(), maker.trade())
    late = world.read(outbox)
    assert all(message.flags & Flag.STALE for message in late)  # type: ignore[union-attr]
    world.apply(maker.status(BookState.STALE))
    world.hub.mark_live(7)
    assert world.read(outbox) == [], "the venue is still silent"
    world.apply(maker.status(BookState.SYNCED))
    assert kinds(world.read(outbox)) == ["RECOVERED 1", "RECOVERED 2", "RECOVERED 3"]


def test_quotes_come_from_the_book_until_the_venue_sends_its_own(world: World) -> None:
    maker = world.maker
    world.apply(maker.snapshot())
    outbox = world.join(BBO, take=False)
    (_, derived) = world.read(outbox)
    assert isinstance(derived, QuoteUpdate)
    assert derived.flags == Flag.SNAPSHOT | Flag.DERIVED
    world.apply(maker.quote())
    (own,) = world.read(outbox)
    assert isinstance(own, QuoteUpdate)
    assert own.flags == 0
    assert own.prev_seq == derived.seq, "one chain, whoever made the quotes"
    for _ in range(20):
        world.apply(maker.delta())
    assert world.read(outbox) == []
    maker.quote()
    world.apply(maker.quote())
    (later,) = world.read(outbox)
    assert isinstance(later, QuoteUpdate)
    assert later.flags == Flag.CONFLATED, "the one between was lost"
    assert later.prev_seq == own.seq


def test_a_quote_older_than_the_derived_one_is_not_sent(world: World) -> None:
    maker = world.maker
    early = maker.quote()
    world.apply(maker.snapshot(new_epoch=False))
    outbox = world.join(BBO)
    world.apply(early)
    assert world.read(outbox) == []


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


def test_lost_status_is_flagged(world: World) -> None:
    maker = world.maker
    world.apply(maker.snapshot())
    outbox = world.join(STATUS)
    maker.status(BookState.SYNCED)
    world.apply(maker.status(BookState.STALE))
    (first,) = [message for message in world.read(outbox) if isinstance(message, StatusUpdate)]
    assert (first.prev_seq, first.flags) == (0, Flag.SNAPSHOT)
    maker.status(BookState.SYNCED)
    world.apply(maker.status(BookState.STALE))
    (second,) = [message for message in world.read(outbox) if isinstance(message, StatusUpdate)]
    assert (second.prev_seq, second.flags) == (first.seq, Flag.CONFLATED)


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


def test_a_client_that_never_reads_is_closed_and_counted(maker: Callable[..., Any], codec: Codec) -> None:
    world = World(maker, codec, Limits(outbox_soft_bytes=500, outbox_hard_bytes=2_000))
    world.apply(world.maker.snapshot())
    dead, live = world.join(RAW, BOOK), world.join(RAW)
    closed: list[Outbox] = []
    for i in range(100):
        world.apply(world.maker.delta())
        world.read(live, i + 2)
        closed += [outbox for outbox in world.hub.outboxes if outbox.close_code is not None and outbox not in closed]
    assert closed == [dead]
    assert dead.close_code is CloseCode.SLOW_CONSUMER
    assert dead.take(1_000) == []
    assert world.hub.counters.overflows == 1
    assert count(world.hub.counters.delivered, Channel.RAW) == 100
    assert count(world.hub.counters.lost, Channel.RAW) > 10
    assert count(world.hub.counters.lost, Channel.BOOK) > 10
    assert world.hub.counters.conflated == 0, "it never got what would have covered them"
    world.hub.detach(dead)
    world.hub.detach(dead)
    assert world.hub.outboxes == {live}
    assert [stream.key for stream in world.hub.streams()] == [RAW]


def test_a_stalled_client_is_found_without_new_updates(world: World) -> None:
    world.apply(world.maker.snapshot())
    outbox = world.join(BOOK)
    world.apply(world.maker.delta())
    for ms in range(0, 11_000, 40):
        world.hub.flush(ms * MS + 1)
    assert outbox.close_code is CloseCode.SLOW_CONSUMER


def test_clients_with_equal_queues_share_one_frame(world: World) -> None:
    world.apply(world.maker.snapshot())
    one, two = world.join(RAW, BOOK), world.join(RAW, BOOK)
    other = world.join(RAW)
    world.apply(world.maker.delta())
    world.hub.flush(3)
    made: list[bytes] = []

    def frame(chunks: list[bytes]) -> bytes:
        made.append(b"head" + b"".join(chunks))
        return made[-1]

    one.frame = two.frame = other.frame = frame
    first = world.hub.payload(one, 1_000)
    assert world.hub.payload(two, 1_000) is first
    assert world.hub.payload(other, 1_000) != first
    assert len(made) == 2
    assert count(world.hub.counters.delivered, Channel.RAW) == 3
    assert count(world.hub.counters.delivered, Channel.BOOK) == 2
    assert world.hub.payload(one, 1_000) == b""


def test_a_part_of_a_queue_is_not_shared(world: World) -> None:
    world.apply(world.maker.snapshot())
    one, two = world.join(RAW, BOOK), world.join(RAW, BOOK)
    world.apply(world.maker.delta())
    world.hub.flush(3)
    part = world.hub.payload(one, 1)
    whole = world.hub.payload(two, 1_000)
    assert whole.startswith(part)
    assert part + world.hub.payload(one, 1_000) == whole


def test_each_codec_gets_its_own(world: World) -> None:
    world.apply(world.maker.snapshot())
    outboxes = []
    for codec in CODECS.values():
        world.codec = codec
        outboxes.append(world.join(BOOK))
    world.apply(world.maker.delta())
    world.hub.flush(3)
    decoded = [outbox.codec.decode(world.hub.payload(outbox, 1_000)) for outbox in outboxes]
    assert decoded[0] == decoded[1]
    assert [message.seq for messages in decoded for message in messages] == [world.maker.seq] * 3  # type: ignore[union-attr]
    (stream,) = world.hub.streams()
    assert len(stream.lanes) == 3
    world.hub.detach(outboxes[0])
    assert len(stream.lanes) == 2


def test_unsubscribe_and_broadcast(world: World) -> None:
    world.apply(world.maker.snapshot())
    outbox, other = world.join(BOOK), world.join(BOOK)
    assert not world.hub.unsubscribe(outbox, 99)
    assert world.hub.unsubscribe(outbox, 1, 5)
    assert world.read(outbox) == [Unsubscribed(5, 1)]
    shutdown = Notice(NoticeCode.SHUTDOWN, retry_after_ms=10)
    world.hub.broadcast(shutdown)
    assert world.read(outbox) == world.read(other) == [shutdown]
    stream = world.hub.find(BOOK)
    assert stream is not None
    assert stream.id == 1
    assert world.hub.find(StreamKey("no:such:thing", Channel.BOOK)) is None


def test_an_unknown_instrument_has_nothing(world: World) -> None:
    assert world.hub.book(NAME) is None
    assert world.hub.status(NAME) is None
    assert world.hub.last_trades(NAME) == []
    assert not world.hub.knows(NAME)


def test_stream_keys_say_what_is_wrong() -> None:
    assert check_key(BOOK) is check_key(TIER) is check_key(TRADES) is None
    for key in (
        StreamKey(NAME, Channel.UNKNOWN),
        StreamKey(NAME, Channel.BOOK, 3),
        StreamKey(NAME, Channel.BOOK, 10, 3),
        StreamKey(NAME, Channel.BBO, 1),
        StreamKey(NAME, Channel.BBO, 0, 50),
    ):
        problem = check_key(key)
        assert problem is not None
        assert problem[1]


def test_a_segment_never_spans_epochs(world: World) -> None:
    """A SKIPPED notice names one epoch."""
    maker = world.maker
    world.apply(maker.snapshot(), maker.trade())
    outbox = world.join(TRADES, policy=SlowPolicy.SKIP)
    one, _, two = maker.trade(), maker.snapshot(), maker.trade()
    world.apply(one, two)
    world.hub.flush(3)
    assert [(segment.epoch, segment.seq) for segment in outbox.queue] == [(one.epoch, one.seq), (two.epoch, two.seq)]


def test_only_trades_can_be_skipped(world: World) -> None:
    world.apply(world.maker.snapshot())
    outbox = world.join(RAW, BOOK, BBO, STATUS, TRADES, policy=SlowPolicy.SKIP)
    assert [lane.source.channel for lane in outbox.skips] == [Channel.TRADES]
