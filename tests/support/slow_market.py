"""A streamer in a process of its own, and a market that this process publishes: every channel, in dense sequences.

Dense: update n + 1 of a stream follows update n. So a client can say for itself how many updates a merged one stands
for, and whether its accounts and the server's are the same.
"""

import asyncio
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from loadtest.broker import Broker, batch_of
from loadtest.instruments import LEVELS, SCALE, SyntheticBook, market, names
from protos.messages import (
    BookState,
    Channel,
    MarketMessage,
    QuoteUpdate,
    Reason,
    Side,
    StatusUpdate,
    Trade,
    TradesUpdate,
)
from protos.records import encode_market
from protos.topics import partition_for
from services.stack import Child, free_port

PARTITIONS = 2
TURN_S = 0.01
CHANNELS = (Channel.BOOK, Channel.RAW, Channel.BBO, Channel.TRADES, Channel.STATUS)
STATUS_EVERY = 10
"""Updates of an instrument between two of its status."""


class Market:
    """An async context manager: broker, streamer, and the snapshots of ``instruments``.

    Args:
        books_only: Whether `publish` leaves quotes, trades and status out, which cost two thirds of the work.
        settings: DEPTHCAST_* of the streamer, in lower case without the prefix.
    """

    def __init__(self, instruments: int = 1, *, books_only: bool = False, **settings: object) -> None:
        self._books_only = books_only
        self.names = names(instruments)
        self.port = free_port()
        self._broker_port = free_port()
        self._topics = [f"slow.{name}" for name in ("ticks", "market", "snapshots", "dlq")]
        self._broker = Broker(self._topics, PARTITIONS)
        self._books = market(instruments, time.time_ns() // 1_000_000)
        self._flow: asyncio.Task[None] | None = None
        self.published = 0
        given = {f"DEPTHCAST_{name.upper()}": str(value) for name, value in settings.items()}
        environment = {
            "DEPTHCAST_STALE_AFTER_MS": "3600000",
            "DEPTHCAST_LOG_LEVEL": "warning",
            "DEPTHCAST_KAFKA_BOOTSTRAP": f"127.0.0.1:{self._broker_port}",
            "DEPTHCAST_TOPIC_PREFIX": "slow",
            "DEPTHCAST_PARTITIONS": str(PARTITIONS),
            "DEPTHCAST_HTTP_PORT": str(self.port),
            **given,
        }
        log = Path(tempfile.mkdtemp(prefix="depthcast-slow-")) / "streamer.log"
        self.streamer = Child("streamer", environment, free_port(), log)

    async def __aenter__(self) -> Self:
        await self._broker.start(self._broker_port)
        now_ns = time.time_ns()
        for book in self._books:
            self._append(book, [book.snapshot(now_ns), *self._others(book, now_ns, 0), book.status(now_ns)])
        await self.streamer.start()
        await self.streamer.ready()
        await self.until(lambda metrics: metrics.get("depthcast_books{state=synced}", 0) == len(self.names))
        return self

    async def until(self, holds: Callable[[dict[str, float]], bool], seconds: float = 20) -> dict[str, float]:
        """Wait until that is true of the streamer's metrics; returns them."""
        async with asyncio.timeout(seconds):
            while not holds(metrics := await self.metrics()):  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.05)
        return metrics

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._flow is not None:
            self._flow.cancel()
        await self.streamer.stop()
        await self._broker.stop()

    @property
    def pid(self) -> int:
        assert self.streamer.process is not None
        return self.streamer.process.pid

    async def metrics(self) -> dict[str, float]:
        """As `Child.metrics`."""
        return await self.streamer.metrics()

    def _append(self, book: SyntheticBook, messages: list[MarketMessage]) -> None:
        key = self.names[book.index].encode()
        records = [(key, encode_market(message)) for message in messages]
        self._broker.append(
            self._topics[1], {partition_for(key, PARTITIONS): batch_of(records, time.time_ns() // 1_000_000)}
        )

    def publish(self, index: int) -> None:
        """One more update of the book, of the quotes and of the trades; now and then one of the status."""
        book = self._books[index]
        now_ns = time.time_ns()
        delta = book.delta(now_ns)
        if self._books_only:
            self._append(book, [delta])
            self.published += 1
            return
        messages: list[MarketMessage] = [delta, *self._others(book, now_ns, delta.prev_seq)]
        if book.seq % STATUS_EVERY == 0:
            seq = 1 + book.seq // STATUS_EVERY
            status = StatusUpdate(0, book.epoch, seq, seq - 1, 0, now_ns, now_ns, state=BookState.SYNCED)
            status.reason = Reason.SNAPSHOT
            messages.append(status)
        self._append(book, messages)
        self.published += 1

    def publish_wide(self, index: int) -> None:
        """An update of the book alone that changes every level."""
        book = self._books[index]
        delta = book.delta(time.time_ns())
        delta.bids = [(book.mid - LEVELS + i, book.seq + i) for i in range(LEVELS)]
        delta.asks = [(book.mid + 1 + i, book.seq + i) for i in range(LEVELS)]
        self._append(book, [delta])

    @staticmethod
    def _others(book: SyntheticBook, now_ns: int, prev_seq: int) -> list[MarketMessage]:
        scale = None if prev_seq else SCALE
        trade = Trade(book.mid, book.seq, Side.BUY, str(book.seq), now_ns)
        header = (0, book.epoch, book.seq, prev_seq, 0, now_ns, now_ns)
        quote = QuoteUpdate(*header, bid_ticks=book.mid, bid_lots=book.seq, ask_ticks=book.mid + 1, ask_lots=1)
        quote.scale = scale
        return [quote, TradesUpdate(*header, trades=[trade], scale=scale)]

    def flow(self, rate_per_s: float) -> None:
        """From now on publish, the instruments in turn, so many updates a second; 0 stops."""
        if self._flow is not None:
            self._flow.cancel()
        self._flow = asyncio.create_task(self._publish(rate_per_s), name="market") if rate_per_s else None

    async def _publish(self, rate_per_s: float) -> None:
        started, done = time.perf_counter(), 0
        while True:
            due = int((time.perf_counter() - started) * rate_per_s)
            for _ in range(due - done):
                self.publish(self.published % len(self.names))
            done = due
            await asyncio.sleep(TURN_S)

    def seq(self, index: int, channel: Channel) -> int:
        """Of the last update published of an instrument."""
        seq = self._books[index].seq
        return 1 + seq // STATUS_EVERY if channel is Channel.STATUS else seq
