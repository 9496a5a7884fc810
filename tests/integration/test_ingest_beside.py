"""A checkpoint is of one moment, and is written while ticks go on."""

import asyncio
from collections.abc import Iterable

from protos.records import decode_checkpoint
from protos.topics import checkpoint_key
from services.config import Settings
from services.ingest import Worker
from services.metrics import Metrics
from tests.support.brokers import TestBroker
from tests.support.captures import ticks_of
from tests.support.invariants import Reference
from tests.support.scenario import Feed, Truth, read_topic, until

FIRST, ALL = 100, 300


class Waiting(Worker):
    """Writes no checkpoint before it may."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, Metrics())
        self.asked, self.may = asyncio.Event(), asyncio.Event()

    async def _owns(self, partitions: Iterable[int]) -> bool:
        self.asked.set()
        await self.may.wait()
        return await super()._owns(partitions)


async def checkpoints(worker: Worker) -> list[int]:
    """Offsets of ticks, oldest first."""
    records = await read_topic(worker.settings, worker.topics.snapshots)
    return [decode_checkpoint(r.value or b"").ticks_offset for r in records if r.key == checkpoint_key(0)]


async def test_ticks_go_on_while_a_checkpoint_is_written(broker: TestBroker) -> None:
    settings = broker.settings = broker.settings.model_copy(update={"partitions": 1, "checkpoint_interval_ms": 50})
    await broker.create_topics()
    stop, worker = asyncio.Event(), Waiting(settings)
    running = asyncio.create_task(worker.run(stop, lambda: None))
    async with Feed(settings, ticks_of("kraken")[:ALL], 0) as feed:
        await feed.send(FIRST)
        await asyncio.wait_for(worker.asked.wait(), 20)
        await feed.send(ALL - FIRST)

    async def all_published() -> bool:
        seen = Truth(await read_topic(settings, worker.topics.market))
        reference = Reference(await read_topic(settings, worker.topics.ticks), settings)
        return seen.values == reference.values

    await until(all_published, "all updates")
    assert await checkpoints(worker) == []
    worker.may.set()

    async def written() -> bool:
        return (await checkpoints(worker))[-1:] == [ALL]

    await until(written, "the checkpoint after it")
    first, *_, last = await checkpoints(worker)
    assert first <= FIRST < last, "the one that waited is as of its cut"
    stop.set()
    await running
