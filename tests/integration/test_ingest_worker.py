"""The ingest worker on a broker: the same market log whatever happens to workers, and no bad record unaccounted for."""

import asyncio
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from ingest.pipeline import Pipeline, TickRecord
from protos.messages import BookState, BookUpdate, Reason, StatusUpdate
from protos.records import decode_checkpoint, decode_market, decode_state
from protos.topics import Topics, checkpoint_key, is_checkpoint_key, partition_for
from services.config import Settings
from services.ingest import run_ingest
from services.kafka import EARLIEST, Producer, Reader, Record
from tests.support.brokers import TestBroker
from tests.support.ticklog import Followers, encoded, log_of, record

WAIT_S = 60.0
KILLS = 5
"""Ten of them, while a client watches, are in test_recovery; tests/faults has a kill at every step of a checkpoint."""

Tick = tuple[str, bytes | None, dict[str, bytes]]
"""Key, value and headers of a ticks record."""


def ticks_of(name: str, count: int | None = None) -> list[Tick]:
    return [((tick.key or b"").decode(), tick.value, dict(tick.headers)) for tick in log_of(name, count)]


@pytest.fixture
async def settings(broker: TestBroker) -> Settings:
    await broker.create_topics()
    return with_checkpoints(broker.settings, 200)


def with_checkpoints(settings: Settings, interval_ms: int) -> Settings:
    update = {"checkpoint_interval_ms": interval_ms, "admin_port": 0, "ingest_group": settings.topic_prefix}
    return settings.model_copy(update=update)


async def produce(
    settings: Settings, ticks: Iterable[Tick], pause_s: float = 0.0, hurry: asyncio.Event | None = None
) -> None:
    """Write ticks, with a pause after every 50 of them; none any more once it is time to ``hurry``."""
    hurry = hurry or asyncio.Event()
    producer = Producer(settings)
    await producer.start()
    try:
        for i, (key, value, headers) in enumerate(ticks):
            partition = partition_for(key.encode(), settings.partitions)
            producer.send(Topics(settings.topic_prefix).ticks, partition, key.encode(), value, headers)
            if i % 50 == 0:
                await producer.room()
                with suppress(TimeoutError):
                    await asyncio.wait_for(hurry.wait(), pause_s)
        await producer.flush()
    finally:
        await producer.stop()


async def read_all(settings: Settings, topic: str) -> list[Record]:
    """A topic from beginning to end, partition by partition."""
    reader = Reader(settings)
    await reader.start()
    try:
        await reader.assign({(topic, p): EARLIEST for p in range(settings.partitions)})
        ends = await reader.end_offsets([(topic, p) for p in range(settings.partitions)])
        records: list[Record] = []
        while any(reader.position(partition) < end for partition, end in ends.items()):
            records += await reader.poll(100)
        return sorted(records, key=lambda found: (found.partition, found.offset))
    finally:
        await reader.stop()


async def caught_up(settings: Settings) -> None:
    """Wait until checkpoints say that all ticks are processed."""
    topics = Topics(settings.topic_prefix)
    reader = Reader(settings)
    await reader.start()
    try:
        ends = await reader.end_offsets([(topics.ticks, p) for p in range(settings.partitions)])
        wanted = {p: end for (_, p), end in ends.items() if end}
        await reader.assign({(topics.snapshots, p): EARLIEST for p in range(settings.partitions)})
        async with asyncio.timeout(WAIT_S):
            while wanted:
                for found in await reader.poll(100):
                    if found.key == checkpoint_key(found.partition):
                        offset = decode_checkpoint(found.value or b"").ticks_offset
                        if wanted.get(found.partition) == offset:
                            del wanted[found.partition]
    finally:
        await reader.stop()


@asynccontextmanager
async def worker(settings: Settings) -> AsyncIterator[None]:
    """In this process; ends with a last checkpoint."""
    stop, ready = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(run_ingest(settings, stop, ready=lambda _: ready.set()))
    try:
        async with asyncio.timeout(WAIT_S):
            waiting = asyncio.create_task(ready.wait())
            await asyncio.wait({waiting, task}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
        yield
    finally:
        stop.set()
        await task


STARTED: list[asyncio.subprocess.Process] = []


class Process:
    """A worker that can be killed."""

    def __init__(self, settings: Settings, log: Path) -> None:
        self._environment = {
            **os.environ,
            "DEPTHCAST_KAFKA_BOOTSTRAP": settings.kafka_bootstrap,
            "DEPTHCAST_KAFKA_FETCH_MAX_WAIT_MS": str(settings.kafka_fetch_max_wait_ms),
            "DEPTHCAST_KAFKA_SESSION_TIMEOUT_MS": str(settings.kafka_session_timeout_ms),
            "DEPTHCAST_TOPIC_PREFIX": settings.topic_prefix,
            "DEPTHCAST_PARTITIONS": str(settings.partitions),
            "DEPTHCAST_INGEST_GROUP": settings.ingest_group,
            "DEPTHCAST_CHECKPOINT_INTERVAL_MS": str(settings.checkpoint_interval_ms),
            "DEPTHCAST_ADMIN_PORT": "0",
        }
        self._log = log
        self._process: asyncio.subprocess.Process

    async def start(self) -> None:
        """Returns when partitions are its own."""
        with self._log.open("ab") as out:
            before = out.tell()
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "services", "ingest"), env=self._environment, stdout=out, stderr=out
            )
        STARTED.append(self._process)
        async with asyncio.timeout(WAIT_S):
            while b"are ours" not in self._log.read_bytes()[before:]:
                assert self._process.returncode is None, self._log.read_text()
                await asyncio.sleep(0.02)

    async def end(self, signum: signal.Signals) -> int:
        assert self._process.returncode is None, self._log.read_text()
        self._process.send_signal(signum)
        return await self._process.wait()


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    """A test that fails leaves no worker behind."""
    yield
    while STARTED:
        if (process := STARTED.pop()).returncode is None:
            process.kill()
            await process.wait()


def without_repeats(records: Iterable[Record]) -> dict[bytes, list[bytes]]:
    """Values by instrument. A record that comes again must be the same and is dropped, as every reader does."""
    values: dict[bytes, list[bytes]] = {}
    seen: dict[tuple[bytes, int, int, str], bytes] = {}
    for found in records:
        key, value = found.key or b"", found.value or b""
        update = decode_market(value)
        name = (key, update.epoch, update.seq, type(update).__name__)
        if name in seen:
            assert seen[name] == value, "a different record of the same name"
            continue
        seen[name] = value
        values.setdefault(key, []).append(value)
    return values


def expected(ticks: Iterable[Record], settings: Settings) -> dict[bytes, list[bytes]]:
    """What the pipeline makes of the ticks that Kafka holds, in one go."""
    pipelines = {p: Pipeline(p, settings.tick_bytes_max) for p in range(settings.partitions)}
    values: dict[bytes, list[bytes]] = {}
    for tick in ticks:
        for key, value in encoded(pipelines[tick.partition].process(TickRecord(*tick[1:]))):
            values.setdefault(key, []).append(value)
    return values


async def test_the_market_log_is_a_function_of_the_ticks(settings: Settings) -> None:
    """A worker that finds the ticks there, one that sees them come, and the pipeline alone: the same bytes."""
    topics = Topics(settings.topic_prefix)
    ticks = [*ticks_of("kraken", 900), *ticks_of("binance.spot", 900), *ticks_of("okx")]
    await produce(settings, ticks[:1_000])
    async with worker(settings):
        await produce(settings, ticks[1_000:], pause_s=0.002)
        await caught_up(settings)
    market = await read_all(settings, topics.market)
    wanted = expected(await read_all(settings, topics.ticks), settings)
    assert without_repeats(market) == wanted
    assert len(market) == sum(map(len, wanted.values())), "without a fault nothing is written twice"
    assert {found.partition for found in market} == {partition_for(found.key or b"", 2) for found in market}
    assert await read_all(settings, topics.dlq) == []


async def test_a_stopped_worker_leaves_all_to_the_next(settings: Settings) -> None:
    topics = Topics(settings.topic_prefix)
    slow = with_checkpoints(settings, 60_000)
    for part in (ticks_of("kraken", 900)[:400], ticks_of("kraken", 900)[400:]):
        async with worker(slow):
            await produce(slow, part)
            await asyncio.sleep(1.0)
    market = await read_all(slow, topics.market)
    wanted = expected(await read_all(slow, topics.ticks), slow)
    async with worker(slow):
        await caught_up(slow)
    assert len(await read_all(slow, topics.market)) == sum(map(len, wanted.values()))
    assert {found.value for found in market} <= {value for values in wanted.values() for value in values}


async def test_checkpoint_is_a_cut(settings: Settings) -> None:
    """States and market log meet: whoever loads the states and reads on from the checkpoint has every book."""
    topics = Topics(settings.topic_prefix)
    async with worker(settings):
        await produce(settings, ticks_of("kraken", 1_200), pause_s=0.01)
        await caught_up(settings)
    market = await read_all(settings, topics.market)
    snapshots = await read_all(settings, topics.snapshots)
    whole = Followers()
    for found in market:
        whole[(found.key or b"").decode()].apply(decode_market(found.value or b""))
    cuts = [i for i, found in enumerate(snapshots) if is_checkpoint_key(found.key or b"")]
    assert len(cuts) > 2
    for cut in cuts[::2]:
        partition, checkpoint = snapshots[cut].partition, decode_checkpoint(snapshots[cut].value or b"")
        readers, states = Followers(), {}
        for found in snapshots[:cut]:
            if found.partition == partition and not is_checkpoint_key(found.key or b""):
                states[(found.key or b"").decode()] = decode_state(found.value or b"")
        for name, state in states.items():
            assert state.ticks_offset <= checkpoint.ticks_offset
            assert state.book is not None
            assert state.status is not None
            readers[name].book.apply(state.book)
            readers[name].state = state.status.state
            readers[name].epoch = state.status.epoch
            readers[name].chains = {BookUpdate: state.book.seq, StatusUpdate: state.status.seq}
        for found in market:
            if found.partition == partition and found.offset >= checkpoint.market_offset:
                readers[(found.key or b"").decode()].apply(decode_market(found.value or b""))
        for name, reader in readers.items():
            assert reader.book.top(0) == whole[name].book.top(0)
            assert (reader.book.epoch, reader.book.seq) == (whole[name].book.epoch, whole[name].book.seq)


@pytest.mark.faults
@pytest.mark.slow
async def test_killed_workers_leave_no_gap_and_nothing_different(settings: Settings, tmp_path: Path) -> None:
    rng = random.Random(7)
    topics = Topics(settings.topic_prefix)
    ticks = [*ticks_of("kraken", 2_500), *ticks_of("binance.spot", 2_500)]
    hurry = asyncio.Event()
    feed = asyncio.create_task(produce(settings, ticks, 1.0, hurry))
    process = Process(settings, tmp_path / "ingest.log")
    for _ in range(KILLS):
        await process.start()
        await asyncio.sleep(rng.uniform(0.0, 1.5))
        assert await process.end(signal.SIGKILL) == -signal.SIGKILL
    assert not feed.done(), "the ticks must flow all the time"
    hurry.set()
    await process.start()
    await feed
    await caught_up(settings)
    assert await process.end(signal.SIGTERM) == 0
    market = await read_all(settings, topics.market)
    wanted = expected(await read_all(settings, topics.ticks), settings)
    assert without_repeats(market) == wanted
    assert len(market) > sum(map(len, wanted.values())), "no kill came between a market record and its checkpoint"
    readers = Followers()
    for key, values in wanted.items():
        for value in values:
            readers[key.decode()].apply(decode_market(value))
    assert {reader.state for reader in readers.values()} == {BookState.SYNCED}
    assert "Traceback" not in (tmp_path / "ingest.log").read_text()


@pytest.mark.faults
@pytest.mark.slow
async def test_workers_share_and_take_over(settings: Settings, tmp_path: Path) -> None:
    """Two workers, then one of them stopped, then killed: each partition goes on where it was."""
    topics = Topics(settings.topic_prefix)
    ticks = ticks_of("kraken")
    hurry = asyncio.Event()
    feed = asyncio.create_task(produce(settings, ticks, 1.0, hurry))
    first, second = (Process(settings, tmp_path / f"{name}.log") for name in ("first", "second"))
    await first.start()
    await second.start()
    await asyncio.sleep(1.0)
    assert await first.end(signal.SIGTERM) == 0
    await asyncio.sleep(1.0)
    await first.start()
    await asyncio.sleep(1.0)
    await second.end(signal.SIGKILL)
    assert not feed.done(), "the ticks must flow all the time"
    hurry.set()
    await feed
    await caught_up(settings)
    assert await first.end(signal.SIGTERM) == 0
    market = await read_all(settings, topics.market)
    assert without_repeats(market) == expected(await read_all(settings, topics.ticks), settings)


async def test_bad_records_are_in_the_dead_letters_with_their_reason(settings: Settings) -> None:
    topics = Topics(settings.topic_prefix)
    good = ticks_of("binance.spot", 300)
    json = {"content-type": b"application/json"}
    name = "binance:spot:BTCUSDT"
    delta = b'{"e":"depthUpdate","s":"BTCUSDT","U":1,"u":2,"b":[["%s","1"]],"a":[]}'
    bad = [
        ("bad-json", record(0, name, b"{", "binance.spot")),
        ("unknown-feed", record(0, name, b"{}", "nowhere")),
        ("null-value", record(0, name, None, "binance.spot")),
        ("too-large", record(0, name, b"x" * 2_000_000, "binance.spot")),
        ("bad-price", record(0, name, delta % b"NaN", "binance.spot")),
        ("bad-price", record(0, name, delta % b"-1", "binance.spot")),
        ("bad-version", record(0, "x:y:z", b'{"version":9,"kind":"delta","sequence":1}', "canonical", **json)),
        ("bad-key", record(0, "nonsense", b"{}", "binance.spot")),
    ]
    mixed = [*good[:150], *(((t.key or b"").decode(), t.value, dict(t.headers)) for _, t in bad), *good[150:]]
    async with worker(settings):
        await produce(settings, mixed)
        await caught_up(settings)
    dead = await read_all(settings, topics.dlq)
    source = {f"{t.topic}/{t.partition}/{t.offset}".encode(): t for t in await read_all(settings, topics.ticks)}
    assert sorted(found.headers["reason"].decode() for found in dead) == sorted(reason for reason, _ in bad)
    for found in dead:
        original = source[found.headers["source"]]
        assert (found.key, found.value) == (original.key, original.value)
        assert found.headers.items() >= original.headers.items()
    readers = Followers()
    for found in await read_all(settings, topics.market):
        readers[(found.key or b"").decode()].apply(decode_market(found.value or b""))
    assert list(readers) == [name]
    assert readers[name].state is BookState.SYNCED
    assert Reason.SEQUENCE_GAP not in readers[name].reasons


async def moved_from(settings: Settings, old: list[Record]) -> None:
    """Wait until there are snapshots beside the old ones."""
    topics = Topics(settings.topic_prefix)
    reader = Reader(settings)
    await reader.start()
    try:
        await reader.assign({(topics.snapshots, p): EARLIEST for p in range(settings.partitions)})
        partitions, values = {found.partition for found in old}, {found.value for found in old}
        async with asyncio.timeout(WAIT_S):
            while partitions:
                for found in await reader.poll(100):
                    if found.value not in values and is_checkpoint_key(found.key or b""):
                        partitions.discard(found.partition)
    finally:
        await reader.stop()


async def test_expired_ticks_are_a_gap_of_every_book(settings: Settings, broker: TestBroker) -> None:
    """The position is not in the log: here the ticks topic is a new one, and the snapshots are from before."""
    topics = Topics(settings.topic_prefix)
    async with worker(settings):
        await produce(settings, ticks_of("kraken", 600))
        await caught_up(settings)
    old = await read_all(settings, topics.snapshots)
    fresh = settings.model_copy(update={"topic_prefix": broker.name("fresh"), "ingest_group": broker.name("fresh")})
    again = TestBroker(broker.kind, broker.server)
    again.settings = fresh
    await again.create_topics()
    producer = Producer(fresh)
    await producer.start()
    for found in old:
        producer.send(Topics(fresh.topic_prefix).snapshots, found.partition, found.key, found.value)
    await producer.flush()
    await producer.stop()
    await produce(fresh, ticks_of("kraken", 600)[20:100])
    async with worker(fresh):
        await moved_from(fresh, old)
    statuses: dict[bytes, list[StatusUpdate]] = {}
    for found in await read_all(fresh, Topics(fresh.topic_prefix).market):
        update = decode_market(found.value or b"")
        if isinstance(update, StatusUpdate):
            statuses.setdefault(found.key or b"", []).append(update)
    known = {found.key for found in old if not is_checkpoint_key(found.key or b"")}
    assert statuses.keys() == known
    for updates in statuses.values():
        assert (updates[0].state, updates[0].reason) == (BookState.GAPPED, Reason.OFFSETS_LOST)
