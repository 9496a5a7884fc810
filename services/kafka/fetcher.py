"""Follows given partitions: one request at a time to each broker that leads some of them, the next when all was read.

In place of aiokafka's fetcher, which costs several times as much per request (see `services.kafka.fetch`) and per
record, and skips what came before a corrupt batch. Connections, leaders and the login are `AIOKafkaClient`'s.
"""

import asyncio
import logging
import sys
from collections import deque
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from aiokafka import AIOKafkaClient, TopicPartition
from aiokafka.errors import (
    CorruptRecordException,
    KafkaError,
    NoError,
    OffsetOutOfRangeError,
    RecordTooLargeError,
    TopicAuthorizationFailedError,
    for_code,
)
from aiokafka.record import MemoryRecords

from services.config import Settings
from services.kafka.connection import client_options, connect
from services.kafka.fetch import FetchRequest

Partition = tuple[str, int]
"""(topic, partition)."""

FETCH_BYTES_MAX = 16 << 20
PARTITION_FETCH_BYTES_MAX = 1 << 20
"""What is fetched ahead at most, in all and for one partition. A larger record still comes, alone."""
FETCH_TIMEOUT_MS = 10_000
"""Without a group no request waits for others: a broker whose host has vanished is given up sooner, and its partitions
are read from who leads them now."""
_RETRY_S = 0.1
"""After an error, until the partition or the broker is asked again."""
_NO_HEADERS: Mapping[str, bytes] = MappingProxyType({})

_complaints = logging.getLogger("aiokafka.fetcher")  # cut down with aiokafka's, see `services.kafka.connection`


class Record(NamedTuple):
    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Mapping[str, bytes]


class Follower:
    """One partition: the next offset to hand out, and what was fetched from there on."""

    def __init__(self, name: Partition, position: int, end: int) -> None:
        self.name = name
        self.tp = TopicPartition(*name)
        self.end = end
        """Offset after the newest record, as of the last answer."""
        self.retry_s = 0.0
        """Not to be asked for before, on the loop's clock."""
        self.seek(position)

    def seek(self, position: int) -> None:
        """Forget what was fetched, and go on there."""
        self.position = position
        self.error: KafkaError | None = None
        """To be raised when all before it was handed out."""
        self._batches: Any = None
        self._records: list[Record] = []  # of batches that were opened
        self._opened_to = position

    @property
    def unread(self) -> bool:
        return bool(self._records) or self._batches is not None or self.error is not None

    def put(self, data: bytes) -> None:
        """What a broker sent for ``position``."""
        batches = MemoryRecords(data)
        if batches.has_next():
            self._batches = batches
        elif data:
            self.error = RecordTooLargeError(f"{self.name[0]}/{self.name[1]} at {self.position}: cut off by the broker")

    def take(self, room: int) -> list[Record]:
        """At most ``room`` records. The position passes gaps too, that compaction leaves at the end of a batch."""
        records = self._records
        while len(records) < room and self._batches is not None:
            try:
                records += self._open()
            except Exception as error:  # of a decompressor too; nothing may be skipped, so it is fetched again
                self._batches = None
                known = isinstance(error, KafkaError)
                self.error = error if known else CorruptRecordException(f"{self.name[0]}/{self.name[1]}: {error!r}")
        self._records = records[room:]
        del records[room:]
        self.position = self._records[0].offset if self._records else self._opened_to
        return records

    def _open(self) -> list[Record]:
        """The records of the next batch from the position on; those of control batches are not for us."""
        batches, start = self._batches, self._opened_to
        batch = batches.next_batch()
        topic, partition = self.name
        if not batch.validate_crc():
            raise CorruptRecordException(f"{topic}/{partition} at {start}: the checksum does not hold")
        records = []
        if not batch.is_control_batch:
            records = [
                Record(
                    topic,
                    partition,
                    r.offset,
                    r.timestamp,
                    r.key,
                    r.value,
                    dict(h) if (h := r.headers) else _NO_HEADERS,
                )
                for r in batch
                if r.offset >= start
            ]
        self._opened_to = max(start, batch.next_offset)
        if not batches.has_next():
            self._batches = None
        return records


class Fetcher:
    """``start``, ``assign``, then ``poll`` for ever."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: Any = None
        self.partitions: dict[Partition, Follower] = {}
        self._unread: deque[Follower] = deque()
        self._asking: dict[int, asyncio.Task[None]] = {}  # broker -> its request
        self._waiter: asyncio.Future[None] | None = None
        self._until = 0.0  # poll waits, on the loop's clock
        self._changed = False  # since the brokers were asked; perhaps one of them can be asked again

    async def start(self) -> None:
        """Connect.

        Raises:
            UserError: Kafka cannot be reached.
        """
        options = {**client_options(self._settings), "request_timeout_ms": FETCH_TIMEOUT_MS}
        self._client = AIOKafkaClient(**options)
        await connect(self._client.bootstrap, self._client.close, self._settings)

    async def stop(self) -> None:
        """Disconnect."""
        for task in self._asking.values():
            task.cancel()
        await asyncio.gather(*self._asking.values(), return_exceptions=True)
        if self._client is not None:
            await self._client.close()

    async def assign(self, positions: Mapping[Partition, int], ends: Mapping[Partition, int]) -> None:
        """Read these partitions from now on, each from its position."""
        self.forget()
        self.partitions = {name: Follower(name, position, ends[name]) for name, position in positions.items()}
        self._changed = True
        await self._client.set_topics({topic for topic, _ in positions})

    def forget(self) -> None:
        """Read nothing from now on; what came already is not handed out."""
        self.partitions = {}
        self._unread.clear()

    def interrupt(self) -> None:
        """Let ``poll`` return now, with nothing if nothing has come."""
        self._until = 0.0
        self._wake()

    async def poll(self, timeout_s: float, records_max: int | None, *, ahead: bool = True) -> list[Record]:
        """Records that came, in order within each partition; empty when none came in time.

        Args:
            ahead: Ask for the next ones at once, while these are worked on. For who will pause it is better that the
                next poll asks, and gets what is newest then.

        Raises:
            KafkaError: Of one partition, which is where it was and is asked for again.
        """
        loop = asyncio.get_running_loop()
        self._until = loop.time() + timeout_s
        while True:
            records = self._take(records_max or sys.maxsize)
            if ahead or not records:
                self._ask(loop.time())
            rest_s = self._until - loop.time()
            if records or rest_s <= 0:
                return records
            await self._wait(rest_s)

    def _take(self, room: int) -> list[Record]:
        records: list[Record] = []
        while self._unread and len(records) < room:
            follower = self._unread[0]
            if error := follower.error:
                if not records:
                    follower.error = None
                    raise error
                break
            records += follower.take(room - len(records))
            if not follower.unread:
                self._unread.popleft()
                self._changed = True
        return records

    def _ask(self, now_s: float) -> None:
        """Ask each broker for its partitions, unless it is being asked, or something is unread."""
        if self._unread or not self._changed:
            return
        wanted: dict[int, list[Follower]] = {}
        for follower in self.partitions.values():
            if follower.retry_s > now_s:
                continue
            leader = self._client.cluster.leader_for_partition(follower.tp)
            if leader is None or leader == -1:
                self._look_up(follower)
            else:
                wanted.setdefault(leader, []).append(follower)
        for node, followers in wanted.items():
            if task := self._asking.get(node):
                if not task.done():
                    continue
                del self._asking[node]
                task.result()  # raises what nobody expected
            self._asking[node] = asyncio.create_task(self._fetch(node, followers))
        self._changed = False

    async def _fetch(self, node: int, followers: list[Follower]) -> None:
        asked: dict[str, dict[int, int]] = {}
        for follower in followers:
            topic, partition = follower.name
            asked.setdefault(topic, {})[partition] = follower.position
        wait_ms = self._settings.kafka_fetch_max_wait_ms
        request = FetchRequest(asked, wait_ms, FETCH_BYTES_MAX, PARTITION_FETCH_BYTES_MAX)
        try:
            for topic, partition, code, end, data in await self._client.send(node, request):
                known = self.partitions.get((topic, partition))
                if known is None:
                    continue
                if not code:
                    known.end = end
                    if not data:
                        continue
                # Nobody sought meanwhile, nor did another broker answer for it.
                if known.position == asked[topic][partition] and not known.unread:
                    self._receive(known, code, data)
        except KafkaError as error:
            _complaints.warning("no answer to a fetch from broker %s: %r", node, error)
            await asyncio.sleep(_RETRY_S)
        finally:
            self._wake()

    def _receive(self, follower: Follower, code: int, data: bytes) -> None:
        kind = for_code(code)
        if kind is NoError:
            follower.put(data)
            # Last the next time: a broker stops to fill its answer at FETCH_BYTES_MAX.
            self.partitions[follower.name] = self.partitions.pop(follower.name)
        elif kind is OffsetOutOfRangeError:
            follower.error = kind({follower.tp: follower.position})
        elif kind is TopicAuthorizationFailedError:
            follower.error = kind(follower.name[0])
        else:  # another broker leads it now, or it is being made or deleted
            _complaints.warning("%s/%d cannot be fetched: %s", *follower.name, kind.__name__)
            self._look_up(follower)
            return
        self._unread.append(follower)

    def _look_up(self, follower: Follower) -> None:
        """Find out who leads it now, and ask there."""
        loop = asyncio.get_running_loop()
        follower.retry_s = loop.time() + _RETRY_S
        loop.call_at(follower.retry_s, self._wake)
        self._client.force_metadata_update()

    async def _wait(self, seconds: float) -> None:
        """For an answer, at most so long."""
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = loop.call_later(seconds, self._wake)
        try:
            await self._waiter
        finally:
            timer.cancel()

    def _wake(self) -> None:
        self._changed = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
