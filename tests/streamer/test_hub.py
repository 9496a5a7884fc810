"""What the hub promises of its streams, one scenario each; the random ones are in test_hub_model.py."""

from protos.messages import (
    BookState,
    BookUpdate,
    Channel,
    Flag,
    Notice,
    NoticeCode,
    QuoteUpdate,
    Reason,
    Scale,
    SlowPolicy,
    StatusUpdate,
    Subscribed,
    Unsubscribed,
)
from streamer.streams import StreamKey, check_key
from tests.support.world import BBO, BOOK, MS, NAME, RAW, STATUS, TIER, TRADES, World, kinds


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


def test_subscriptions_are_what_a_client_could_restore(world: World) -> None:
    world.apply(world.maker.snapshot())
    outbox = world.join(BOOK, TIER, TRADES, policy=SlowPolicy.SKIP)
    assert world.hub.subscriptions(outbox) == [
        (BOOK, SlowPolicy.CLOSE),
        (TIER, SlowPolicy.CLOSE),
        (TRADES, SlowPolicy.SKIP),
    ]
    world.hub.unsubscribe(outbox, 2)
    assert [key for key, _ in world.hub.subscriptions(outbox)] == [BOOK, TRADES]


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
