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
    assert [(segment.epoch, segment.seq) for segment in outbox.queue] == [(one.epoch, one.seq), (two.epoch, two.seq)]


def test_only_trades_can_be_skipped(world: World) -> None:
    world.apply(world.maker.snapshot())
    outbox = world.join(RAW, BOOK, BBO, STATUS, TRADES, policy=SlowPolicy.SKIP)
    assert [lane.source.channel for lane in outbox.skips] == [Channel.TRADES]


def test_who_has_a_plain_queue_can_be_written_to_at_once(world: World) -> None:
    """Who has no socket, is closed, is slow or has other things to take is to be asked."""
    world.apply(world.maker.snapshot())
    plain, closed, joining, idle, without = [world.join(RAW) for _ in range(5)]
    for socket, outbox in enumerate((plain, closed, joining, idle), start=3):
        outbox.socket = socket
    world.apply(world.maker.delta())
    world.hub.flush(3)
    idle.take(1_000)
    closed.close(CloseCode.NORMAL)
    world.hub.subscribe(joining, BOOK, None, SlowPolicy.CLOSE, 3)
    batch = world.hub.gather([plain, closed, joining, idle, without])
    assert (batch.sockets, batch.outboxes, batch.others) == ([3], [plain], [closed, joining, idle, without])
    assert batch.queues[0] is plain.queue
    assert bytes(batch.firsts) == bytes((plain.first,))
    world.hub.flush(200 * MS)  # still there: a backlog now
    assert world.hub.gather([plain]).others == [plain]


def test_clients_stand_in_line_and_get_what_there_is_when_it_is_their_turn(world: World) -> None:
    world.apply(world.maker.snapshot())
    first, second, third = [world.join(RAW) for _ in range(3)]
    world.hub.detach(world.join(RAW))
    world.apply(world.maker.delta())
    assert world.hub.flush(3, 2) == [first, second]
    assert world.hub.waiting == 1
    for outbox in (first, second):
        assert len(outbox.take(1_000)) == 1
    world.apply(world.maker.delta())
    assert world.hub.flush(4, 1) == [third]
    assert len(third.queue) == 2, "both updates in one write"
    assert world.hub.flush(5, 2) == [first, second]
    assert world.hub.waiting == 0


def test_who_leaves_something_costs_little_until_there_is_more(world: World) -> None:
    """The shell hears of it when the socket has room again; a backlog is only judged."""
    world.apply(world.maker.snapshot())
    outbox = world.join(RAW)
    world.apply(world.maker.delta())
    assert world.hub.flush(200 * MS) == [outbox]
    assert world.hub.flush(201 * MS) == []
    assert outbox.stalled_ns == 201 * MS
    assert world.hub.flush(202 * MS) == []
    world.apply(world.maker.delta())
    assert world.hub.flush(203 * MS) == [outbox]
    assert world.hub.flush(300 * MS) == []
    assert world.hub.flush(301 * MS) == []
    assert world.hub.flush(12_000 * MS) == [outbox]
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
