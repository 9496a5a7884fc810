"""Clients of a whole system, what they saw of their books, and what they must have seen: the market topic's own word.

`Feed` lets captures flow into Kafka, `Watcher` is a client that remembers, and `Truth` is each book at each of its
positions, from the records that ingest wrote.
"""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from random import Random
from typing import Self

from protos.book import Book
from protos.messages import (
    BookUpdate,
    Channel,
    Flag,
    QuoteUpdate,
    StatusUpdate,
    TradesUpdate,
)
from protos.records import decode_market
from protos.topics import HEADER_FEED, HEADER_RECEIVED_NS, Topics, partition_for
from services.client.aio import Client
from services.client.aio import connect as connect_client
from services.client.subscription import Subscription
from services.config import Settings, load_settings
from services.kafka import EARLIEST, Producer, Reader, Record
from services.stack import Stack, local_http
from tests.support.brokers import TestBroker
from tests.support.captures import Tick, ticks_of
from tests.support.witness import View, Witness, top_of

DEPTHS = (1, 10, 50, 200, 0)
TURN_S = 0.02
PATIENCE_S = 30.0
QUICK = 9163
"""With this seed a client waits for less than 2 s before each of its first nine attempts to reconnect."""
Wanted = tuple[str, Channel, int, int]
"""Instrument, channel, depth, interval in milliseconds."""
Position = tuple[str, int, int]
"""Instrument, epoch, seq."""
_CHANNEL_OF = {
    BookUpdate: Channel.RAW,
    TradesUpdate: Channel.TRADES,
    QuoteUpdate: Channel.BBO,
    StatusUpdate: Channel.STATUS,
}


def stack_on(kafka: str | None, partitions: int = 2, **environment: int) -> Stack:
    """A system with topics of its own, not started. A worker's partitions are free 1.5 s after it died."""
    name = TestBroker.name("test")
    settings = load_settings().model_copy(
        update={
            "topic_prefix": name,
            "ingest_group": name,
            "http_port": 0,
            "admin_port": 0,
            "partitions": partitions,
            **environment,
        }
    )
    wanted = {
        "kafka_session_timeout_ms": 1_500,
        "digest_interval_ms": 500,
        "stale_after_ms": 600_000,  # a test that looks at the books after the last tick may take its time
        **environment,
    }
    return Stack(settings, kafka, {f"DEPTHCAST_{key.upper()}": str(value) for key, value in wanted.items()})


async def until(
    condition: Callable[[], Awaitable[bool]] | Callable[[], bool], what: str, patience_s: float = PATIENCE_S
) -> None:
    """Wait until it holds; a test that waits for too long fails and says ``what`` it waited for."""
    deadline = time.monotonic() + patience_s
    while True:
        holds = condition()
        if holds if isinstance(holds, bool) else await holds:
            return
        assert time.monotonic() < deadline, f"{what}: not in {patience_s:.0f} s"
        await asyncio.sleep(0.02)


def mixed(**counts: int) -> list[Tick]:
    """The beginnings of captures (``binance_spot=100``), spread evenly over one list; each keeps its order."""
    placed = []
    for name, count in counts.items():
        ticks = ticks_of(name.replace("_", "."))[:count]
        placed += [((i + 1) / len(ticks), tick) for i, tick in enumerate(ticks)]
    return [tick for _, tick in sorted(placed, key=lambda pair: pair[0])]


class Feed:
    """Puts ticks into Kafka at a steady rate. An async context manager."""

    def __init__(self, settings: Settings, ticks: list[Tick], rate_per_s: int) -> None:
        self.ticks, self.sent = ticks, 0
        self._settings, self._rate = settings, rate_per_s
        self._producer = Producer(settings)
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._producer.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
        await self._producer.stop()

    @property
    def instruments(self) -> list[str]:
        return sorted({tick.instrument for tick in self.ticks})

    @property
    def ended(self) -> bool:
        return self.sent == len(self.ticks)

    async def send(self, count: int) -> None:
        """Send the next ticks at once."""
        for tick in self.ticks[self.sent : self.sent + count]:
            key = tick.instrument.encode()
            headers = {HEADER_FEED: tick.feed.encode(), HEADER_RECEIVED_NS: str(time.time_ns()).encode()}
            partition = partition_for(key, self._settings.partitions)
            self._producer.send(Topics(self._settings.topic_prefix).ticks, partition, key, tick.value, headers)
            self.sent += 1
        await self._producer.flush()

    async def begin(self, stack: Stack) -> None:
        """Send ticks until each instrument had one, and wait until the streamer knows them all."""
        names = [tick.instrument for tick in self.ticks]
        await self.send(1 + max(names.index(name) for name in self.instruments))

        async def known() -> bool:
            found = (await http.get(f"{stack.http_url}/v1/instruments")).json()["instruments"]
            return {item["instrument"] for item in found} >= set(self.instruments)

        async with local_http() as http:
            await until(known, "instruments known")

    def flow(self) -> None:
        """Send the rest in the background."""
        self._task = asyncio.create_task(self._flow())

    async def _flow(self) -> None:
        loop = asyncio.get_running_loop()
        start, before = loop.time(), self.sent
        while not self.ended:
            await self.send(max(0, int((loop.time() - start) * self._rate) - (self.sent - before)))
            await asyncio.sleep(TURN_S)

    async def stop(self) -> None:
        """Stop after a whole tick; raises what ended it early."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await self._producer.flush()


class Watcher(Witness):
    """A client that subscribes and remembers. An async context manager."""

    def __init__(self, url: str, wanted: Iterable[Wanted], rng: Random | None = None, token: str = "") -> None:
        super().__init__()
        self._client: Client = connect_client(url, token=token, rng=rng or Random(QUICK))
        self._wanted = list(wanted)
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        for instrument, channel, depth, interval_ms in self._wanted:
            self.subscriptions.append(await self._client.subscribe(instrument, channel, depth, interval_ms))
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()
        if self._task is not None:
            await self._task

    async def _watch(self) -> None:
        async for event in self._client:
            self.see(event)

    @property
    def disconnects(self) -> int:
        return len(self.lost)

    @property
    def duplicates(self) -> int:
        return sum(subscription.duplicates for subscription in self.subscriptions)

    @property
    def conflated(self) -> list[View]:
        return [view for view in self.views if view.flags & Flag.CONFLATED]

    def wrong(self, truth: "Truth") -> list[View]:
        """Views that are not the top of the full book at their position."""
        return [
            view
            for view in self.views
            if truth.tops.get((view.instrument, view.epoch, view.seq), {}).get(view.depth) != view.top
        ]

    def unfinished(self, truth: "Truth") -> list[str]:
        """Books that are not what they must be in the end."""
        return [
            f"{it.key} at {it.position} {it.state}"
            for it in self.subscriptions
            if it.has_book and not (it.live and top_of(it.book, it.depth) == truth.last(it))
        ]


class Truth:
    """The market topic: each record once, and each book at each of its positions.

    Attributes:
        values: Record values by what names them: key, channel, epoch, seq. In the order of their first writing.
        repeats: Records that were written again.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        self.values: dict[tuple[str, Channel, int, int], bytes] = {}
        self.tops: dict[Position, dict[int, int]] = {}
        self.books: defaultdict[str, Book] = defaultdict(Book)
        self.repeats = 0
        for record in records:
            assert record.key is not None
            assert record.value is not None
            self.add(record.key.decode(), record.value)

    def add(self, instrument: str, value: bytes) -> None:
        """The next record."""
        message = decode_market(value)
        name = (instrument, _CHANNEL_OF[type(message)], message.epoch, message.seq)
        if name in self.values:
            assert value == self.values[name], f"{name} was written again, and differs"
            self.repeats += 1
            return
        self.values[name] = value
        if isinstance(message, BookUpdate):
            book = self.books[instrument]
            book.apply(message)
            self.tops[instrument, message.epoch, message.seq] = {depth: top_of(book, depth) for depth in DEPTHS}

    def last(self, subscription: Subscription) -> int:
        return self.last_top(subscription.instrument, subscription.depth)

    def last_top(self, instrument: str, depth: int) -> int:
        return top_of(self.books[instrument], depth)

    def chain(self, channel: Channel, instrument: str) -> list[tuple[int, int]]:
        """All positions of a channel."""
        return [(epoch, seq) for name, of, epoch, seq in self.values if (name, of) == (instrument, channel)]

    def of_one_epoch(self) -> set[str]:
        """Instruments whose book is one chain from the first tick to the last: any position of it can be continued."""
        epochs = Counter(name for name, _ in {(name, epoch) for name, epoch, _ in self.tops})
        return {name for name, count in epochs.items() if count == 1}

    def by_partition(self, partitions: int) -> list[list[tuple[tuple[str, Channel, int, int], bytes]]]:
        """Names and values in order, which there is within a partition only."""
        return [
            [(name, value) for name, value in self.values.items() if partition_for(name[0].encode(), partitions) == p]
            for p in range(partitions)
        ]


async def read_topic(settings: Settings, topic: str) -> list[Record]:
    """All its records."""
    everything = {(topic, partition): EARLIEST for partition in range(settings.partitions)}
    reader, records = Reader(settings), []
    await reader.start()
    try:
        await reader.assign(everything)
        ends = await reader.end_offsets(everything)
        while any(reader.position(partition) < end for partition, end in ends.items()):
            records += await reader.poll(200)
    finally:
        await reader.stop()
    return records


async def at_end(truth: Truth, *watchers: Watcher) -> None:
    """Wait until every book is what it must be in the end."""
    with suppress(AssertionError):
        await until(lambda: not any(watcher.unfinished(truth) for watcher in watchers), "the end")
    unfinished = [book for watcher in watchers for book in watcher.unfinished(truth)]
    assert not unfinished, unfinished


async def truth_of(stack: Stack, ticks: int) -> Truth:
    """Wait until the only ingest worker there was has processed so many ticks, stop it, and read what it wrote."""

    async def processed() -> bool:
        return (await stack.ingest.metrics()).get("depthcast_kafka_records_total", 0) == ticks

    await until(processed, f"{ticks} ticks processed")
    assert await stack.ingest.stop() == 0, stack.ingest.ended
    return Truth(await read_topic(stack.settings, Topics(stack.settings.topic_prefix).market))
