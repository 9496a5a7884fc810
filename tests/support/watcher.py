"""A running system under test: what is put into it, and everything that a client of it sees."""

import asyncio
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from types import TracebackType
from typing import NamedTuple, Self

from ingest.pipeline import seq_of
from protos.book import Book
from protos.messages import Channel, Flag, Levels, QuoteUpdate, Scale
from protos.tick import TickKind
from protos.topics import Topics, partition_for
from services.client.aio import Client, connect
from services.client.events import BrokenChain, DigestChecked, StateChanged, StreamState, Updated
from services.client.subscription import Subscription
from services.config import Settings, load_settings
from services.feed.router import Router, TickOut
from services.kafka import Producer
from services.stack import Stack, local_http

DIGEST_MS = 300
WAIT_S = 20.0
ENVIRONMENT = {
    "DEPTHCAST_DIGEST_INTERVAL_MS": str(DIGEST_MS),
    "DEPTHCAST_OUTBOX_SOFT_BYTES": str(32 << 20),  # all streams of all instruments, over one connection, and each
    "DEPTHCAST_OUTBOX_HARD_BYTES": str(64 << 20),  # message is looked at
}

Decimals = list[tuple[Decimal, Decimal]]


def stack_settings(partitions: int = 1) -> Settings:
    """Topics and group of a new name, free ports."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    fresh = {"topic_prefix": name, "ingest_group": name, "http_port": 0, "admin_port": 0, "partitions": partitions}
    return load_settings().model_copy(update=fresh)


def decimals(levels: Levels, scale: Scale) -> Decimals:
    return [
        (Decimal(ticks).scaleb(scale.price_exponent), Decimal(lots).scaleb(scale.size_exponent))
        for ticks, lots in levels
    ]


class Seen(NamedTuple):
    """A client's best prices after an update."""

    channel: Channel
    seq: int
    live: bool
    crossed: bool
    best: tuple[Decimals, Decimals]


class Watcher:
    """Feeds a stack and watches it. An async context manager.

    Args:
        stack: A running one.
    """

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.seen: defaultdict[str, list[Seen]] = defaultdict(list)
        self.states: defaultdict[str, list[tuple[StreamState, str]]] = defaultdict(list)  # of raw streams
        self.digests: Counter[tuple[str, bool]] = Counter()
        self.broken: Counter[str] = Counter()
        self._subscriptions: dict[tuple[str, Channel], Subscription] = {}
        self._producer = Producer(stack.settings)
        self._moved = asyncio.Event()
        self._client: Client
        self._task: asyncio.Task[None]

    async def __aenter__(self) -> Self:
        await self._producer.start()
        self._client = await connect(self.stack.url).__aenter__()
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()
        await self._task
        await self._producer.stop()

    async def put(self, key: bytes | None, value: bytes | None, headers: Mapping[str, bytes], partition: int) -> int:
        """Write a record as it is; returns its seq."""
        topic = Topics(self.stack.settings.topic_prefix).ticks
        return seq_of(await self._producer.deliver(topic, partition, key, value, dict(headers)))

    async def tick(self, tick: TickOut) -> int:
        """Write a feed's record; returns its seq."""
        key = tick.instrument.encode()
        return await self.put(key, tick.value, tick.headers, partition_for(key, self.stack.settings.partitions))

    async def subscribe(self, feeds: Mapping[str, str], channels: Iterable[tuple[Channel, int]]) -> None:
        """Announce instruments, each with its feed, and subscribe to (channel, depth) of each before any message."""
        for name, feed in feeds.items():
            await self.tick(Router(feed).control(TickKind.DISCONNECTED, name, 0))
        await self._until_known(feeds)
        for name in feeds:
            for channel, depth in channels:
                self._subscriptions[name, channel] = await self._client.subscribe(name, channel, depth)

    async def _until_known(self, names: Iterable[str]) -> None:
        async with local_http() as http, asyncio.timeout(WAIT_S):
            while True:
                known = (await http.get(f"{self.stack.http_url}/v1/instruments")).json()["instruments"]
                if set(names) <= {item["instrument"] for item in known}:
                    return
                await asyncio.sleep(0.02)

    async def until(self, done: Callable[[], bool], what: str) -> None:
        """Wait until the client has seen something."""
        try:
            async with asyncio.timeout(WAIT_S):
                while not done():
                    self._moved.clear()
                    await self._moved.wait()
        except TimeoutError:
            raise AssertionError(f"{what} did not come in {WAIT_S:.0f} s") from None

    async def until_at(self, name: str, seq: int) -> None:
        """Wait until the raw book of an instrument is at ``seq`` or later."""
        await self.until(lambda: self.book(name).seq >= seq, f"seq {seq} of {name}")

    async def until_digests(self, names: Iterable[str]) -> None:
        """Wait for two more digests of each instrument."""
        wanted = {name: sum(self.checked(name)) + 2 for name in names}
        await self.until(lambda: all(sum(self.checked(n)) >= count for n, count in wanted.items()), "a digest")

    def checked(self, name: str) -> tuple[int, int]:
        """Digests of the instrument's streams that passed and that failed."""
        return self.digests[name, True], self.digests[name, False]

    def raw(self, name: str) -> Subscription:
        return self._subscriptions[name, Channel.RAW]

    def book(self, name: str) -> Book:
        """Of the raw stream."""
        return self.raw(name).book

    def levels(self, name: str) -> tuple[Decimals, Decimals]:
        """The raw stream's book in full, best first."""
        raw = self.raw(name)
        assert raw.scale is not None, f"{name} never had a book"
        bids, asks = raw.book.top(0)
        return decimals(bids, raw.scale), decimals(asks, raw.scale)

    async def _run(self) -> None:
        async for event in self._client:
            if isinstance(event, Updated):
                self._see(event)
            elif isinstance(event, StateChanged) and event.subscription.channel is Channel.RAW:
                self.states[event.subscription.instrument].append((event.state, event.why))
            elif isinstance(event, DigestChecked):
                self.digests[event.subscription.instrument, event.passed] += 1
            elif isinstance(event, BrokenChain):
                self.broken[event.subscription.instrument] += 1
            self._moved.set()

    def _see(self, event: Updated) -> None:
        subscription, message = event.subscription, event.message
        scale = subscription.scale
        if scale is None:
            return
        if isinstance(message, QuoteUpdate):
            if not message.flags & Flag.DERIVED:
                return  # the venue's own word
            bids = [(message.bid_ticks, message.bid_lots)] if message.bid_lots else []
            asks = [(message.ask_ticks, message.ask_lots)] if message.ask_lots else []
        else:
            bids, asks = subscription.book.top(1)
        best = decimals(bids, scale), decimals(asks, scale)
        crossed = bool(message.flags & Flag.CROSSED)
        seen = Seen(subscription.channel, message.seq, subscription.live, crossed, best)
        self.seen[subscription.instrument].append(seen)
