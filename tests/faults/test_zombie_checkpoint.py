"""A worker that stands still inside its checkpoint, after it was told that its partitions are its own."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import pytest

from protos.records import decode_checkpoint, decode_state
from protos.topics import Topics, checkpoint_key
from services.config import Settings
from services.ingest import Cut, Worker
from services.metrics import Metrics
from tests.support.captures import Tick, ticks_of
from tests.support.invariants import scene
from tests.support.kafka_server import RealBroker
from tests.support.scenario import read_topic, until

pytestmark = [pytest.mark.faults, pytest.mark.kafka]


class Sleeper(Worker):
    """Once it is ``tired``, it stands still in its next checkpoint until it is woken."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, Metrics())
        self.asleep, self.wake, self.late = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.tired = False

    async def _owns(self, partitions: Iterable[int]) -> bool:
        ours = await super()._owns(partitions)
        if self.wake.is_set():
            return False  # from then on the group tells it
        if self.tired:
            self.asleep.set()
            await self.wake.wait()
        return ours

    async def _write_checkpoint(self, cuts: dict[int, Cut]) -> None:
        await super()._write_checkpoint(cuts)
        if self.wake.is_set():
            self.late.set()


@asynccontextmanager
async def running(worker: Worker) -> AsyncIterator[None]:
    stop = asyncio.Event()
    task = asyncio.create_task(worker.run(stop, lambda: None))
    try:
        yield
    finally:
        stop.set()
        await task


async def at(worker: Worker, position: int) -> None:
    """Wait until a checkpoint in Kafka says that all ticks below are processed."""

    async def there() -> bool:
        records = await read_topic(worker.settings, worker.topics.snapshots)
        found = [decode_checkpoint(record.value or b"") for record in records if record.key == checkpoint_key(0)]
        return bool(found) and found[-1].ticks_offset == position

    await until(there, f"a checkpoint at {position}")


def group(settings: Settings, name: str) -> Settings:
    """As if the group had given the partition to the next one: a group of its own, as the sleeper still heartbeats."""
    return settings.model_copy(update={"ingest_group": f"{settings.topic_prefix}-{name}"})


async def test_states_that_a_zombie_writes_late_are_written_over(kafka_server: RealBroker) -> None:
    kraken, binance = ticks_of("kraken"), ticks_of("binance.spot")[:40]
    name = kraken[0].instrument
    lone = [tick for tick in kraken if tick.instrument == name]
    ticks: list[Tick] = [*binance[:20], *lone[:190], *binance[20:], *lone[190:]]
    assert len(ticks) == 250
    async with scene(kafka_server.bootstrap, ticks, partitions=1) as it:
        assert await it.stack.ingest.stop() == 0
        settings = it.stack.settings.model_copy(update={"checkpoint_interval_ms": 50, "admin_port": 0})
        zombie = Sleeper(group(settings, "zombie"))
        async with running(zombie):
            await it.feed.send(110 - it.feed.sent)
            await at(zombie, 110)
            zombie.tired = True
            await it.feed.send(50)
            await asyncio.wait_for(zombie.asleep.wait(), 20)
            heir = Worker(group(settings, "heir"), Metrics())
            async with running(heir):
                await it.feed.send(50)
                await at(heir, 210)
                zombie.wake.set()
                await asyncio.wait_for(zombie.late.wait(), 20)
                await it.feed.send(20)  # of the other instrument: this one has no reason to be in the next checkpoint
                await at(heir, 230)
            assert heir.metrics.foreign_states._value.get() == 1, "I6"
            states = await read_topic(settings, Topics(settings.topic_prefix).snapshots)
        await it.feed.send(20)
        last = Worker(group(settings, "last"), Metrics())
        async with running(last):
            await at(last, 250)
        await it.invariants.hold()
    cuts = [decode_state(record.value or b"").ticks_offset for record in states if record.key == name.encode()]
    assert cuts != sorted(cuts), "the zombie wrote its state late"
    assert it.client.faults == []
