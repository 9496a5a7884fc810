"""The promises that no fault may break, as one checker for every test of a fault.

    I1  a client never sees a sequence jump without a flag, a notice or a snapshot
    I2  after the fault every client's book is what the reference replay says: at each message, and in the end
    I3  no tick that Kafka acknowledged is missing from the output
    I4  memory stays bounded
    I5  other clients' 99th percentile of latency stays within twice of what it was
    I6  every drop is counted

The reference is the pipeline alone, run once over the ticks that Kafka holds; where the venue gives a checksum, it is
recomputed on the way. docs/guarantees.md says which test shows which promise.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, Self

from ingest.pipeline import Pipeline, TickRecord
from protos.messages import BookUpdate, Channel, MarketMessage, QuoteUpdate, TradesUpdate
from protos.records import encode_market
from protos.topics import Topics
from services.config import Settings
from services.kafka import Record
from services.stack import Child, Stack
from tests.support.captures import Tick
from tests.support.scenario import Feed, Truth, Wanted, Watcher, at_end, mixed, read_topic, stack_on, until

GROWTH_MB_MAX = 64
"""Of a process's memory from the first look at it: more than any buffer may take, less than a leak takes in a test."""
P99_FACTOR = 2.0
P99_FLOOR_S = 0.25
"""Two busy cores alone give this: below, a ratio says nothing."""
_SAMPLE_S = 0.2
_STILL = 8
"""Looks at a topic that must find the same number of records."""
Name = tuple[str, Channel, int, int]
"""What names a market record: instrument, channel, epoch, seq."""


class Reference:
    """What the market topic must hold."""

    def __init__(self, ticks: Iterable[Record], settings: Settings) -> None:
        self.values: dict[Name, bytes] = {}
        self.dead = 0
        self.checksums = {"passed": 0, "failed": 0}
        pipelines = {p: Pipeline(p, settings.tick_bytes_max) for p in range(settings.partitions)}
        for tick in ticks:
            outputs = pipelines[tick.partition].process(TickRecord(*tick[1:]))
            self.dead += outputs.dead is not None
            for key, update in outputs.market:
                self.values[key.decode(), _channel(update), update.epoch, update.seq] = encode_market(update)
        for pipeline in pipelines.values():
            counts = pipeline.take_counts()
            self.checksums["passed"] += counts.checksums_passed
            self.checksums["failed"] += counts.checksums_failed


def _channel(update: MarketMessage) -> Channel:
    if isinstance(update, BookUpdate):
        return Channel.RAW
    if isinstance(update, TradesUpdate):
        return Channel.TRADES
    return Channel.BBO if isinstance(update, QuoteUpdate) else Channel.STATUS


def replayed(ticks: Iterable[Record], settings: Settings) -> Truth:
    """Every book at each of its positions, by the reference."""
    truth, reference = Truth([]), Reference(ticks, settings)
    for (instrument, _, _, _), value in reference.values.items():
        truth.add(instrument, value)
    return truth


class Invariants:
    """Of one running system: its stack, the feed that writes its ticks, its clients. Looks at memory while open.

    Attributes:
        held: How often they were found to hold, in this process.
    """

    held: ClassVar[int] = 0

    def __init__(self, stack: Stack, feed: Feed, *clients: Watcher) -> None:
        self.stack, self.feed, self.clients = stack, feed, clients
        self.memory: dict[int, list[int]] = {}  # bytes by pid, first and largest
        self._sampling: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._sampling = asyncio.create_task(self._sample())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._sampling is not None:
            self._sampling.cancel()
            with suppress(asyncio.CancelledError):
                await self._sampling

    async def hold(self, *more: Watcher) -> Truth:
        """Wait until all ticks are through, then check I1 to I4 and I6; I5 is `check_latency`.

        Args:
            more: Clients that came later.

        Raises:
            AssertionError: One does not hold; it says which, and where.
        """
        truth = await self._all_through()
        await self._check(truth, *more)
        for metrics in await self._streamers():
            assert metrics["depthcast_chain_breaks_total"] == 0, "I6: a streamer missed records that Kafka has"
        return truth

    async def hold_with_lost_ticks(self, *more: Watcher) -> Truth:
        """As `hold` where Kafka itself has lost ticks: books are judged by the market topic, I3 cannot hold."""
        market = Topics(self.stack.settings.topic_prefix).market
        counts = [-1]

        async def still() -> bool:
            counts.append(len(await read_topic(self.stack.settings, market)))
            return len(counts) > _STILL and len(set(counts[-_STILL:])) == 1

        await until(still, "the end of the market topic")
        truth = Truth(await read_topic(self.stack.settings, market))
        await self._check(truth, *more)
        return truth

    async def hold_with_lost_updates(self, *more: Watcher) -> Truth:
        """As `hold` where Kafka itself has lost records of the market topic: books are judged by the ticks."""
        settings = self.stack.settings
        truth = replayed(await read_topic(settings, Topics(settings.topic_prefix).ticks), settings)
        await self._check(truth, *more)
        return truth

    async def _check(self, truth: Truth, *more: Watcher) -> None:
        clients = (*self.clients, *more)
        await at_end(truth, *clients)
        for client in clients:
            check_chain(client)
            assert client.wrong(truth) == [], "I2: a book that is not the reference's"
        self.check_memory()
        for metrics in await self._streamers():
            check_counted(metrics, Topics(self.stack.settings.topic_prefix).market)
        Invariants.held += 1

    async def _streamers(self) -> list[dict[str, float]]:
        running = [it for it in self.stack.children if it.command in ("streamer", "worker") and not it.ended]
        return [await child.metrics() for child in running]

    async def _all_through(self) -> Truth:
        """Wait until the market topic holds what the reference makes of the ticks; no more, and nothing else."""
        settings, topics = self.stack.settings, Topics(self.stack.settings.topic_prefix)
        ticks = await read_topic(settings, topics.ticks)
        assert len(ticks) >= self.feed.sent, "I3: Kafka lost ticks that it had acknowledged"
        reference = Reference(ticks, settings)
        truth = Truth([])

        async def complete() -> bool:
            nonlocal truth
            truth = Truth(await read_topic(settings, topics.market))
            return truth.values.keys() >= reference.values.keys()

        with suppress(AssertionError):
            await until(complete, "all ticks through")
        missing = reference.values.keys() - truth.values.keys()
        assert not missing, f"I3: {len(missing)} updates are missing, the first is {min(missing)}"
        assert truth.values == reference.values, "I2: the market topic is not what the reference makes of the ticks"
        assert reference.checksums["failed"] == 0, "I2: a checksum of the venue does not hold"
        return truth

    async def _sample(self) -> None:
        while True:
            for child in self.stack.children:
                if not child.ended:
                    self._note_memory(child)
            await asyncio.sleep(_SAMPLE_S)

    def _note_memory(self, child: Child) -> None:
        pid = child.process.pid if child.process else 0
        size = resident_bytes(pid)
        if size:
            first, most = self.memory.setdefault(pid, [size, size])
            self.memory[pid] = [first, max(most, size)]

    def check_memory(self, growth_mb_max: int = GROWTH_MB_MAX) -> None:
        """I4. A process that has just started is given what it takes to load."""
        assert self.memory, "nobody looked at memory"
        for pid, (first, most) in self.memory.items():
            start = max(first, 100 << 20)
            assert most - start <= growth_mb_max << 20, f"I4: process {pid} grew from {first} to {most} bytes"


def resident_bytes(pid: int) -> int:
    """Memory of a process; 0 when it is gone (proc(5), statm)."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
    except (OSError, IndexError):
        return 0


def check_chain(client: Watcher) -> None:
    """I1."""
    assert client.jumps == [], f"I1: {client.jumps[:3]}"


def check_counted(metrics: Mapping[str, float], market: str) -> None:
    """I6, of a streamer: what it read is applied, or in a counter of what is not."""
    read = metrics.get(f"depthcast_kafka_records_total{{topic={market}}}", 0)
    applied, repeated = metrics["depthcast_updates_received_total"], metrics["depthcast_duplicates_dropped_total"]
    dead = metrics.get("depthcast_dead_letters_total", 0)
    assert read <= applied + repeated + dead, f"I6: {read} read, {applied} applied, {repeated} repeated, {dead} dead"


class Timed(Protocol):
    """A client that measures."""

    latencies: list[tuple[float, float]]
    """When each update came (monotonic clock), and seconds since the feed had it."""


def p99_s(since_s: float, until_s: float, *clients: Timed) -> float:
    """Seconds from the feed's receipt to the clients, at the 99th percentile, of what came in this time."""
    latencies = sorted(late for client in clients for at, late in client.latencies if since_s <= at < until_s)
    assert len(latencies) >= 100, f"only {len(latencies)} updates came"
    return latencies[len(latencies) * 99 // 100]


def check_latency(began_s: float, fault_s: float, ended_s: float, *clients: Timed) -> None:
    """I5: these clients from ``fault_s`` to ``ended_s`` against themselves before, on the monotonic clock."""
    check_p99(p99_s(began_s, fault_s, *clients), p99_s(fault_s, ended_s, *clients))


def check_p99(before: float, during: float) -> None:
    """I5, of `p99_s`."""
    bound = P99_FACTOR * max(before, P99_FLOOR_S)
    print(f"99 % within {during:.3f} s during the fault, {before:.3f} s before")
    assert during <= bound, f"I5: 99 % within {during:.3f} s during the fault, {before:.3f} s before"


STREAMS = ((Channel.RAW, 0, 0), (Channel.BOOK, 10, 0), (Channel.TRADES, 0, 0))


@dataclass
class Scene:
    """A running system with one client on everything, and the checker."""

    stack: Stack
    feed: Feed
    client: Watcher
    invariants: Invariants


@asynccontextmanager
async def scene(
    kafka: str, ticks: list[Tick] | None = None, *, partitions: int = 2, rate_per_s: int = 300, **environment: int
) -> AsyncIterator[Scene]:
    """Start it on a real Kafka; the first ticks are sent, the client is subscribed. ``environment``: as `stack_on`."""
    stack = stack_on(kafka, partitions, **environment)
    async with (
        stack,
        Feed(stack.settings, ticks or mixed(binance_spot=6_000, kraken=2_561, okx=392), rate_per_s) as feed,
    ):
        await feed.begin(stack)
        wanted: list[Wanted] = [(name, *stream) for name in feed.instruments for stream in STREAMS]
        async with Watcher(stack.url, wanted) as client, Invariants(stack, feed, client) as invariants:
            await until(lambda: len(client.resumed) >= len(wanted), "subscribed")
            yield Scene(stack, feed, client, invariants)
