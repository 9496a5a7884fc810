"""What can happen to the topics: expired, made anew, with more partitions, empty, with records that cannot be read."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions

import services.kafka.connection
from protos.messages import NoticeCode
from protos.records import decode_checkpoint
from protos.topics import Topics, checkpoint_key, partition_for
from services.config import Settings
from services.errors import UserError
from services.ingest import run_ingest
from services.kafka import Producer
from services.stack import Child, free_port
from services.topics import create_topics
from tests.support.captures import ticks_of
from tests.support.invariants import STREAMS, Scene, replayed, scene
from tests.support.kafka_server import RealBroker
from tests.support.scenario import Wanted, Watcher, read_topic, until

ROUND = [tick for name, count in (("kraken", 300), ("okx", 200)) for tick in ticks_of(name)[:count]]
"""Begins with a snapshot of each book, so that once more of the same heals it."""
pytestmark = [pytest.mark.faults, pytest.mark.kafka, pytest.mark.timeout(180)]


async def administer(settings: Settings, request: Callable[[AdminClient], dict[Any, Any]]) -> None:
    def done() -> None:
        client = AdminClient({"bootstrap.servers": settings.kafka_bootstrap, "log_level": 0})
        for future in request(client).values():
            future.result(30)

    await asyncio.to_thread(done)


async def expire(settings: Settings, topic: str) -> None:
    """As retention does: all records that the topic holds now."""
    ends = dict.fromkeys(range(settings.partitions), 0)
    for record in await read_topic(settings, topic):
        ends[record.partition] = record.offset + 1
    wanted = [TopicPartition(topic, p, end) for p, end in ends.items()]
    await administer(settings, lambda client: client.delete_records(wanted))


async def make_anew(settings: Settings, topic: str) -> None:
    await administer(settings, lambda client: client.delete_topics([topic]))

    async def created() -> bool:
        return topic in await create_topics(settings)

    await until(created, "the topic again")


async def put(settings: Settings, topic: str, partition: int, key: bytes, value: bytes) -> None:
    producer = Producer(settings)
    await producer.start()
    await producer.deliver(topic, partition, key, value)
    await producer.stop()


async def checkpointed(it: Scene) -> None:
    """Wait until checkpoints cover all ticks that were sent."""
    settings, topics = it.stack.settings, Topics(it.stack.settings.topic_prefix)
    ticks = await read_topic(settings, topics.ticks)
    ends = {p: max((t.offset + 1 for t in ticks if t.partition == p), default=0) for p in range(settings.partitions)}

    async def covered() -> bool:
        found = dict.fromkeys(ends, 0)
        for record in await read_topic(settings, topics.snapshots):
            if record.key == checkpoint_key(record.partition) and record.value:
                found[record.partition] = decode_checkpoint(record.value).ticks_offset
        return found == ends

    await until(covered, "a checkpoint")


async def restart(it: Scene) -> None:
    it.stack.ingest = await it.stack.spawn("ingest", free_port())
    await it.stack.ingest.ready()


async def one_more_streamer(it: Scene) -> tuple[Child, str]:
    """With its address."""
    port = free_port()
    child = await it.stack.spawn("streamer", free_port(), {"DEPTHCAST_HTTP_PORT": str(port)})
    await child.ready()
    return child, f"ws://127.0.0.1:{port}/v1/stream"


def streams(names: Iterable[str]) -> list[Wanted]:
    return [(name, *stream) for name in names for stream in STREAMS[:2]]


@pytest.mark.parametrize("fault", ["expired", "made anew"])
async def test_ticks_that_are_gone_are_a_gap_until_the_next_snapshot(kafka_server: RealBroker, fault: str) -> None:
    async with scene(kafka_server.bootstrap, ROUND * 2, checkpoint_interval_ms=200) as it:
        settings, ticks = it.stack.settings, Topics(it.stack.settings.topic_prefix).ticks
        await it.feed.send(len(ROUND) - 100 - it.feed.sent)
        await checkpointed(it)
        before = await it.invariants.hold()
        assert await it.stack.ingest.stop() == 0
        await it.feed.send(100)
        await (expire if fault == "expired" else make_anew)(settings, ticks)
        await it.feed.send(10)
        await restart(it)
        await until(lambda: it.client.notices[NoticeCode.GAP] > 0, "the client is told")
        assert (await it.stack.ingest.metrics())["depthcast_kafka_offsets_lost_total"] > 0
        await it.feed.send(len(ROUND))
        truth = await it.invariants.hold_with_lost_ticks()
    assert before.books.keys() == truth.books.keys()
    assert all(subscription.live for subscription in it.client.subscriptions if subscription.has_book)


@pytest.mark.parametrize("fault", ["expired", "made anew"])
async def test_updates_that_are_gone_are_a_gap_until_the_next_checkpoint(kafka_server: RealBroker, fault: str) -> None:
    """The newest checkpoint is older than all that the market topic holds."""
    async with scene(kafka_server.bootstrap, ROUND * 3, checkpoint_interval_ms=600_000) as it:
        settings, market = it.stack.settings, Topics(it.stack.settings.topic_prefix).market
        assert await it.stack.ingest.stop() == 0  # with a checkpoint; the next one has none until it stops
        await restart(it)
        await it.feed.send(200)
        await it.invariants.hold()
        await (expire if fault == "expired" else make_anew)(settings, market)
        await it.feed.send(20)
        late, url = await one_more_streamer(it)
        if fault == "made anew":
            await until(lambda: it.client.notices[NoticeCode.GAP] > 0, "the client is told")
        assert await it.stack.ingest.stop() == 0
        await restart(it)
        await it.feed.send(300)
        async with Watcher(url, streams(it.feed.instruments)) as client:
            await it.invariants.hold_with_lost_updates(client)
        lost = [await child.metrics() for child in (late, it.stack.streamer)]
    assert sum(metrics["depthcast_kafka_offsets_lost_total"] for metrics in lost) > 0


async def test_without_snapshots_all_is_made_again_from_the_ticks(kafka_server: RealBroker) -> None:
    async with scene(kafka_server.bootstrap, ROUND, checkpoint_interval_ms=200) as it:
        settings, snapshots = it.stack.settings, Topics(it.stack.settings.topic_prefix).snapshots
        await it.feed.send(250)
        await checkpointed(it)
        assert await it.stack.ingest.stop() == 0
        await make_anew(settings, snapshots)
        assert await read_topic(settings, snapshots) == []
        _, url = await one_more_streamer(it)
        await restart(it)
        await it.feed.send(len(ROUND) - it.feed.sent)
        async with Watcher(url, streams(it.feed.instruments)) as client:
            truth = await it.invariants.hold(client)
            assert client.faults == []
    assert truth.repeats > 0, "all ticks were processed once more"
    assert it.client.faults == []


async def test_a_snapshot_that_cannot_be_read_costs_its_instrument_its_book_and_nobody_else(
    kafka_server: RealBroker,
) -> None:
    async with scene(kafka_server.bootstrap, ROUND * 3, checkpoint_interval_ms=200) as it:
        settings, topics = it.stack.settings, Topics(it.stack.settings.topic_prefix)
        await it.feed.send(400)
        await checkpointed(it)
        assert await it.stack.ingest.stop() == 0
        broken, *others = it.feed.instruments
        partition = partition_for(broken.encode(), settings.partitions)
        await put(settings, topics.snapshots, partition, broken.encode(), b"\xff\xff\xff")
        await put(settings, topics.snapshots, partition, checkpoint_key(partition), b"\xff\xff\xff")
        late, url = await one_more_streamer(it)
        metrics = await late.metrics()
        assert metrics["depthcast_dead_letters_total{reason=bad-state}"] == 1
        assert metrics["depthcast_dead_letters_total{reason=bad-checkpoint}"] == 1
        await restart(it)
        await it.feed.send(len(ROUND) * 3 - it.feed.sent)
        await it.invariants.hold_with_lost_ticks()
        async with Watcher(url, streams(it.feed.instruments)) as client:  # when all instruments are known there
            truth = await it.invariants.hold_with_lost_ticks(client)
        whole = replayed(await read_topic(settings, topics.ticks), settings)
    assert {name: truth.books[name].top(0) for name in others} == {name: whole.books[name].top(0) for name in others}
    assert truth.books[broken].top(0) == whole.books[broken].top(0), "healed by the venue's next snapshot"
    assert [fault for fault in it.client.faults if any(name in fault for name in others)] == []


async def test_partitions_that_are_added_are_refused(kafka_server: RealBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys would move to other partitions, and with them half of a book."""
    monkeypatch.setattr(services.kafka.connection, "METADATA_MAX_AGE_MS", 500)
    async with scene(kafka_server.bootstrap, ROUND) as it:
        assert await it.stack.ingest.stop() == 0
        settings, ready = it.stack.settings.model_copy(update={"admin_port": 0}), asyncio.Event()
        task = asyncio.create_task(run_ingest(settings, asyncio.Event(), ready=lambda _: ready.set()))
        await until(ready.is_set, "ready")
        await it.feed.send(100)
        before = await it.invariants.hold()
        topic = Topics(settings.topic_prefix).ticks
        more = [NewPartitions(topic, settings.partitions + 1)]
        await administer(settings, lambda client: client.create_partitions(more))
        with pytest.raises(UserError, match=f"{topic} .* has 3 partitions, not 2"):
            await asyncio.wait_for(task, 40)
        after = await it.invariants.hold()
    assert after.values == before.values
    assert it.client.faults == []
    assert it.client.disconnects == 0
