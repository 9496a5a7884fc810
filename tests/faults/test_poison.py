"""Records that nobody can use, amid the ticks of a running system."""

import time
from collections import Counter

import pytest

from protos.topics import Topics
from services.kafka import Producer
from tests.support.bad_records import BAD
from tests.support.invariants import check_latency, scene
from tests.support.kafka_server import RealBroker
from tests.support.scenario import until

ROUNDS = 4
pytestmark = [pytest.mark.faults, pytest.mark.kafka]


async def test_poison_among_the_ticks_is_counted_and_disturbs_nobody(kafka_server: RealBroker) -> None:
    async with scene(kafka_server.bootstrap) as it:
        settings = it.stack.settings
        it.feed.flow()
        await until(lambda: len(it.client.views) > 100, "updates")
        began = time.monotonic()
        await until(lambda: len(it.client.views) > 300, "updates")
        poisoned = time.monotonic()
        producer = Producer(settings)
        await producer.start()
        for n in range(ROUNDS):
            for bad in BAD.values():
                topic, partition = Topics(settings.topic_prefix).ticks, n % settings.partitions
                await producer.deliver(topic, partition, bad.key, bad.value, dict(bad.headers))
        await producer.stop()
        seen = len(it.client.views)
        await until(lambda: len(it.client.views) > seen + 100, "updates")
        check_latency(began, poisoned, time.monotonic(), it.client)
        await it.feed.stop()
        await it.invariants.hold()
        metrics = await it.stack.ingest.metrics()
    dead = "depthcast_dead_letters_total"
    counted = {key: count for key, count in metrics.items() if key.startswith(f"{dead}{{reason=")}
    reasons = Counter(bad.reason for bad in BAD.values())
    assert counted == {f"{dead}{{reason={why}}}": ROUNDS * count for why, count in reasons.items()}, "I6"
    assert it.client.faults == []
    assert it.client.disconnects == 0
