"""Writes records. Acknowledged by all in-sync replicas, idempotent, in order."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from services.config import Settings
from services.kafka.connection import client_options, connect

RECORD_BYTES_MAX = 4 << 20
"""Key and value of the largest record that we write; topics are created with room for it."""
BATCH_BYTES = 512 << 10
"""Below the 1 MiB that a broker takes by default, whatever the topic's own limit is."""
BUFFER_BYTES_SOFT = 16 << 20
"""Unacknowledged bytes above which ``room()`` waits."""
BUFFER_BYTES_HARD = 128 << 20
"""Unacknowledged bytes above which ``send()`` raises: nobody waits for room."""
_STOP_S = 5.0
_log = logging.getLogger("depthcast.kafka")


class DeliveryError(Exception):
    """A record was not written and will not be. Start anew from the last checkpoint."""


class _Batch:
    """Records of one partition that go in one request. ``first`` resolves to the offset of the first of them."""

    __slots__ = ("builder", "bytes", "count", "first")

    def __init__(self, builder: Any) -> None:  # noqa: ANN401 aiokafka has no types
        self.builder = builder
        self.bytes = self.count = 0
        self.first: asyncio.Future[int] = asyncio.get_running_loop().create_future()


class _Lane:
    """One partition: batches that wait, and the task that sends them one after the other while there are any."""

    __slots__ = ("acked", "batches", "newest", "partition", "pump", "topic")

    def __init__(self, topic: str, partition: int) -> None:
        self.topic, self.partition = topic, partition
        self.batches: deque[_Batch] = deque()
        self.newest: _Batch | None = None  # waits, is on its way, or has come
        self.pump: asyncio.Task[None] | None = None
        self.acked: int | None = None


class Producer:
    """Records gather in a batch per partition while the batch before is on its way: no latency when idle, few requests
    under load. aiokafka's own ``send()`` costs 3 times the CPU: a coroutine, a future and an estimate a record."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._linger_s = settings.kafka_linger_ms / 1000
        self._producer: Any = None
        self._lanes: dict[tuple[str, int], _Lane] = {}
        self._buffered = 0
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._failure: DeliveryError | None = None

    async def start(self) -> None:
        """Connect.

        Raises:
            UserError: Kafka cannot be reached.
        """
        compression = self._settings.kafka_compression
        self._producer = AIOKafkaProducer(
            **client_options(self._settings),
            acks="all",
            enable_idempotence=True,
            compression_type=None if compression == "none" else compression,
            max_batch_size=BATCH_BYTES,
            max_request_size=2 * RECORD_BYTES_MAX,
            linger_ms=0,
        )
        await connect(self._producer.start, self._producer.stop, self._settings)

    @property
    def buffered_bytes(self) -> int:
        """Keys and values that are not acknowledged yet."""
        return self._buffered

    def acked(self, topic: str, partition: int) -> int | None:
        """Highest acknowledged offset of what this producer wrote to the partition; None before the first."""
        lane = self._lanes.get((topic, partition))
        return lane.acked if lane else None

    def end(self, topic: str, partition: int) -> Callable[[], int | None]:
        """What tells, after a ``flush()``, the offset after all that this producer has sent there until now; None when
        that was nothing."""
        lane = self._lanes.get((topic, partition))
        if lane is None or lane.newest is None:
            return lambda: None
        first, count = lane.newest.first, lane.newest.count
        return lambda: first.result() + count

    def send(
        self,
        topic: str,
        partition: int,
        key: bytes | None,
        value: bytes | None,
        headers: Mapping[str, bytes] | None = None,
        timestamp_ms: int | None = None,
    ) -> None:
        """Queue a record and return at once. Await ``room()`` now and then, ``flush()`` before relying on it.

        Raises:
            ValueError: Larger than ``RECORD_BYTES_MAX``.
            DeliveryError: An earlier record was not written.
            BufferError: A bug of the caller's: never awaits ``room()``.
        """
        self._append(topic, partition, key, value, headers, timestamp_ms)

    async def deliver(
        self,
        topic: str,
        partition: int,
        key: bytes | None,
        value: bytes | None,
        headers: Mapping[str, bytes] | None = None,
        timestamp_ms: int | None = None,
    ) -> int:
        """Send a record, wait until it is acknowledged, return its offset. Raises as ``send`` does."""
        batch = self._append(topic, partition, key, value, headers, timestamp_ms)
        index = batch.count - 1
        return await asyncio.shield(batch.first) + index

    async def room(self) -> None:
        """Wait until at most ``BUFFER_BYTES_SOFT`` are unacknowledged.

        Raises:
            DeliveryError: A record was not written.
        """
        await self._has_room.wait()
        self._check()

    async def flush(self) -> None:
        """Wait until everything sent so far is acknowledged; not for what is sent meanwhile. While Kafka is away this
        waits: nothing ever expires.

        Raises:
            DeliveryError: A record was not written.
        """
        if sent := {lane.newest.first for lane in self._lanes.values() if lane.newest and not lane.newest.first.done()}:
            await asyncio.wait(sent)
        self._check()

    async def stop(self) -> None:
        """Flush for up to 5 s and disconnect. What is not written by then is logged: flush first."""
        if self._producer is None:
            return
        pumps = [lane.pump for lane in self._lanes.values() if lane.pump]
        if pumps and self._failure is None:
            await asyncio.wait(pumps, timeout=_STOP_S)
        if self._buffered:
            _log.error("stopped with %d bytes not written to Kafka", self._buffered)
            for pump in pumps:
                pump.cancel()
            await asyncio.wait(pumps)
            self._fail(DeliveryError("the producer was stopped"))
        try:
            await asyncio.wait_for(self._producer.stop(), _STOP_S)
        except TimeoutError:
            await self._producer.client.close()

    def _append(
        self,
        topic: str,
        partition: int,
        key: bytes | None,
        value: bytes | None,
        headers: Mapping[str, bytes] | None,
        timestamp_ms: int | None,
    ) -> _Batch:
        size = len(key or b"") + len(value or b"")
        if size > RECORD_BYTES_MAX:
            raise ValueError(f"a record of {size} bytes for {topic}; at most {RECORD_BYTES_MAX} are possible")
        if self._failure is not None or self._buffered > BUFFER_BYTES_HARD:
            self._check()
            raise BufferError(f"{self._buffered} bytes unacknowledged: await room()")
        lane = self._lanes.get((topic, partition))
        if lane is None:
            lane = self._lanes[topic, partition] = _Lane(topic, partition)
        pairs = list(headers.items()) if headers else []
        batch = lane.batches[-1] if lane.batches else self._new_batch(lane)
        if batch.builder.append(timestamp=timestamp_ms, key=key, value=value, headers=pairs) is None:  # it is full
            batch = self._new_batch(lane)
            batch.builder.append(timestamp=timestamp_ms, key=key, value=value, headers=pairs)
        batch.count += 1
        batch.bytes += size
        self._buffered += size
        if self._buffered > BUFFER_BYTES_SOFT:
            self._has_room.clear()
        if lane.pump is None:
            lane.pump = asyncio.get_running_loop().create_task(self._pump(lane))
        return batch

    def _new_batch(self, lane: _Lane) -> _Batch:
        batch = lane.newest = _Batch(self._producer.create_batch())
        lane.batches.append(batch)
        return batch

    async def _pump(self, lane: _Lane) -> None:
        try:
            while lane.batches:
                if self._linger_s:
                    await asyncio.sleep(self._linger_s)
                await self._send(lane, lane.batches.popleft())
        except (KafkaError, AssertionError) as error:  # aiokafka asserts that the partition exists
            where = f"{lane.topic}/{lane.partition}"
            self._fail(DeliveryError(f"cannot write to {where}: {error or 'no such partition'}"))
        finally:
            lane.pump = None

    async def _send(self, lane: _Lane, batch: _Batch) -> None:
        batch.builder.close()
        try:
            sent = await self._producer.send_batch(batch.builder, lane.topic, partition=lane.partition)
            offset: int = (await sent).offset
            if offset < 0:  # a retry that came after five later batches; one is in flight, so only a broken broker
                raise KafkaError("the broker gave no offset")
        except BaseException:
            lane.batches.appendleft(batch)  # for _fail
            raise
        lane.acked = offset + batch.count - 1
        self._buffered -= batch.bytes
        if self._buffered <= BUFFER_BYTES_SOFT:
            self._has_room.set()
        batch.first.set_result(offset)

    def _fail(self, failure: DeliveryError) -> None:
        self._failure = failure
        self._buffered = 0
        self._has_room.set()
        for lane in self._lanes.values():
            for batch in lane.batches:
                if not batch.first.done():
                    batch.first.set_exception(failure)
                    batch.first.exception()  # seen; deliver() raises it if anybody waits
            lane.batches.clear()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
