"""The client core against a small server that keeps the truth: never a wrong book that is called live."""

from contextlib import suppress
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protos.codec import CODECS, Codec
from protos.messages import (
    BookState,
    BookUpdate,
    Channel,
    Digest,
    Error,
    ErrorCode,
    Flag,
    Notice,
    NoticeCode,
    Ping,
    Pong,
    QuoteUpdate,
    Reason,
    Resume,
    ServerMessage,
    StatusUpdate,
    Subscribed,
    Trade,
    TradesUpdate,
    Unsubscribe,
    Unsubscribed,
    Welcome,
)
from services.client.core import ClientCore
from services.client.events import (
    BrokenChain,
    DigestChecked,
    Ended,
    Event,
    FrameError,
    Noticed,
    Opened,
    Ponged,
    Refused,
    Started,
    StateChanged,
    StreamState,
    Updated,
)
from services.client.subscription import REPAIRS_MAX, Subscription
from tests.support.model_streamer import OPERATIONS, SCALE, ModelStreamer, digest_at

PROTO = CODECS["depthcast.v1.proto"]
INSTRUMENT = "sim:spot:BTCUSDT"
S = 1_000_000_000


def server(codec: Codec = PROTO, seed: int = 1) -> tuple[ModelStreamer, Subscription]:
    peer = ModelStreamer(codec, Random(seed))
    subscription = peer.core.subscribe(INSTRUMENT, Channel.BOOK)
    peer.connect()
    return peer, subscription


def of(events: list[Event], kind: type) -> list[Event]:
    return [event for event in events if isinstance(event, kind)]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(sorted(OPERATIONS)), max_size=40),
    st.integers(0, 2**32),
    st.sampled_from(sorted(CODECS)),
)
def test_a_live_book_is_the_true_book_whatever_happens(names: list[str], seed: int, codec: str) -> None:
    peer, subscription = server(CODECS[codec], seed)
    for name in names:
        try:
            OPERATIONS[name](peer)
        except FrameError:  # broken too often for one connection
            assert subscription.repairs > REPAIRS_MAX
            peer.reconnect()
        peer.check()
    peer.recover()
    peer.reconnect()
    peer.delta()
    peer.digest()
    assert subscription.live
    assert subscription.position == Resume(peer.epoch, peer.seq)
    assert (subscription.book.bids.levels(), subscription.book.asks.levels()) == peer.truth[subscription.position]


def test_a_snapshot_then_deltas_make_a_live_book() -> None:
    peer, subscription = server()
    peer.delta()
    kinds = [type(event) for event in peer.events]
    assert kinds == [Opened, Started, Updated, StateChanged, Updated]
    assert subscription.live
    assert subscription.scale == SCALE
    assert subscription.updates == 2


def test_a_missing_update_breaks_the_chain_and_a_snapshot_mends_it() -> None:
    peer, subscription = server()
    before = subscription.book.bids.levels()
    peer.delta(deliver=False)
    peer.seq, prev = peer.seq + 1, peer.seq
    peer._level_up()
    peer._remember()
    peer.push(BookUpdate(peer.stream, peer.epoch, peer.seq, prev, bids=[(99, 1)]))
    (broken,) = of(peer.events, BrokenChain)
    assert isinstance(broken, BrokenChain)
    assert broken.message.prev_seq == prev
    assert subscription.state is StreamState.GAPPED
    assert subscription.book.bids.levels() == before
    peer.answer()
    assert subscription.live
    assert subscription.broken == 1
    assert len(of(peer.events, Started)) == 2


def test_a_repeated_update_is_dropped_and_breaks_nothing() -> None:
    peer, subscription = server()
    peer.delta(twice=True)
    assert subscription.live
    assert (subscription.duplicates, subscription.broken) == (1, 0)


def test_sequences_are_never_compared_across_epochs() -> None:
    peer, subscription = server()
    peer.push(BookUpdate(peer.stream, peer.epoch + 1, peer.seq + 1, peer.seq, bids=[(99, 7)]))
    assert (subscription.state, subscription.broken) == (StreamState.GAPPED, 1)


def test_an_update_that_chains_does_not_end_a_gap() -> None:
    peer, subscription = server()
    peer.push(Notice(NoticeCode.GAP, peer.stream, peer.epoch, peer.seq))
    peer.delta()
    assert (subscription.state, subscription.updates) == (StreamState.GAPPED, 2)


def test_what_is_not_resumed_begins_with_a_snapshot() -> None:
    peer, subscription = server()
    peer.disconnect()
    peer.core.connected(0)
    (command,) = (PROTO.decode_command(data) for data in peer.core.commands())
    peer.push(Subscribed(command.id, 9, INSTRUMENT, Channel.BOOK, scale=SCALE, state=BookState.SYNCED))
    peer.push(BookUpdate(9, peer.epoch, peer.seq + 1, peer.seq, bids=[(99, 7)]))
    assert (subscription.state, subscription.broken) == (StreamState.GAPPED, 1)


def test_a_failed_digest_drops_the_book() -> None:
    peer, subscription = server()
    peer.delta(corrupt=True)
    assert subscription.live
    peer.push(Digest(peer.stream, peer.epoch, peer.seq, digest_at(peer.truth[peer.sent])))
    assert subscription.state is StreamState.GAPPED
    assert len(subscription.book.bids) == 0
    assert (subscription.digests_passed, subscription.digests_failed) == (0, 1)
    peer.lied = False
    peer.answer()
    peer.digest()
    assert subscription.live
    assert subscription.digests_passed == 1
    assert [event.passed for event in peer.events if isinstance(event, DigestChecked)] == [False, True]


def test_a_digest_of_another_position_says_nothing() -> None:
    peer, subscription = server()
    peer.push(Digest(peer.stream, peer.epoch, peer.seq + 1, 1), Digest(peer.stream, peer.epoch + 1, peer.seq, 1))
    assert subscription.live
    assert subscription.digests_failed == 0


def test_a_server_that_breaks_every_chain_is_given_up() -> None:
    peer, _ = server()
    for _ in range(REPAIRS_MAX):
        peer.push(BookUpdate(peer.stream, peer.epoch, peer.seq + 9, peer.seq + 8))
        peer.answer()
    with pytest.raises(FrameError, match="does not continue the book"):
        peer.push(BookUpdate(peer.stream, peer.epoch, peer.seq + 9, peer.seq + 8))


def test_a_lost_connection_makes_the_book_stale_until_it_resumes() -> None:
    peer, subscription = server()
    peer.disconnect()
    assert subscription.state is StreamState.STALE
    position = subscription.position
    peer.delta()
    peer.connect()
    started = of(peer.events, Started)[-1]
    assert isinstance(started, Started)
    assert started.resumed
    assert subscription.live
    assert subscription.conflated == 1
    assert subscription.position != position


def test_a_gap_is_not_live_before_the_snapshot() -> None:
    peer, subscription = server()
    peer.gap()
    assert subscription.state is StreamState.GAPPED
    assert subscription.why == "sequence gap"
    peer.push(Notice(NoticeCode.RECOVERED, peer.stream, peer.epoch, peer.seq))
    assert subscription.state is StreamState.GAPPED
    peer.recover()
    assert subscription.live


def test_a_gapped_book_that_resumed_is_live_when_the_server_says_so() -> None:
    peer, subscription = server()
    peer.gap()
    peer.disconnect()
    peer.gapped = False  # another pod, which has not read the gap yet
    peer.connect()
    assert subscription.live


def test_stale_and_back() -> None:
    peer, subscription = server()
    peer.push(Notice(NoticeCode.STALE, peer.stream, peer.epoch, peer.seq))
    assert subscription.state is StreamState.STALE
    peer.push(Notice(NoticeCode.RECOVERED, peer.stream, peer.epoch, peer.seq))
    assert subscription.live
    seq, peer.seq = peer.seq, peer.seq + 1
    peer._remember()
    peer.push(BookUpdate(peer.stream, peer.epoch, peer.seq, seq, Flag.STALE))
    assert subscription.state is StreamState.STALE


def test_notices_of_the_connection_have_no_subscription() -> None:
    peer, _ = server()
    peer.push(Notice(NoticeCode.SLOW), Notice(NoticeCode.SKIPPED, 4711))
    assert of(peer.events, Noticed) == [Noticed(None, Notice(NoticeCode.SLOW))]


def test_trades_report_every_hole() -> None:
    core = ClientCore(PROTO)
    core.connected(0)
    trades = core.subscribe(INSTRUMENT, Channel.TRADES)
    core.commands()

    def push(*messages: ServerMessage) -> list[type]:
        return [type(e) for e in core.receive(b"".join(PROTO.encode(m, SCALE) for m in messages), 0)]

    def update(seq: int, prev_seq: int, flags: int = 0) -> TradesUpdate:
        return TradesUpdate(7, 5, seq, prev_seq, flags, trades=[Trade(100, 1)])

    push(Subscribed(1, 7, INSTRUMENT, Channel.TRADES, state=BookState.SYNCED))
    assert push(update(3, 2)) == [Updated, StateChanged]
    assert push(update(3, 2)) == []
    assert trades.duplicates == 1
    assert push(update(4, 3)) == [Updated]
    assert push(update(9, 8)) == [BrokenChain, Updated]
    assert push(Notice(NoticeCode.SKIPPED, 7, 5, 9, 20), update(21, 20)) == [Noticed, Updated]
    assert push(update(21, 0, Flag.SNAPSHOT)) == [Updated]
    assert push(update(30, 0, Flag.SNAPSHOT)) == [BrokenChain, Updated]
    assert trades.broken == 2
    assert trades.live


def test_quotes_and_statuses_are_whole_states() -> None:
    core = ClientCore(PROTO)
    core.connected(0)
    bbo = core.subscribe(INSTRUMENT, Channel.BBO)
    status = core.subscribe(INSTRUMENT, Channel.STATUS)
    replies = [Subscribed(1, 7, INSTRUMENT, Channel.BBO), Subscribed(2, 8, INSTRUMENT, Channel.STATUS)]
    messages: list[ServerMessage] = [
        *replies,
        QuoteUpdate(7, 5, 3, 0, Flag.SNAPSHOT, bid_ticks=1, bid_lots=1, ask_ticks=2, ask_lots=1, scale=SCALE),
        QuoteUpdate(7, 5, 9, 3, Flag.CONFLATED, bid_ticks=2, bid_lots=1, ask_ticks=3, ask_lots=1),
        StatusUpdate(8, 5, 4, 0, state=BookState.SYNCED),
    ]
    events = list(core.receive(b"".join(PROTO.encode(m, SCALE) for m in messages), 0))
    assert of(events, BrokenChain) == []
    assert bbo.quote is not None
    assert bbo.quote.bid_ticks == 2
    assert bbo.live
    assert status.status is not None
    assert status.status.state is BookState.SYNCED


def test_refused_commands_end_the_subscription() -> None:
    core = ClientCore(PROTO)
    core.connected(0)
    subscription = core.subscribe("no:such:thing")
    core.commands()
    error = Error(1, ErrorCode.UNKNOWN_INSTRUMENT, "no such instrument")
    assert list(core.receive(PROTO.encode(error), 0)) == [Refused(subscription, error)]
    assert core.subscriptions == []


def test_the_same_stream_twice_is_one_subscription() -> None:
    core = ClientCore(PROTO)
    first = core.subscribe(INSTRUMENT, depth=10)
    assert core.subscribe(INSTRUMENT, depth=10) is first
    assert core.subscribe(INSTRUMENT, depth=50) is not first
    core.connected(0)
    assert len(core.commands()) == 2


def test_unsubscribe_before_the_reply_and_wanting_it_again() -> None:
    core = ClientCore(PROTO)
    core.connected(0)
    first = core.subscribe(INSTRUMENT)
    core.unsubscribe(first)
    assert core.subscribe(INSTRUMENT) is first
    assert len(core.commands()) == 1
    core.unsubscribe(first)
    assert list(core.receive(PROTO.encode(Subscribed(1, 7, INSTRUMENT, Channel.BOOK)), 0)) == []
    (leave,) = (PROTO.decode_command(data) for data in core.commands())
    assert isinstance(leave, Unsubscribe)
    assert list(core.receive(PROTO.encode(Unsubscribed(leave.id, 7)), 0)) == [Ended(first)]


def test_unsubscribed_streams_are_ignored() -> None:
    peer, subscription = server()
    peer.core.unsubscribe(subscription)
    seen = len(peer.events)
    peer.push(BookUpdate(peer.stream, peer.epoch, 99, 98))
    assert peer.core.unknown == 1
    peer.answer()
    assert peer.events[seen:] == [Ended(subscription)]


def test_ping_measures_round_trip_and_clocks() -> None:
    core = ClientCore(PROTO)
    core.connected(0)
    core.ping(1_000)
    (ping,) = (PROTO.decode_command(data) for data in core.commands())
    assert isinstance(ping, Ping)
    assert list(core.receive(PROTO.encode(Pong(ping.id, 5_500)), 2_000)) == [Ponged(1_000, 4_000)]


def test_silence_is_counted_from_the_last_sign_of_life() -> None:
    core = ClientCore(PROTO)
    core.connected(5 * S)
    assert core.dead_at_ns == 15 * S
    list(core.receive(PROTO.encode(Welcome("s", 4_000, 4096, 10)), 6 * S))
    assert core.dead_at_ns == 16 * S
    core.heard(8 * S)
    assert core.dead_at_ns == 18 * S


@pytest.mark.parametrize(
    "message",
    [
        TradesUpdate(1, 1, 1),
        BookUpdate(1, 1, 1, 0, Flag.SNAPSHOT, scale=None, bids=[(1, 1)]),
        Subscribed(2, 1, "x:y:other", Channel.BOOK),
    ],
)
def test_what_no_server_may_send_is_a_frame_error(message: ServerMessage) -> None:
    core = ClientCore(PROTO)
    core.connected(0)
    core.subscribe(INSTRUMENT)
    core.subscribe("x:y:other")
    list(core.receive(PROTO.encode(Subscribed(1, 1, INSTRUMENT, Channel.BOOK)), 0))
    with pytest.raises(FrameError):
        list(core.receive(PROTO.encode(message), 0))


@pytest.mark.parametrize("name", sorted(CODECS))
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_garbage_is_a_frame_error_and_nothing_else(name: str, data: st.DataObject) -> None:
    codec = CODECS[name]
    peer, _ = server(codec)
    good = b"".join(
        codec.encode(message, SCALE)
        for message in (
            BookUpdate(1, 1_000, 11, 10, bids=[(99, 5), (100, 0)], asks=[(101, 7)]),
            Digest(1, 1_000, 11, 5),
            Notice(NoticeCode.GAP, 1, reason=Reason.FEED_GAP),
            Subscribed(1, 2, INSTRUMENT, Channel.BOOK, scale=SCALE),
            Error(1, ErrorCode.LIMIT, "no"),
        )
    )
    frame = bytearray(data.draw(st.one_of(st.binary(max_size=80), st.just(good))))
    for position, byte in data.draw(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4)):
        if frame:
            frame[position % len(frame)] = byte
    with suppress(FrameError):
        for _ in peer.core.receive(bytes(frame), 0):
            peer.core.commands()
