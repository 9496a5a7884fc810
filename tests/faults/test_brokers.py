"""Three brokers that die, move, go away all at once, or are behind a bad network; and clients that must not notice more
than that their books are stale for a while.

``FAULTS_LONG=1`` has the brokers away for a minute instead of some seconds.
"""

import asyncio
import os
import signal
import time
from collections.abc import Callable

import httpx
import pytest

import services.kafka.connection
from protos.messages import NoticeCode
from protos.topics import Topics
from services.config import Settings
from services.kafka import Admin, Producer, TopicSpec
from tests.support.brokers import TestBroker
from tests.support.cluster import Cluster
from tests.support.invariants import Scene, p99_s, scene
from tests.support.proxy import Proxy
from tests.support.scenario import read_topic, until

LONG = bool(os.environ.get("FAULTS_LONG"))
OUTAGE_S = 60.0 if LONG else 4.0
"""All brokers are down for this long, and for the ten seconds that they take to start."""
STALE_MS = 5_000
"""More than it takes to read the topics after the last tick: the books are live then."""
PATIENCE_S = 60.0
"""Brokers elect each other in seconds, on a busy machine in many."""
LATE_S = 0.15
WARM_UP = 30
"""Updates that a client sees before the fault."""
pytestmark = [pytest.mark.faults, pytest.mark.kafka, pytest.mark.timeout(300)]
QUICK = {"rate_per_s": 60, "replication_factor": 3, "stale_after_ms": STALE_MS, "checkpoint_interval_ms": 1_000}


async def updates(it: Scene, count: int = WARM_UP) -> None:
    seen = len(it.client.views)
    await until(lambda: len(it.client.views) >= seen + count, "updates", PATIENCE_S)


async def is_ready(port: int) -> bool:
    async with httpx.AsyncClient(timeout=5.0) as http:
        return (await http.get(f"http://127.0.0.1:{port}/readyz")).status_code == httpx.codes.OK


async def test_a_leader_dies_another_takes_over_and_the_dead_one_comes_back(cluster: Cluster) -> None:
    async with scene(cluster.bootstrap, **QUICK) as it:
        topics = Topics(it.stack.settings.topic_prefix)
        it.feed.flow()
        await updates(it)
        dead = await asyncio.to_thread(cluster.leader, topics.market, 0)
        await asyncio.to_thread(cluster.stop_node, dead, signal.SIGKILL)
        moved = [await asyncio.to_thread(cluster.leader, topics.market, 0)]

        async def has_moved() -> bool:
            moved.append(await asyncio.to_thread(cluster.leader, topics.market, 0))
            return moved[-1] not in (dead, -1)

        await until(has_moved, "another leader", PATIENCE_S)
        await updates(it)
        await asyncio.to_thread(cluster.start_node, dead)
        await updates(it)
        await it.feed.stop()
        await it.invariants.hold()
    assert it.client.disconnects == 0
    assert it.client.faults == []


async def test_all_brokers_are_away_and_clients_keep_flagged_books(cluster: Cluster) -> None:
    async with scene(cluster.bootstrap, **QUICK) as it, httpx.AsyncClient(timeout=5.0) as http:
        it.feed.flow()
        await updates(it)
        away_since = time.monotonic()
        if LONG:  # a feed gives up what Kafka does not take for so long, and says so
            await it.feed.stop()
        await asyncio.to_thread(cluster.all_down)
        await until(lambda: it.client.notices[NoticeCode.STALE] > 0, "books flagged STALE")
        while time.monotonic() < away_since + OUTAGE_S:
            assert await is_ready(it.stack.streamer.admin_port), "a pod that serves stale books is better than none"
            await asyncio.sleep(0.5)
        books = [
            (await http.get(f"{it.stack.http_url}/v1/instruments/{name}/book")).json() for name in it.feed.instruments
        ]
        assert {book["state"] for book in books} == {"stale"}
        assert all(book["bids"] and book["asks"] for book in books)
        metrics = await it.stack.streamer.metrics()
        assert metrics["depthcast_kafka_last_poll_age_seconds"] >= 0
        assert it.stack.ingest.ended == ""
        await asyncio.to_thread(cluster.all_up)
        if LONG:
            it.feed.flow()
        await until(lambda: it.client.notices[NoticeCode.RECOVERED] > 0, "books live again", PATIENCE_S)
        await updates(it)
        await it.feed.stop()
        await it.invariants.hold()
        assert it.stack.ingest.ended == "", "an outage is no reason to end"
    assert it.client.disconnects == 0
    assert it.client.faults == []


async def test_a_bad_network_between_us_and_the_brokers(cluster: Cluster) -> None:
    """One after the other: late answers, resets, lost answers, half-closed connections, silence."""
    proxies = list(cluster.proxies.values())

    def count(what: str) -> int:
        return sum(proxy.counts[what] for proxy in proxies)

    def all_of(fault: Callable[[Proxy], None]) -> None:
        for proxy in proxies:
            fault(proxy)

    async with scene(cluster.bootstrap, **QUICK) as it:
        it.feed.flow()
        await updates(it)
        all_of(lambda proxy: proxy.delay(LATE_S))
        await updates(it, 10)
        late_at = time.monotonic()
        await updates(it, 60)
        assert p99_s(late_at, time.monotonic(), it.client) > 2 * LATE_S, "to ingest and to the streamer"
        all_of(Proxy.heal)
        for what, fault in (
            ("resets", Proxy.reset),
            ("swallowed", Proxy.cut_next_answer),
            ("half_closes", Proxy.half_close),
        ):
            for _ in range(3):
                before = count(what)
                all_of(fault)
                await until(lambda: count(what) > before, what)  # noqa: B023
                await updates(it, 10)
        before, told = count("swallowed"), it.client.notices[NoticeCode.STALE]
        all_of(Proxy.blackhole)
        try:
            await until(lambda: it.client.notices[NoticeCode.STALE] > told, "silence is noticed")
            await until(lambda: count("swallowed") > before, "silence")
        finally:
            all_of(Proxy.heal)
        await updates(it)
        await it.feed.stop()
        await it.invariants.hold()
    assert it.client.disconnects == 0
    assert it.client.faults == []


@pytest.mark.parametrize("fault", ["reset", "time-out"])
async def test_a_record_whose_acknowledgement_is_lost_is_written_once(
    cluster: Cluster, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services.kafka.connection, "REQUEST_TIMEOUT_MS", 2_000)
    async with scene(cluster.bootstrap, **QUICK) as it:
        it.feed.flow()
        await updates(it, 4 * WARM_UP)
        settings = it.stack.settings.model_copy(update={"partitions": 1})
        await lose_acknowledgements(cluster, settings, fault)
        await updates(it)
        await it.feed.stop()
        await it.invariants.hold()
    assert it.client.disconnects == 0


async def lose_acknowledgements(cluster: Cluster, settings: Settings, fault: str) -> None:
    """Three times, of a producer whose broker the system beside it uses, too."""
    topic = TestBroker.name("ack")
    admin, producer = Admin(settings), Producer(settings)
    await admin.start()
    await admin.create([TopicSpec(topic, 1, 3, {"min.insync.replicas": "2"})])
    await admin.stop()
    await producer.start()
    try:
        await producer.deliver(topic, 0, None, b"0")
        leader = cluster.proxies[await asyncio.to_thread(cluster.leader, topic, 0)]
        for i in range(1, 4):
            swallowed = leader.counts["swallowed"]
            if fault == "reset":
                leader.cut_next_answer()
            else:
                leader.blackhole(up=False, down=True)
            sent = asyncio.create_task(producer.deliver(topic, 0, None, str(i).encode()))
            await until(lambda: leader.counts["swallowed"] > swallowed, "the answer is lost")  # noqa: B023
            if fault == "time-out":
                await asyncio.sleep(2.5)
                assert not sent.done(), "nobody has told that it is written"
                leader.heal()
            await asyncio.wait_for(sent, 30)
        assert [record.value for record in await read_topic(settings, topic)] == [b"0", b"1", b"2", b"3"]
    finally:
        leader.heal()
        await producer.stop()
