"""SIGKILL of ingest workers at fifty exact moments: mid-batch, and between each two steps of a checkpoint."""

import asyncio
import itertools
import signal
from random import Random

import pytest

from protos.messages import Channel
from tests.support import mortal
from tests.support.invariants import Invariants
from tests.support.kafka_server import RealBroker
from tests.support.scenario import Feed, Wanted, Watcher, mixed, stack_on, until

KILLS = 50
SEED = 5
TICKS = 60
"""Sent at the start of each life, and again while it goes on."""
pytestmark = [pytest.mark.faults, pytest.mark.kafka]


@pytest.mark.timeout(240)
async def test_fifty_kills_at_exact_moments_leave_no_trace(kafka_server: RealBroker) -> None:
    async with (
        stack_on(kafka_server.bootstrap) as stack,
        Feed(stack.settings, mixed(binance_spot=9_000, kraken=2_561, okx=392), 300) as feed,
    ):
        await feed.begin(stack)
        wanted: list[Wanted] = [
            (name, *stream) for name in feed.instruments for stream in ((Channel.RAW, 0, 0), (Channel.BOOK, 10, 0))
        ]
        async with Watcher(stack.url, wanted) as client, Invariants(stack, feed, client) as invariants:
            await until(lambda: len(client.resumed) >= len(wanted), "subscribed")
            assert await stack.ingest.stop() == 0
            for life, moment in enumerate(mortal.moments(Random(SEED), KILLS)):
                # Another group each time: the dead member's session would have to end first, which tests nothing here.
                settings = stack.settings.model_copy(
                    update={
                        "ingest_group": f"{stack.settings.ingest_group}-{life}",
                        "checkpoint_interval_ms": 20,
                        "admin_port": 0,
                    }
                )
                process = mortal.start(settings, moment)
                for _ in itertools.takewhile(lambda _: process.is_alive(), range(100)):  # noqa: B023
                    await feed.send(TICKS)
                    await asyncio.to_thread(process.join, 0.3)
                assert process.exitcode == -signal.SIGKILL, f"{moment} did not come"
            assert not feed.ended
            stack.ingest = await stack.spawn("ingest", 0)
            truth = await invariants.hold()
            metrics = await stack.streamer.metrics()
    assert truth.repeats > KILLS, "who was killed is repeated from the last checkpoint"
    assert metrics["depthcast_duplicates_dropped_total"] == truth.repeats, (
        "I6: each repeat is dropped once, and counted"
    )
    assert client.faults == []
    assert client.disconnects == 0
