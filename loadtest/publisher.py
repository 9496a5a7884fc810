"""The publisher: a process of its own that writes updates when they are due, and stamps them with that time.

    python -m loadtest.publisher '{"instruments": 200, "kafka": "127.0.0.1:9092", "topic": "depthcast.market"}'
    python -m loadtest.publisher '{"instruments": 200, "broker": 9092, "topics": [...], "partitions": 8, "topic": ...}'
    python -m loadtest.publisher '{"instruments": 200, "feed": 9100}'

Open loop: update k of a run is due at start + k / rate, whatever the server does and however late we are. It is told
what to do by lines of JSON on its standard input, and answers each with a line; the end of the input ends it.
A generator inside the measured process starves it on its own core and makes its p99 ten times worse, hence a process.
"""

import asyncio
import json
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from loadtest.broker import Batch, Broker, batch_of
from loadtest.histogram import Histogram
from loadtest.instruments import SyntheticBook, market, names
from loadtest.on_time import Ticker, first_in_line
from loadtest.reference.feed import record
from protos.codec import CODECS
from protos.messages import MarketMessage
from protos.records import encode_market
from protos.topics import partition_for

SENTINEL_NS = 0x1234_5678_9ABC_DEF0
"""Stands for the due time in updates that are encoded before it is known."""
_SENTINEL = SENTINEL_NS.to_bytes(8, "little")
AHEAD_MAX = 600_000
"""Updates made before a run begins, about 90 MB: one costs 10 us to encode and 5 to bring on its way, too much for the
time when it counts."""
TICK_NS = 1_000_000
STAMP_NS = 6_000
"""What is allowed for each update between its stamp and the beginning of the run; twice as much when it does not do."""
LATE_SAMPLES = 16
"""Updates of one turn whose lateness is noted. They are evenly spread, so more would say the same."""
FEED_PUBLISHED_NS = 1_000_000
"""Reference servers do not stamp; chunks of the same length as depthcast's are stamped for them."""


Update = tuple[int, bytes]
"""(instrument, what `Sink.encode` made)."""


class Sink(Protocol):
    """Where updates go."""

    def encode(self, index: int, message: MarketMessage) -> bytes: ...

    def gather(self, updates: list[Update], due_ns: int) -> Any:  # noqa: ANN401 what `write` takes
        """All that are due by then: as much as can be done before."""
        ...

    async def write(self, gathered: Any) -> None:  # noqa: ANN401 what `gather` made
        """Hand them over, in order."""
        ...

    async def close(self) -> None: ...


class KafkaSink:
    """Records on the market topic, as ingest writes them."""

    def __init__(self, bootstrap: str, topic: str, instruments: int) -> None:
        self._bootstrap = bootstrap
        self._topic = topic
        self._keys = [name.encode() for name in names(instruments)]
        self._partitions: list[int] = []
        self._producer = AIOKafkaProducer(
            bootstrap_servers=bootstrap, acks="all", linger_ms=0, max_batch_size=262_144, max_request_size=4_194_304
        )

    async def start(self) -> None:
        try:
            await self._producer.start()
        except KafkaError:
            await self._producer.stop()
            raise SystemExit(f"no Kafka at {self._bootstrap}") from None
        count = len(await self._producer.partitions_for(self._topic))
        self._partitions = [partition_for(key, count) for key in self._keys]

    def encode(self, index: int, message: MarketMessage) -> bytes:  # noqa: ARG002
        return encode_market(message)

    def gather(self, updates: list[Update], due_ns: int) -> list[Update]:  # noqa: ARG002
        return updates

    async def write(self, gathered: list[Update]) -> None:
        now_ms = time.time_ns() // 1_000_000
        for index, value in gathered:
            await self._producer.send(
                self._topic, value, self._keys[index], partition=self._partitions[index], timestamp_ms=now_ms
            )

    async def close(self) -> None:
        await self._producer.stop()


class BrokerSink:
    """Records on the market topic of a broker in this very process, see `loadtest.broker`."""

    def __init__(self, port: int, topics: list[str], partitions: int, topic: str, instruments: int) -> None:
        self._port = port
        self._topic = topic
        self._broker = Broker(topics, partitions)
        self._keys = [name.encode() for name in names(instruments)]
        self._partitions = [partition_for(key, partitions) for key in self._keys]

    async def start(self) -> None:
        await self._broker.start(self._port)

    def encode(self, index: int, message: MarketMessage) -> bytes:  # noqa: ARG002
        return encode_market(message)

    def gather(self, updates: list[Update], due_ns: int) -> dict[int, Batch]:
        records: dict[int, list[tuple[bytes, bytes]]] = {}
        for index, value in updates:
            records.setdefault(self._partitions[index], []).append((self._keys[index], value))
        return {partition: batch_of(batch, due_ns // 1_000_000) for partition, batch in records.items()}

    async def write(self, gathered: dict[int, Batch]) -> None:
        self._broker.append(self._topic, gathered)

    async def close(self) -> None:
        """It ends with the process."""


class FeedSink:
    """Records for a reference server: chunks of frames, the stream's number is the instrument's plus 1."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._codec = CODECS["depthcast.v1.proto"]
        self._writer: asyncio.StreamWriter

    async def start(self) -> None:
        for _ in range(100):
            with suppress(ConnectionRefusedError):
                _, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
                return
            await asyncio.sleep(0.05)
        raise SystemExit(f"nobody takes the feed on port {self._port}")

    def encode(self, index: int, message: MarketMessage) -> bytes:
        message.stream = index + 1
        message.ts_published_ns = message.ts_received_ns + FEED_PUBLISHED_NS
        return record(index + 1, self._codec.encode(message, None))

    def gather(self, updates: list[Update], due_ns: int) -> bytes:  # noqa: ARG002
        return b"".join([data for _, data in updates])

    async def write(self, gathered: bytes) -> None:
        self._writer.write(gathered)
        await self._writer.drain()

    async def close(self) -> None:
        self._writer.close()


@dataclass(slots=True)
class Run:
    """What was published."""

    published: list[int]
    """Updates by instrument."""
    started_ns: int
    seconds: float
    late_p99_ms: float
    """How late the publisher itself was: this much of each latency is not the server's."""
    late_max_ms: float
    cpu_percent: float
    scheduling: str
    """What others on this core left to it, see `loadtest.on_time`."""


class Publisher:
    """Books, and the sink they are written to."""

    def __init__(self, books: list[SyntheticBook], sink: Sink) -> None:
        self._books = books
        self._sink = sink
        self._next = 0

    async def snapshots(self) -> None:
        """Write the snapshot and the state of every instrument."""
        now_ns = time.time_ns()
        for book in self._books:
            messages = (book.snapshot(now_ns), book.status(now_ns))
            updates = [(book.index, self._sink.encode(book.index, message)) for message in messages]
            await self._sink.write(self._sink.gather(updates, now_ns))

    def _encode(self) -> Update:
        """The next delta; the instruments take turns."""
        book = self._books[self._next]
        self._next = (self._next + 1) % len(self._books)
        return book.index, self._sink.encode(book.index, book.delta(SENTINEL_NS))

    async def run(self, rate: float, seconds: float) -> Run:
        """Publish ``rate`` updates a second for ``seconds``."""
        total = round(rate * seconds)
        plan = _Plan(total, 1e9 / rate)
        encoded = [self._encode() for _ in range(plan.ahead())]
        ahead = self._gather_ahead(plan, encoded)
        late = Histogram()
        with first_in_line() as scheduling, Ticker(TICK_NS / 1e9, plan.start_ns) as ticker:
            used_s, tick, done = time.process_time(), 0, 0
            while done < total:
                await ticker.tick()
                now_ns = time.time_ns()
                while done < total and plan.start_ns + (tick + 1) * TICK_NS <= now_ns:
                    tick, first = tick + 1, done
                    done = plan.due(tick)
                    if done == first:
                        continue
                    if ahead:
                        gathered = ahead.popleft()
                    else:
                        gathered = self._gather(plan, tick, [self._encode() for _ in range(first, done)])
                    await self._sink.write(gathered)
                    step = max(1, (done - first) // LATE_SAMPLES)
                    late.record([now_ns - plan.due_ns(k) for k in range(first, done, step)])
            took_s, used_s = (time.time_ns() - plan.start_ns) / 1e9, time.process_time() - used_s
        late_ms = late.quantile_ms(0.99), round(late.max / 1e6, 3)
        books = len(self._books)
        first_book = (self._next - total) % books
        published = [total // books + ((book - first_book) % books < total % books) for book in range(books)]
        return Run(published, plan.start_ns, took_s, *late_ms, round(100 * used_s / took_s, 1), scheduling)

    def _gather_ahead(self, plan: "_Plan", encoded: list[Update]) -> deque[Any]:
        """Of each tick that has some; settles when the run begins."""
        allowed_ns = STAMP_NS * len(encoded) + 100_000_000
        while True:
            plan.start_ns = time.time_ns() + allowed_ns
            ahead, tick, done = deque[Any](), 0, 0
            while done < len(encoded):
                tick, first = tick + 1, done
                done = plan.due(tick)
                if done > first:
                    ahead.append(self._gather(plan, tick, encoded[first:done]))
            if time.time_ns() < plan.start_ns:
                return ahead
            allowed_ns *= 2

    def _gather(self, plan: "_Plan", tick: int, encoded: list[Update]) -> Any:  # noqa: ANN401 what the sink makes
        """The last updates that are due by a tick, each with the time when it is."""
        first = plan.due(tick) - len(encoded)
        stamped = [
            (index, data.replace(_SENTINEL, plan.due_ns(first + k).to_bytes(8, "little"), 1))
            for k, (index, data) in enumerate(encoded)
        ]
        return self._sink.gather(stamped, plan.start_ns + tick * TICK_NS)


class _Plan:
    """Which update is due when."""

    def __init__(self, total: int, interval_ns: float) -> None:
        self._total = total
        self._interval_ns = interval_ns
        self.start_ns = 0

    def due_ns(self, k: int) -> int:
        return self.start_ns + int(k * self._interval_ns)

    def due(self, tick: int) -> int:
        """How many are due at the end of the tick; the first tick is 1."""
        return min(self._total, int(tick * TICK_NS / self._interval_ns) + 1)

    def ahead(self) -> int:
        """How many are made before the run: AHEAD_MAX at most, of whole ticks."""
        return self._total if self._total <= AHEAD_MAX else self.due(int(AHEAD_MAX * self._interval_ns / TICK_NS) - 1)


async def serve(options: dict[str, Any]) -> None:
    """Obey the commands on standard input: ``{"rate": 5000, "seconds": 5}``."""
    instruments = int(options["instruments"])
    sink: KafkaSink | BrokerSink | FeedSink
    if "broker" in options:
        sink = BrokerSink(options["broker"], options["topics"], options["partitions"], options["topic"], instruments)
    elif "kafka" in options:
        sink = KafkaSink(options["kafka"], options["topic"], instruments)
    else:
        sink = FeedSink(options["feed"])
    await sink.start()
    publisher = Publisher(market(instruments, time.time_ns() // 1_000_000), sink)
    await publisher.snapshots()
    print(json.dumps({"instruments": instruments}), flush=True)
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    while line := await commands.readline():
        command = json.loads(line)
        run = await publisher.run(command["rate"], command["seconds"])
        print(json.dumps(asdict(run)), flush=True)
    await sink.close()


if __name__ == "__main__":
    asyncio.run(serve(json.loads(sys.argv[1])))
