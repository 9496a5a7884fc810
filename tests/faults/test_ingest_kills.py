"""SIGKILL of ingest workers at fifty exact moments: mid-batch, and between each two steps of a checkpoint."""

import asyncio
import itertools
import signal
from random import Random

import pytest

from services.stack import free_port
from tests.support import mortal
from tests.support.invariants import scene
from tests.support.kafka_server import RealBroker
from tests.support.scenario import mixed

KILLS = 50
SEED = 5
TICKS = 60
"""Sent at the start of each life, and again while it goes on."""
pytestmark = [pytest.mark.faults, pytest.mark.kafka]


@pytest.mark.timeout(240)
async def test_fifty_kills_at_exact_moments_leave_no_trace(kafka_server: RealBroker) -> None:
    ticks = mixed(binance_spot=9_000, kraken=2_561, okx=392)
    async with scene(kafka_server.bootstrap, ticks) as it:
        assert await it.stack.ingest.stop() == 0
        for life, moment in enumerate(mortal.moments(Random(SEED), KILLS)):
            # Another group each time: the dead member's session would have to end first, which tests nothing here.
            group = {"ingest_group": f"{it.stack.settings.ingest_group}-{life}"}
            quick = {"checkpoint_interval_ms": 20, "admin_port": 0}
            process = mortal.start(it.stack.settings.model_copy(update=group | quick), moment)
            for _ in itertools.takewhile(lambda _: process.is_alive(), range(100)):  # noqa: B023
                await it.feed.send(TICKS)
                await asyncio.to_thread(process.join, 0.3)
            assert process.exitcode == -signal.SIGKILL, f"{moment} did not come"
        assert not it.feed.ended
        it.stack.ingest = await it.stack.spawn("ingest", free_port())
        truth = await it.invariants.hold()
        metrics = await it.stack.streamer.metrics()
    assert truth.repeats > KILLS, "who was killed is repeated from the last checkpoint"
    assert metrics["depthcast_duplicates_dropped_total"] == truth.repeats, (
        "I6: each repeat is dropped once, and counted"
    )
    assert it.client.faults == []
    assert it.client.disconnects == 0
