"""As much of a Kafka broker as a consumer without a group needs, inside the publisher's process.

A measurement needs a broker that is never the bottleneck and costs the generator's core next to nothing. librdkafka's
mock cluster answers a fetch with one batch per partition and only after the fetch's time is over; a real Kafka needs
most of a core. Here records are appended by a function call; a fetch is answered at once, with all there is. With a
real Kafka the same test runs by ``--kafka``.
"""

import asyncio
import struct
from collections.abc import Callable
from typing import Any

from aiokafka.protocol.admin import ApiVersionRequest_v0
from aiokafka.protocol.fetch import FetchRequest_v4
from aiokafka.protocol.metadata import MetadataRequest_v1
from aiokafka.protocol.offset import OffsetRequest_v1
from aiokafka.record.default_records import DefaultRecordBatchBuilder

RETAINED_BYTES = 32 << 20
"""Per partition; older batches are forgotten."""
_EARLIEST = -2
_OUT_OF_RANGE, _UNKNOWN_TOPIC = 1, 3
_HEADER = struct.Struct(">hhih")
_NODE = 1
_REQUESTS: dict[int, Any] = {
    request.API_KEY: request
    for request in (ApiVersionRequest_v0, FetchRequest_v4, MetadataRequest_v1, OffsetRequest_v1)
}


Batch = tuple[int, bytearray]
"""How many records, and all of them as one record batch."""


def batch_of(records: list[tuple[bytes, bytes]], timestamp_ms: int) -> Batch:
    """Of (key, value). It can be made long before it is appended."""
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 1 << 30)
    for i, (key, value) in enumerate(records):
        builder.append(i, timestamp_ms, key, value, [])
    return len(records), builder.build()


class _Log:
    """One partition: batches in order."""

    __slots__ = ("batches", "begin", "bytes", "end")

    def __init__(self) -> None:
        self.batches: list[tuple[int, bytes]] = []  # (offset after its last record, record batch)
        self.begin = self.end = self.bytes = 0

    def append(self, count: int, batch: bytearray) -> None:
        batch[:8] = self.end.to_bytes(8, "big")  # the base offset, which the checksum leaves out
        self.end += count
        self.batches.append((self.end, bytes(batch)))
        self.bytes += len(batch)
        if self.bytes > RETAINED_BYTES:
            self._forget()

    def _forget(self) -> None:
        """Half of it, so that it is seldom done."""
        half = len(self.batches) // 2
        self.bytes -= sum(len(data) for _, data in self.batches[:half])
        self.begin = self.batches[half - 1][0]
        del self.batches[:half]

    def read(self, offset: int, bytes_max: int) -> bytes:
        """Whole batches from the one that holds ``offset``, at least one."""
        if offset >= self.end:
            return b""
        low, high = 0, len(self.batches)
        while low < high:
            middle = (low + high) // 2
            if self.batches[middle][0] <= offset:
                low = middle + 1
            else:
                high = middle
        found: list[bytes] = []
        size = 0
        for _, data in self.batches[low:]:
            if found and size + len(data) > bytes_max:
                break
            found.append(data)
            size += len(data)
        return b"".join(found)


class Broker:
    """``await start(port)``, then ``append``.

    Args:
        topics: Names; all have as many partitions.
    """

    def __init__(self, topics: list[str], partitions: int) -> None:
        self._logs = {topic: [_Log() for _ in range(partitions)] for topic in topics}
        self._port = 0
        self._server: asyncio.Server
        self._appended: asyncio.Event = asyncio.Event()
        self._answers: dict[int, Callable[[Any], Any]] = {
            18: self._versions,
            3: self._metadata,
            2: self._offsets,
        }

    async def start(self, port: int) -> None:
        """Listen on a port of the loopback interface."""
        self._port = port
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port, limit=1 << 22)

    async def stop(self) -> None:
        """When its consumers are gone."""
        self._server.close()
        await self._server.wait_closed()

    def append(self, topic: str, batches: dict[int, Batch]) -> None:
        """Append one batch to each partition; whoever waits gets them."""
        for partition, batch in batches.items():
            self._logs[topic][partition].append(*batch)
        self._appended.set()
        self._appended = asyncio.Event()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                data = await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big"))
                key, _version, correlation, name_length = _HEADER.unpack_from(data)
                request = _REQUESTS[key].decode(data[_HEADER.size + max(0, name_length) :])
                answer = await self._fetch(request) if key == FetchRequest_v4.API_KEY else self._answers[key](request)
                body = correlation.to_bytes(4, "big") + answer.encode()
                writer.write(len(body).to_bytes(4, "big") + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    def _versions(self, request: Any) -> Any:  # noqa: ANN401 - aiokafka has no types
        versions = [(key, known.API_VERSION, known.API_VERSION) for key, known in _REQUESTS.items()]
        return request.RESPONSE_TYPE(error_code=0, api_versions=versions)

    def _metadata(self, request: Any) -> Any:  # noqa: ANN401
        topics = []
        for name in self._logs if request.topics is None else request.topics:
            logs = self._logs.get(name, [])
            partitions = [(0, p, _NODE, [_NODE], [_NODE]) for p in range(len(logs))]
            topics.append((0 if logs else _UNKNOWN_TOPIC, name, False, partitions))
        return request.RESPONSE_TYPE(
            brokers=[(_NODE, "127.0.0.1", self._port, None)], controller_id=_NODE, topics=topics
        )

    def _offsets(self, request: Any) -> Any:  # noqa: ANN401
        topics = []
        for topic, asked in request.topics:
            logs = self._logs[topic]
            offsets = [(p, 0, -1, logs[p].begin if when == _EARLIEST else logs[p].end) for p, when in asked]
            topics.append((topic, offsets))
        return request.RESPONSE_TYPE(topics=topics)

    async def _fetch(self, request: Any) -> Any:  # noqa: ANN401
        loop = asyncio.get_running_loop()
        until = loop.time() + request.max_wait_time / 1000
        while True:
            appended = self._appended
            topics, some = self._read(request)
            if some or loop.time() >= until:
                return request.RESPONSE_TYPE(throttle_time_ms=0, topics=topics)
            try:
                await asyncio.wait_for(appended.wait(), until - loop.time())
            except TimeoutError:
                until = 0.0

    def _read(self, request: Any) -> tuple[list[Any], bool]:  # noqa: ANN401
        """(answer, whether it is worth sending now)"""
        topics, some, room = [], False, request.max_bytes
        for topic, asked in request.topics:
            partitions = []
            for p, offset, bytes_max in asked:
                log = self._logs[topic][p]
                if not log.begin <= offset <= log.end:
                    partitions.append((p, _OUT_OF_RANGE, log.end, log.end, None, b""))
                    some = True
                    continue
                data = log.read(offset, bytes_max) if room > 0 else b""
                room -= len(data)
                some = some or bool(data)
                partitions.append((p, 0, log.end, log.end, None, data))
            topics.append((topic, partitions))
        return topics, some
