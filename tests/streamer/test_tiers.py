"""Tiers alone: every depth and interval against the top N of the full book."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protos.codec import Codec
from protos.messages import DEPTHS, INTERVALS_MS, BookUpdate, Channel, Digest, Levels, SlowPolicy
from streamer.hub import Hub
from streamer.limits import Limits
from streamer.streams import StreamKey
from tests.support.shortcuts import shortcuts

MS = 1_000_000
NAME = "x:spot:A"


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    depth=st.sampled_from(DEPTHS),
    interval=st.sampled_from(INTERVALS_MS),
    levels=st.integers(0, 18),
    touched=st.integers(1, 12),
    updates_max=st.sampled_from((2, 1_000)),
)
def test_each_message_leaves_the_top_of_the_book(
    maker: Callable[..., Any],
    client: Callable[..., Any],
    codec: Codec,
    seed: int,
    depth: int,
    interval: int,
    levels: int,
    touched: int,
    updates_max: int,
) -> None:
    """`Client` compares each message with the book of its seq; here also: nothing is sent that changes nothing."""
    hub = Hub(Limits(since_updates_max=updates_max, digest_interval_ms=40))
    market = maker(NAME, seed)
    hub.apply(NAME, market.snapshot(levels), 0)
    outbox = hub.attach(codec)
    viewer = client(codec, {NAME: market})
    hub.subscribe(outbox, StreamKey(NAME, Channel.BOOK, depth, interval), None, SlowPolicy.CLOSE, 0)
    for i in range(1, 60):
        hub.apply(NAME, market.snapshot(levels) if i % 25 == 0 else market.delta(touched), i * 10 * MS)
        hub.tick(i * 10 * MS)
        hub.flush(i * 10 * MS)
        viewer.feed(hub.payload(outbox, 1 << 20))
        if interval == 0:
            (subscription,) = viewer.streams.values()
            assert subscription.book.top(0) == market.book.top(depth)
    assert viewer.digests > 0
    updates = [message for message in viewer.received if isinstance(message, BookUpdate)]
    assert all(update.bids or update.asks for update in updates if depth and update.prev_seq)
    if interval:
        assert len(updates) <= 600 // interval + 2 + 2, "one per interval, and the snapshots"


side_levels = st.dictionaries(st.integers(0, 90), st.integers(0, 2), max_size=90).map(lambda found: list(found.items()))


@settings(deadline=None)
@given(
    bids=side_levels,
    asks=side_levels,
    changes=st.lists(st.tuples(st.booleans(), st.integers(0, 90), st.integers(0, 2)), max_size=30),
    depth=st.sampled_from((1, 10, 50)),
)
@pytest.mark.parametrize("kind", ["python", "native"])
def test_a_view_follows_small_updates(
    maker: Callable[..., Any],
    client: Callable[..., Any],
    codec: Codec,
    kind: str,
    bids: Levels,
    asks: Levels,
    changes: list[tuple[bool, int, int]],
    depth: int,
) -> None:
    """Deep views are not looked at as a whole for them; `Client` compares."""
    with shortcuts(kind):
        market, hub = maker(NAME), Hub(Limits())
        first = market.snapshot(0)
        first.bids, first.asks = sorted(bids), sorted(asks)
        hub.apply(NAME, market._remember(first), 0)
    outbox, viewer = hub.attach(codec), client(codec, {NAME: market})
    hub.subscribe(outbox, StreamKey(NAME, Channel.BOOK, depth), None, SlowPolicy.CLOSE, 0)
    for of_bids, price, lots in changes:
        update = market.delta(0)
        (update.bids if of_bids else update.asks).append((price, lots))
        hub.apply(NAME, market._remember(update), 0)
        hub.flush(0)
        viewer.feed(hub.payload(outbox, 1 << 20))
        (subscription,) = viewer.streams.values()
        assert subscription.book.top(0) == market.book.top(depth)


def test_an_update_below_the_view_is_not_sent(
    maker: Callable[..., Any], client: Callable[..., Any], codec: Codec
) -> None:
    hub = Hub(Limits())
    market = maker(NAME)
    hub.apply(NAME, market.snapshot(15), 0)
    outbox = hub.attach(codec)
    stream = hub.subscribe(outbox, StreamKey(NAME, Channel.BOOK, 1), None, SlowPolicy.CLOSE, 0)
    viewer = client(codec, {NAME: market})
    viewer.feed(hub.payload(outbox, 1_000))
    far = BookUpdate(epoch=market.epoch, seq=market.seq + 1, prev_seq=market.seq, bids=[(1, 5)], asks=[(900, 5)])
    position = (stream.epoch, stream.seq)
    assert hub.apply(NAME, far, 1)
    assert hub.flush(1) == [outbox.queue], "only because it was taken from outside a flush"
    assert hub.payload(outbox, 1_000) == b""
    assert (stream.epoch, stream.seq) == position
    hub.tick(10_000 * MS)
    hub.flush(10_000 * MS)
    viewer.feed(hub.payload(outbox, 1_000))
    (digest,) = [message for message in viewer.received if isinstance(message, Digest)]
    assert (digest.epoch, digest.seq) == position, "the digest names the last update that was sent"


def test_many_tiers_that_are_due_move_over_several_ticks_and_are_offered_together(
    maker: Callable[..., Any], codec: Codec
) -> None:
    """So that no tick is long, and nobody is written to more often for it."""
    hub = Hub(Limits())
    markets = {f"x:spot:{i}": maker(f"x:spot:{i}", i) for i in range(50)}
    outbox, gone = hub.attach(codec), hub.attach(codec)
    streams = []
    for name, market in markets.items():
        hub.apply(name, market.snapshot(), 0)
        streams.append(hub.subscribe(outbox, StreamKey(name, Channel.BOOK, 0, 100), None, SlowPolicy.CLOSE, 0))
    last = hub.subscribe(gone, StreamKey("x:spot:49", Channel.BOOK, 10, 100), None, SlowPolicy.CLOSE, 0)
    hub.flush(0)
    for client in (outbox, gone):
        while hub.payload(client, 1 << 20):
            pass
    before = [stream.seq for stream in streams]
    for name, market in markets.items():
        hub.apply(name, market.delta(9), 1)
    moved, ticks, now_ns = 0, 0, 200 * MS
    while hub.due_ns <= now_ns:
        assert hub.flush(now_ns) == []
        hub.tick(now_ns)
        hub.detach(gone)
        ticks += 1
        now = sum(stream.seq != seq for stream, seq in zip(streams, before, strict=True))
        assert now - moved <= 16
        moved = now
    assert (moved, ticks) == (50, 4)
    assert last.seq != markets["x:spot:49"].seq, "nobody listens any more"
    assert hub.flush(now_ns) == [outbox.queue]
    assert len(codec.decode(hub.payload(outbox, 1 << 20))) == 50


def test_nothing_is_computed_without_listeners(maker: Callable[..., Any], codec: Codec) -> None:
    hub = Hub(Limits())
    market = maker(NAME)
    hub.apply(NAME, market.snapshot(), 0)
    outbox = hub.attach(codec)
    stream = hub.subscribe(outbox, StreamKey(NAME, Channel.BOOK, 10, 100), None, SlowPolicy.CLOSE, 0)
    hub.payload(outbox, 1_000)
    assert hub.due_ns < 1 << 62
    hub.unsubscribe(outbox, stream.id)
    assert hub.streams() == []
    hub.apply(NAME, market.delta(), 1)
    hub.tick(60_000 * MS)
    assert hub.due_ns == (1 << 63) - 1
    assert stream.seq < market.seq
