"""The streamer process over Kafka: records in Kafka to frames at a client, start, loss and recovery."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from protos.messages import (
    BookState,
    BookUpdate,
    Channel,
    Checkpoint,
    Flag,
    InstrumentState,
    MarketMessage,
    Notice,
    NoticeCode,
    Reason,
    Resume,
    Scale,
    StatusUpdate,
    Subscribe,
)
from protos.records import encode_checkpoint, encode_market, encode_state
from protos.topics import Topics, checkpoint_key, partition_for
from services.broker import EmbeddedBroker
from services.config import Settings
from services.errors import UserError
from services.kafka import Producer
from services.stack import free_port, local_http
from services.streamer.app import run_streamer
from tests.support.brokers import TestBroker
from tests.support.plain_client import BTC, CODEC, Client, client

PARTITIONS = 2
ETH = "binance:spot:ETHUSDT"


def snapshot(epoch: int, seq: int, price: int = 100) -> BookUpdate:
    return BookUpdate(
        epoch=epoch,
        seq=seq,
        flags=Flag.SNAPSHOT,
        ts_received_ns=1,
        bids=[(price, 5)],
        asks=[(price + 1, 7)],
        scale=Scale(-2, -3),
    )


def delta(epoch: int, prev_seq: int, seq: int, price: int = 99) -> BookUpdate:
    return BookUpdate(epoch=epoch, seq=seq, prev_seq=prev_seq, ts_received_ns=1, bids=[(price, seq)])


@dataclass
class Kafka:
    """Our topics, and a producer of what ingest would write to them."""

    settings: Settings
    producer: Producer
    broker: TestBroker

    @property
    def topics(self) -> Topics:
        return Topics(self.settings.topic_prefix)

    async def market(self, instrument: str, message: MarketMessage | bytes) -> int:
        value = message if isinstance(message, bytes) else encode_market(message)
        key = instrument.encode()
        return await self.producer.deliver(self.topics.market, partition_for(key, PARTITIONS), key, value)

    async def state(self, instrument: str, book: BookUpdate) -> None:
        key = instrument.encode()
        value = encode_state(InstrumentState(book.seq + 1, book))
        await self.producer.deliver(self.topics.snapshots, partition_for(key, PARTITIONS), key, value)

    async def checkpoint(self, instrument: str, market_offset: int) -> None:
        partition = partition_for(instrument.encode(), PARTITIONS)
        value = encode_checkpoint(Checkpoint(0, market_offset))
        await self.producer.deliver(self.topics.snapshots, partition, checkpoint_key(partition), value)


@pytest.fixture
async def kafka(broker: TestBroker) -> AsyncIterator[Kafka]:
    settings = broker.settings.model_copy(
        update={"partitions": PARTITIONS, "http_port": 0, "admin_port": 0, "drain_ms": 300}
    )
    await broker.create_topics()
    producer = Producer(settings)
    await producer.start()
    yield Kafka(settings, producer, broker)
    await producer.stop()


@asynccontextmanager
async def streamer(settings: Settings) -> AsyncIterator[tuple[int, int]]:
    """A running streamer that has caught up: its public and its admin port."""
    stop = asyncio.Event()
    ports: asyncio.Future[tuple[int, int]] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(run_streamer(settings, stop, ready=lambda *pair: ports.set_result(pair)))
    both: set[asyncio.Future[object]] = {task, ports}  # type: ignore[arg-type]
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED, timeout=10)
    if task.done():
        task.result()
    try:
        yield ports.result()
    finally:
        stop.set()
        await task


async def test_updates_of_kafka_reach_a_client(kafka: Kafka) -> None:
    await kafka.market(BTC, snapshot(1, 10))
    async with streamer(kafka.settings) as (port, _), client(port) as ws:
        await ws.follow()
        first = await ws.until(BookUpdate)
        assert (first.seq, first.bids, first.scale) == (10, [(100, 5)], Scale(-2, -3))
        await kafka.market(BTC, delta(1, 10, 11))
        second = await ws.until(BookUpdate)
        assert (second.prev_seq, second.seq, second.bids) == (10, 11, [(99, 11)])


async def test_start_loads_snapshots_and_reads_the_market_from_the_checkpoint(kafka: Kafka) -> None:
    await kafka.market(BTC, b"unreadable, and before the checkpoint")
    await kafka.market(BTC, delta(1, 10, 11, 98))
    last = await kafka.market(BTC, delta(1, 11, 12, 97))
    await kafka.state(BTC, snapshot(1, 9, 1))
    await kafka.state(BTC, snapshot(1, 11))
    await kafka.checkpoint(BTC, last - 1)
    async with streamer(kafka.settings) as (port, admin):
        async with local_http() as http:
            book = (await http.get(f"http://127.0.0.1:{port}/v1/instruments/{BTC}/book")).json()
            metrics = (await http.get(f"http://127.0.0.1:{admin}/metrics")).text
        assert (book["state"], book["seq"]) == ("synced", 12)
        assert book["bids"] == [["1.00", "0.005"], ["0.97", "0.012"]], "of update 11 nothing: the snapshot holds it"
        assert "depthcast_duplicates_dropped_total 1.0" in metrics
        assert "dead_letters_total{" not in metrics


async def test_a_bad_record_gaps_its_instrument_alone_until_a_checkpoint_beyond_it(kafka: Kafka) -> None:
    same = next(name for name in (f"x:y:{i}" for i in range(99)) if _partition(name) == _partition(BTC))
    await kafka.market(BTC, snapshot(1, 10))
    await kafka.market(same, snapshot(1, 10))
    async with streamer(kafka.settings) as (port, admin), client(port) as ws, client(port) as other:
        await ws.follow()
        await other.follow(same)
        await ws.until(BookUpdate)
        await other.until(BookUpdate)
        bad = await kafka.market(BTC, b"\xff\xff\xff")
        await ws.noticed(NoticeCode.GAP)
        await kafka.market(BTC, delta(1, 11, 12))
        await kafka.market(same, delta(1, 10, 11))
        undisturbed = await other.until(BookUpdate)
        assert not any(isinstance(message, Notice) for message in other.held)
        assert (undisturbed.prev_seq, undisturbed.seq) == (10, 11)
        await kafka.state(BTC, snapshot(1, 10))
        await kafka.checkpoint(BTC, bad)  # too early: it does not cover the loss
        await kafka.state(BTC, snapshot(1, 11))
        await kafka.checkpoint(BTC, bad + 1)
        mended = await ws.until(BookUpdate, seq=11)
        assert mended.flags & Flag.SNAPSHOT
        after = await ws.until(BookUpdate)
        assert (after.prev_seq, after.seq) == (11, 12), "read again from the checkpoint"
        async with local_http() as http:
            metrics = (await http.get(f"http://127.0.0.1:{admin}/metrics")).text
        assert 'depthcast_dead_letters_total{reason="bad-update"} 1.0' in metrics


def _partition(instrument: str) -> int:
    return partition_for(instrument.encode(), PARTITIONS)


async def test_a_broken_chain_is_never_applied_and_mended_from_the_next_checkpoint(kafka: Kafka) -> None:
    await kafka.market(BTC, snapshot(1, 10))
    async with streamer(kafka.settings) as (port, admin), client(port) as ws, httpx.AsyncClient() as http:
        await ws.follow()
        await ws.until(BookUpdate)
        broken = await kafka.market(BTC, delta(1, 11, 12))
        assert (await ws.noticed(NoticeCode.GAP)).reason is not None
        await kafka.state(BTC, snapshot(1, 11))
        await kafka.checkpoint(BTC, broken)
        mended = await ws.until(BookUpdate)
        assert (mended.seq, mended.flags & Flag.SNAPSHOT) == (11, Flag.SNAPSHOT)
        last = await ws.until(BookUpdate)
        assert (last.prev_seq, last.seq) == (11, 12)
        metrics = (await http.get(f"http://127.0.0.1:{admin}/metrics")).text
        assert "depthcast_chain_breaks_total 1.0" in metrics


async def test_an_expired_checkpoint_position_gaps_the_partition_until_a_newer_checkpoint(kafka: Kafka) -> None:
    await kafka.market(ETH, snapshot(1, 10))
    await kafka.market(BTC, snapshot(1, 10))
    await kafka.state(BTC, snapshot(1, 5))
    await kafka.checkpoint(BTC, 1_000)  # beyond the end: the topic was made anew
    async with streamer(kafka.settings) as (port, admin), client(port) as ws:
        async with local_http() as http:
            metrics = (await http.get(f"http://127.0.0.1:{admin}/metrics")).text
        assert "depthcast_kafka_offsets_lost_total 1.0" in metrics
        await ws.follow()
        first = await ws.until(BookUpdate)
        assert first.seq == 10, "what the market topic holds was read from its beginning"


@pytest.mark.parametrize("broker", ["embedded"], indirect=True)  # the real one is shared by all tests
async def test_without_kafka_books_are_stale_and_served_and_live_again_after(kafka: Kafka) -> None:
    await kafka.market(BTC, snapshot(1, 10))
    settings = kafka.settings.model_copy(update={"stale_after_ms": 600})
    async with streamer(settings) as (port, admin), client(port) as ws:
        await ws.follow()
        await ws.until(BookUpdate)
        server = kafka.broker.server
        assert isinstance(server, EmbeddedBroker)
        server.pause()
        await ws.noticed(NoticeCode.STALE)
        async with local_http() as http:
            book = (await http.get(f"http://127.0.0.1:{port}/v1/instruments/{BTC}/book")).json()
            ready = await http.get(f"http://127.0.0.1:{admin}/readyz")
        assert (book["state"], book["flags"], ready.status_code) == ("stale", ["stale"], 200)
        server.resume()
        await kafka.market(BTC, delta(1, 10, 11))
        await ws.noticed(NoticeCode.RECOVERED)
        update = await ws.until(BookUpdate)
        assert (update.seq, update.flags & Flag.STALE) == (11, 0)


async def test_what_ingest_says_of_an_instrument_reaches_its_listeners(kafka: Kafka) -> None:
    await kafka.market(BTC, snapshot(1, 10))
    async with streamer(kafka.settings) as (port, _), client(port) as ws:
        await ws.follow(channel=Channel.STATUS)
        await kafka.market(BTC, StatusUpdate(epoch=1, seq=11, state=BookState.GAPPED, reason=Reason.SEQUENCE_GAP))
        status = await ws.until(StatusUpdate, seq=11)
        assert (status.state, status.reason) == (BookState.GAPPED, Reason.SEQUENCE_GAP)


async def metrics_like(http: httpx.AsyncClient, admin: int, exact: dict[str, float]) -> dict[str, float]:
    """The metrics, name and label values, once they are as in ``exact``: a client may know before they do."""
    found: dict[str, float] = {}
    with suppress(TimeoutError):
        async with asyncio.timeout(5):
            while {name: found.get(name) for name in exact} != exact:
                text = (await http.get(f"http://127.0.0.1:{admin}/metrics")).text
                found = {
                    " ".join((sample.name.removeprefix("depthcast_"), *sample.labels.values())): sample.value
                    for family in text_string_to_metric_families(text)
                    for sample in family.samples
                }
    return found


async def test_the_metrics_tell_what_happened(kafka: Kafka) -> None:
    await kafka.market(BTC, snapshot(1, 10))
    async with streamer(kafka.settings) as (port, admin), client(port) as one, local_http() as http:
        await one.follow()
        await one.until(BookUpdate)
        await one.ws.send(CODEC.encode_command(Subscribe(2, BTC, Channel.BOOK, resume=Resume(1, 10))))
        await kafka.market(BTC, snapshot(1, 10))  # a repeat, before what we wait for
        await kafka.market(BTC, delta(1, 10, 11))
        await one.until(BookUpdate, seq=11)
        async with client(port) as other:
            await other.ws.close(1001)
        exact = {
            "connections": 1,
            "connects_total": 2,
            "disconnects_total 1001": 1,
            "handshakes_total 101": 2,
            "commands_total accepted": 2,
            "subscriptions": 1,
            "streams": 1,
            "resumes_total delta": 1,
            "resumes_total snapshot": 0,
            "books synced": 1,
            "books gapped": 0,
            "updates_received_total": 2,
            "updates_offered_total book": 1,
            "updates_waiting book": 0,
            "updates_sent_total book": 1,
            "duplicates_dropped_total": 1,
            "conflated_total book": 0,
            "skipped_total trades": 0,
            "lost_total book": 0,
            "slow_clients": 0,
            "outbox_bytes": 0,
            "ready": 1,
            f"kafka_records_total {kafka.topics.market}": 3,
            f"kafka_lag_records {_partition(BTC)} {kafka.topics.market}": 0,
            f"kafka_lag_records 0 {kafka.topics.snapshots}": 0,
            "end_to_end_seconds_count": 1,
            "publish_to_send_seconds_count": 1,
            "kafka_offsets_lost_total": 0,
        }
        found = await metrics_like(http, admin, exact)
    assert {name: found.get(name) for name in exact} == exact
    assert found["sends_total"] >= 4
    assert found["sent_bytes_total"] > 100
    assert found["flush_duration_seconds_count"] >= 1
    assert 0 <= found["kafka_last_poll_age_seconds"] < 5
    assert 0 < found["book_age_seconds"] < 30


async def test_a_taken_port_is_one_clear_line(kafka: Kafka) -> None:
    async with streamer(kafka.settings) as (port, _):
        with pytest.raises(UserError, match=f"^port {port} is taken; .* DEPTHCAST_HTTP_PORT .*$"):
            await run_streamer(kafka.settings.model_copy(update={"http_port": port}), asyncio.Event())


async def test_missing_topics_are_one_clear_line(kafka: Kafka) -> None:
    settings = kafka.settings.model_copy(update={"topic_prefix": "nothing"})
    with pytest.raises(UserError, match=r"^topic nothing\.\S+ .* run `depthcast topics create`"):
        await run_streamer(settings, asyncio.Event())


async def test_sigterm_turns_readiness_off_warns_closes_in_waves_and_exits_0(kafka: Kafka) -> None:
    await kafka.market(BTC, snapshot(1, 10))
    port, admin = free_port(), free_port()
    environment = {
        "DEPTHCAST_KAFKA_BOOTSTRAP": kafka.settings.kafka_bootstrap,
        "DEPTHCAST_KAFKA_FETCH_MAX_WAIT_MS": str(kafka.settings.kafka_fetch_max_wait_ms),
        "DEPTHCAST_TOPIC_PREFIX": kafka.settings.topic_prefix,
        "DEPTHCAST_PARTITIONS": str(PARTITIONS),
        "DEPTHCAST_HTTP_PORT": str(port),
        "DEPTHCAST_ADMIN_PORT": str(admin),
        "DEPTHCAST_DRAIN_MS": "1000",
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services", "streamer"), env={**os.environ, **environment}
    )
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{admin}") as http, AsyncExitStack() as stack:
        await _ready(http)
        clients = [await stack.enter_async_context(client(port)) for _ in range(20)]
        process.send_signal(signal.SIGTERM)
        notices = [await ws.noticed(NoticeCode.SHUTDOWN) for ws in clients]
        assert (await http.get("/readyz")).status_code == 503
        assert (await http.get("/livez")).status_code == 200
        assert len({notice.retry_after_ms for notice in notices}) > 10, "jittered"
        ends = await asyncio.gather(*map(_end, clients))
        assert {code for code, _ in ends} == {1012}
        times = sorted(at for _, at in ends)
        assert times[-1] - times[0] > 0.5, "in waves, not at once"
        assert await asyncio.wait_for(process.wait(), 5) == 0


async def _end(one: Client) -> tuple[int | None, float]:
    await one.ws.wait_closed()
    return one.ws.close_code, asyncio.get_running_loop().time()


async def _ready(http: httpx.AsyncClient) -> None:
    async with asyncio.timeout(20):
        while True:
            with suppress(httpx.TransportError):
                if (await http.get("/readyz")).status_code == 200:
                    return
            await asyncio.sleep(0.05)
