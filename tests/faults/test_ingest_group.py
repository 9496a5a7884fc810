"""Workers that come, go, stand still and come back, while ticks flow."""

import asyncio
import os
import signal
import time

import pytest

from protos.messages import BookUpdate, QuoteUpdate, TradesUpdate
from protos.records import decode_market
from protos.topics import Topics
from services.ingest import run_ingest
from services.stack import Child, free_port
from tests.support.invariants import Scene, scene
from tests.support.kafka_server import RealBroker
from tests.support.scenario import read_topic, until

SESSION_S = 1.5
BURST = 900
"""Ticks that a worker has before it when it stands still: more than it can do in the moment that it gets."""
pytestmark = [pytest.mark.faults, pytest.mark.kafka, pytest.mark.timeout(300)]


def owns(child: Child, times: int = 1) -> bool:
    return child.log.read_text().count("are ours") >= times


async def stop_process(child: Child) -> int:
    assert child.process is not None
    os.kill(child.process.pid, signal.SIGSTOP)
    return child.process.pid


async def late_records(it: Scene, since: dict[int, int]) -> int:
    """Records that repeat one which was written first after ``since`` (offsets by partition): only a zombie's are."""
    topic = Topics(it.stack.settings.topic_prefix).market
    first: dict[tuple[bytes, str, int, int], int] = {}
    late = 0
    for record in await read_topic(it.stack.settings, topic):
        update = decode_market(record.value or b"")
        assert isinstance(update, BookUpdate | QuoteUpdate | TradesUpdate) or update.seq
        name = (record.key or b"", type(update).__name__, update.epoch, update.seq)
        late += first.setdefault(name, record.offset) >= since[record.partition] and first[name] != record.offset
    return late


async def ends(it: Scene) -> dict[int, int]:
    records = await read_topic(it.stack.settings, Topics(it.stack.settings.topic_prefix).market)
    return {p: max((r.offset + 1 for r in records if r.partition == p), default=0) for p in (0, 1)}


async def test_a_worker_that_wakes_after_its_session_writes_only_what_is_dropped(kafka_server: RealBroker) -> None:
    for moment_s in (0.15, 0.1, 0.25, 0.05, 0.4):  # how quick the machine is decides when it is amid the burst
        if await stand_still_amid_a_burst(kafka_server.bootstrap, moment_s):
            return
    pytest.fail("at no moment had the one that woke something left to write that the other had written already")


async def stand_still_amid_a_burst(bootstrap: str, moment_s: float) -> int:
    """Stop a worker ``moment_s`` after a burst began, until another has its work. Returns the records it wrote late."""
    async with scene(bootstrap, checkpoint_interval_ms=300) as it:
        zombie = it.stack.ingest
        sending = asyncio.create_task(it.feed.send(BURST))
        await asyncio.sleep(moment_s)
        pid = await stop_process(zombie)
        try:
            await sending
            before = await ends(it)
            it.stack.ingest = await it.stack.spawn("ingest", free_port())
            await until(lambda: owns(it.stack.ingest), "the other takes over")
            it.feed.flow()
            await asyncio.sleep(SESSION_S)
        finally:
            os.kill(pid, signal.SIGCONT)
        await until(lambda: owns(zombie, 2) or owns(it.stack.ingest, 2), "it joins again")
        await it.feed.stop()
        truth = await it.invariants.hold()
        metrics = await it.stack.streamer.metrics()
        await zombie.stop()
        late = await late_records(it, before)
    assert metrics["depthcast_duplicates_dropped_total"] == truth.repeats, "I6"
    assert it.client.faults == []
    return late


async def test_a_worker_whose_event_loop_is_blocked_for_longer_than_its_session(kafka_server: RealBroker) -> None:
    async with scene(kafka_server.bootstrap) as it:
        assert await it.stack.ingest.stop() == 0
        quick = {"checkpoint_interval_ms": 300, "admin_port": 0, "kafka_session_timeout_ms": int(SESSION_S * 1e3)}
        stop, ready = asyncio.Event(), asyncio.Event()
        settings = it.stack.settings.model_copy(update=quick)
        blocked = asyncio.create_task(run_ingest(settings, stop, ready=lambda _: ready.set()))
        await until(ready.is_set, "ready")
        await it.feed.send(BURST)
        it.stack.ingest = await it.stack.spawn("ingest", free_port())
        deadline = time.monotonic() + 30
        while not owns(it.stack.ingest) and time.monotonic() < deadline:  # nothing else runs on this loop meanwhile
            time.sleep(0.1)  # noqa: ASYNC251
        assert owns(it.stack.ingest), "the other took over from a worker that was only blocked"
        it.feed.flow()
        await until(lambda: owns(it.stack.ingest, 2), "the blocked one came back")
        await it.feed.stop()
        truth = await it.invariants.hold()
        metrics = await it.stack.streamer.metrics()
        stop.set()
        await blocked
    assert metrics["depthcast_duplicates_dropped_total"] == truth.repeats
    assert it.client.faults == []


async def test_one_worker_three_workers_one_worker_and_a_rolling_restart(kafka_server: RealBroker) -> None:
    async with scene(kafka_server.bootstrap, partitions=6, rate_per_s=200) as it:
        it.feed.flow()
        first = it.stack.ingest
        more = [await it.stack.spawn("ingest", free_port()) for _ in range(2)]
        await until(lambda: owns(more[0]) and owns(more[1]), "three workers")
        for worker in more:
            assert await worker.stop() == 0
        seen = len(it.client.views)
        await until(lambda: len(it.client.views) > seen + 20, "one worker does it all")
        for _ in range(2):
            following = await it.stack.spawn("ingest", free_port())
            await until(lambda: owns(following), "the next is there")  # noqa: B023
            assert await it.stack.ingest.stop() == 0
            it.stack.ingest = following
        await it.feed.stop()
        assert not it.feed.ended
        truth = await it.invariants.hold()
        metrics = await it.stack.streamer.metrics()
    assert first.ended
    assert metrics["depthcast_duplicates_dropped_total"] == truth.repeats
    assert it.client.faults == []
    assert it.client.disconnects == 0
