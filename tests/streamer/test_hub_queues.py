"""What the hub does with the queues of its clients: closed clients, who can be written to at once."""

from collections.abc import Callable
from typing import Any

from protos.codec import CODECS, Codec
from protos.messages import (
    Channel,
    CloseCode,
    SlowPolicy,
)
from streamer.counters import count
from streamer.limits import Limits
from streamer.outbox import Outbox
from tests.support.world import BBO, BOOK, MS, RAW, STATUS, TRADES, World, kinds


def flushed(world: World, now_ns: int, queues_max: int | None = None) -> list[Outbox | None]:
    return [queue.owner for queue in world.hub.flush(now_ns, queues_max)]


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


def test_a_segment_never_spans_epochs(world: World) -> None:
    """A SKIPPED notice names one epoch."""
    maker = world.maker
    world.apply(maker.snapshot(), maker.trade())
    outbox = world.join(TRADES, policy=SlowPolicy.SKIP)
    one, _, two = maker.trade(), maker.snapshot(), maker.trade()
    world.apply(one, two)
    world.hub.flush(3)
    assert [(segment.epoch, segment.seq) for segment in outbox.queue.segments()] == [
        (one.epoch, one.seq),
        (two.epoch, two.seq),
    ]


def test_only_trades_can_be_skipped(world: World) -> None:
    world.apply(world.maker.snapshot())
    outbox = world.join(RAW, BOOK, BBO, STATUS, TRADES, policy=SlowPolicy.SKIP)
    assert [lane.source.channel for lane in outbox.skips] == [Channel.TRADES]


def test_a_queue_is_plain_while_there_is_nothing_else_to_take(world: World) -> None:
    """Who joins, is judged or closed is to be asked, until it took all there was."""
    world.apply(world.maker.snapshot())
    plain, closed, joining, late = [world.join(RAW) for _ in range(4)]
    assert [outbox.queue.plain for outbox in (plain, closed, joining, late)] == [True] * 4
    world.apply(world.maker.delta())
    world.hub.flush(3)
    for outbox in (plain, joining):
        outbox.take(1_000)
    closed.close(CloseCode.NORMAL)
    world.hub.subscribe(joining, BOOK, None, SlowPolicy.CLOSE, 3)
    world.hub.flush(200 * MS)  # the update is still there for `late`: a backlog now
    assert [outbox.queue.plain for outbox in (plain, closed, joining, late)] == [True, False, False, False]
    late.take(1)
    assert not late.queue.plain or not len(late.queue)
    for outbox in (closed, joining, late):
        outbox.take(100_000)
    assert [outbox.queue.plain for outbox in (plain, closed, joining, late)] == [True, False, True, True]


def test_who_is_written_everything_has_no_backlog(world: World) -> None:
    """The shell takes it out of what `flush` returned, and nobody looks at it again."""
    world.apply(world.maker.snapshot())
    written, left = world.join(RAW), world.join(RAW)
    world.hub.flush(2)
    world.hub.flush(2)
    assert not world.hub.backlog
    world.apply(world.maker.delta())
    queues = world.hub.flush(3)
    written.queue.replace([])
    queues.remove(written.queue)
    assert world.hub.backlog
    world.hub.flush(200 * MS)
    assert (written.stalled_ns, left.stalled_ns) == (0, 200 * MS)
    left.take(1_000)
    world.hub.flush(201 * MS)
    assert not world.hub.backlog


def test_clients_stand_in_line_and_get_what_there_is_when_it_is_their_turn(world: World) -> None:
    world.apply(world.maker.snapshot())
    first, second, third = [world.join(RAW) for _ in range(3)]
    world.hub.detach(world.join(RAW))
    world.apply(world.maker.delta())
    assert flushed(world, 3, 2) == [first, second]
    assert world.hub.waiting == 1
    for outbox in (first, second):
        assert len(outbox.take(1_000)) == 1
    world.apply(world.maker.delta())
    assert flushed(world, 4, 1) == [third]
    assert len(third.queue) == 2, "both updates in one write"
    assert flushed(world, 5, 2) == [first, second]
    assert world.hub.waiting == 0


def test_who_leaves_something_costs_little_until_there_is_more(world: World) -> None:
    """The shell hears of it when the socket has room again; a backlog is only judged."""
    world.apply(world.maker.snapshot())
    outbox = world.join(RAW)
    world.apply(world.maker.delta())
    assert flushed(world, 200 * MS) == [outbox]
    assert flushed(world, 201 * MS) == []
    assert outbox.stalled_ns == 201 * MS
    assert flushed(world, 202 * MS) == []
    world.apply(world.maker.delta())
    assert flushed(world, 203 * MS) == [outbox]
    assert flushed(world, 300 * MS) == []
    assert flushed(world, 301 * MS) == []
    assert flushed(world, 12_000 * MS) == [outbox]
    assert outbox.close_code is CloseCode.SLOW_CONSUMER


def test_a_digest_goes_with_an_update_or_alone_when_none_comes(maker: Callable[..., Any], codec: Codec) -> None:
    """One per interval: with the first update in its second half, or at its end."""
    world = World(maker, codec, Limits(digest_interval_ms=100))
    world.apply(world.maker.snapshot())
    outbox = world.join(RAW)

    def after(ms: int, *, update: bool) -> list[str]:
        world.hub.tick(ms * MS)
        if update:
            world.apply(world.maker.delta())
        world.hub.flush(ms * MS)
        assert len(outbox.queue) <= 1, "one segment"
        return kinds(world.read(outbox, ms * MS))

    assert after(40, update=True) == ["BookUpdate"]
    assert after(60, update=False) == []
    assert after(70, update=True) == ["BookUpdate", "Digest"]
    assert after(90, update=True) == ["BookUpdate"]
    assert after(110, update=False) == []
    assert after(160, update=False) == []
    assert after(210, update=False) == ["Digest"]
    after(10_000, update=False)
    assert world.hub.counters.digests <= 3, "none for the intervals that were missed"
