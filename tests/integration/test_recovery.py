"""kill -9 of the ingest worker, ten times while ticks flow: afterwards neither client nor topic can tell."""

import asyncio
import signal
from random import Random

import pytest

from protos.messages import Channel
from protos.topics import HEADER_FEED, Topics
from services.config import Settings
from services.kafka import Admin, Producer
from services.stack import Stack, free_port
from services.topics import topic_specs
from tests.support.scenario import Feed, Truth, Wanted, Watcher, at_end, mixed, read_topic, stack_on, until

KILLS = 10
SEED = 3
STREAMS = ((Channel.RAW, 0), (Channel.BOOK, 10), (Channel.TRADES, 0))


async def undisturbed(stack: Stack) -> Truth:
    """What a worker that nobody kills makes of the same ticks: their offsets and times are copied."""
    settings, topic = stack.settings, Topics(stack.settings.topic_prefix).ticks
    ticks = await read_topic(settings, topic)
    assert {record.partition for record in ticks if record.offset == 0} == set(range(settings.partitions))
    name = f"{settings.topic_prefix}-undisturbed"
    other = settings.model_copy(update={"topic_prefix": name, "ingest_group": name})
    await create(stack, other)
    producer = Producer(other)
    await producer.start()
    for record in ticks:
        assert HEADER_FEED in record.headers
        target = Topics(name).ticks
        producer.send(target, record.partition, record.key, record.value, record.headers, record.timestamp_ms)
    await producer.flush()
    await producer.stop()
    worker = await stack.spawn("ingest", free_port(), {"DEPTHCAST_TOPIC_PREFIX": name, "DEPTHCAST_INGEST_GROUP": name})
    await worker.ready()

    async def processed() -> bool:
        return (await worker.metrics()).get("depthcast_kafka_records_total", 0) == len(ticks)

    await until(processed, "ticks processed")
    assert await worker.stop() == 0, worker.ended
    truth = Truth(await read_topic(other, Topics(name).market))
    assert truth.repeats == 0
    return truth


async def create(stack: Stack, settings: Settings) -> None:
    """Its topics; the ticks keep the times that they are written with."""
    specs = topic_specs(settings)
    if stack.broker is not None:
        for spec in specs:
            stack.broker.create_topic(spec.name, spec.partitions)
        return
    specs[0].configs["message.timestamp.type"] = "CreateTime"
    admin = Admin(settings)
    await admin.start()
    await admin.create(specs)
    await admin.stop()


async def kill_again_and_again(stack: Stack, client: Watcher, rng: Random) -> None:
    """Most moments are of a worker whose updates have reached the client; the others of one that starts."""
    at_work = set(rng.sample(range(KILLS), KILLS - 3))
    worker = stack.ingest
    for n in range(KILLS):
        if n in at_work:
            await worker.ready()
            seen = len(client.views)
            await until(lambda: len(client.views) > seen, "an update of this worker")  # noqa: B023 - awaited at once
        await asyncio.sleep(rng.uniform(0.0, 0.6))
        assert await worker.stop(signal.SIGKILL) == -signal.SIGKILL
        worker = await stack.spawn("ingest", free_port())
    stack.ingest = worker


@pytest.mark.faults
@pytest.mark.timeout(180)
@pytest.mark.parametrize("kafka", ["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
async def test_ten_kills_of_the_ingest_worker_leave_no_trace(kafka: str, request: pytest.FixtureRequest) -> None:
    bootstrap = request.getfixturevalue("kafka_server").bootstrap if kafka == "kafka" else None
    async with (
        stack_on(bootstrap, checkpoint_interval_ms=300) as stack,
        Feed(stack.settings, mixed(binance_spot=16_000, kraken=2_561, okx=392), 200) as feed,
    ):
        await feed.begin(stack)
        wanted: list[Wanted] = [(name, channel, depth, 0) for name in feed.instruments for channel, depth in STREAMS]
        async with Watcher(stack.url, wanted) as client:
            await until(lambda: len(client.resumed) >= len(wanted), "subscribed")
            feed.flow()
            await kill_again_and_again(stack, client, Random(SEED))
            assert not feed.ended, "the ticks must flow all the time"
            await feed.stop()
            expected = await undisturbed(stack)
            await at_end(expected, client)
        written = Truth(await read_topic(stack.settings, Topics(stack.settings.topic_prefix).market))
    assert written.repeats > 0, "a worker that was killed at work is repeated from its checkpoint"
    partitions = stack.settings.partitions
    assert written.by_partition(partitions) == expected.by_partition(partitions)
    assert client.faults == []
    assert client.disconnects == 0
    assert client.duplicates == 0
    assert client.wrong(expected) == []
    assert client.digests > 0
    for (channel, name), positions in client.positions.items():
        if channel is not Channel.BOOK:
            chain = expected.chain(channel, name)
            assert positions == chain[chain.index(positions[0]) :], f"{channel.name} of {name}"
