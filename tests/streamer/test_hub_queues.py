"""What the hub does with the queues of its clients: shared frames, closed clients, one pass for many sockets."""

from collections.abc import Callable
from dataclasses import replace
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
from tests.support.world import BBO, BOOK, MS, RAW, STATUS, TRADES, World


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


def test_one_pass_makes_the_frames_of_all_who_have_a_socket(world: World) -> None:
    """Who has none, is closed or has more to take is to be asked afterwards."""
    world.hub.limits = replace(world.hub.limits, frame_bytes_max=1)
    world.apply(world.maker.snapshot())
    outboxes = [world.join(RAW, BOOK) for _ in range(5)]
    idle, whole, closed, gone, without = outboxes
    for socket, outbox in enumerate(outboxes[:-1]):
        outbox.socket = socket + 10
    gone.gone = lambda: True
    world.apply(world.maker.delta())
    world.hub.flush(3)
    idle.take(1_000)
    closed.close(CloseCode.NORMAL)
    part = whole.queue[0].data
    batch = world.hub.gather(outboxes)
    assert (batch.sockets, batch.outboxes, batch.frames) == ([11], [whole], [part])
    assert batch.bytes == len(part)
    assert batch.others == [whole, closed, gone, without]
    assert len(whole.queue) == 1
    batch = world.hub.gather([whole])
    assert (len(batch.frames), batch.others) == (1, [])
