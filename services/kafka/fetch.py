"""The fetch request and its answer as bytes, in one pass each.

aiokafka's own are described field by field and walked in Python, which costs more than what a single record costs
otherwise (docs/performance.md). The objects have what `AIOKafkaClient.send` asks of a request.
"""

import struct
from collections.abc import Mapping
from io import BytesIO
from typing import NamedTuple, Self

from aiokafka.errors import IncompatibleBrokerVersion

API_KEY, VERSION = 1, 4
"""Of the format of records with headers; every broker since 0.11 takes it, Kafka 4 none that is older."""
_ANY_REPLICA, _READ_UNCOMMITTED = -1, 0
_HEADER = struct.Struct(">hhih")  # key, version, correlation, length of the client's name
_HEAD = struct.Struct(">iiiibi")  # replica, wait, bytes at least and at most, isolation, topics
_ASKED = struct.Struct(">iqi")  # partition, offset, bytes at most
_ANSWERED = struct.Struct(">ihqqii")  # partition, error, end, last stable offset, aborted transactions, bytes
_LENGTH, _COUNT = struct.Struct(">h"), struct.Struct(">i")
_ABORTED_BYTES = 16


Fetched = tuple[str, int, int, int, bytes]
"""What a broker answers about one partition: topic, partition, error, offset after the newest record, and batches.

The last batch may be cut off; the first may begin before the offset that was asked for."""


class _Header(NamedTuple):
    """Of a request, when ``data`` is set; of an answer, when ``correlation_id`` is."""

    data: bytes = b""
    correlation_id: int = 0

    def encode(self) -> bytes:
        return self.data


class FetchAnswer:
    """Reads the body of an answer."""

    @staticmethod
    def decode(buffer: BytesIO) -> list[Fetched]:
        """All partitions of the answer.

        Raises:
            struct.error: It is cut off. aiokafka closes the connection then.
        """
        data = buffer.read()
        (topics,) = _COUNT.unpack_from(data, 4)  # after the time by which we were throttled
        at, found = 8, []
        for _ in range(topics):
            (length,) = _LENGTH.unpack_from(data, at)
            at += 2 + length
            topic = data[at - length : at].decode()
            (partitions,) = _COUNT.unpack_from(data, at)
            at += 4
            for _ in range(partitions):
                partition, error, end, _, aborted, size = _ANSWERED.unpack_from(data, at)
                at += _ANSWERED.size
                if aborted > 0:  # they come before the size
                    at += aborted * _ABORTED_BYTES
                    (size,) = _COUNT.unpack_from(data, at - 4)
                records = b""
                if size > 0:
                    records = data[at : at + size]
                    at += size
                found.append((topic, partition, error, end, records))
        if at > len(data):
            raise struct.error("the answer to a fetch is cut off")
        return found


class FetchRequest:
    """A request for what comes after given offsets.

    Args:
        topics: Topic -> partition -> offset to read from; a broker fills its answer in this order.
        wait_ms: How long the broker may wait for a first record.
        bytes_max: Of all together.
        partition_bytes_max: Of each. A larger record comes alone.
    """

    API_KEY = API_KEY
    API_VERSION = VERSION
    RESPONSE_TYPE = FetchAnswer

    def __init__(
        self,
        topics: Mapping[str, Mapping[int, int]],
        wait_ms: int,
        bytes_max: int,
        partition_bytes_max: int,
    ) -> None:
        self._topics = topics
        self._wait_ms = wait_ms
        self._bytes_max = bytes_max
        self._partition_bytes_max = partition_bytes_max

    def prepare(self, versions: Mapping[int, tuple[int, int]]) -> Self:
        """Itself, if the broker takes this version.

        Raises:
            IncompatibleBrokerVersion: It does not.
        """
        oldest, newest = versions.get(API_KEY, (0, -1))
        if not oldest <= VERSION <= newest:
            raise IncompatibleBrokerVersion(f"the broker takes fetch requests {oldest} to {newest}, not {VERSION}")
        return self

    def build_request_header(self, correlation_id: int, client_id: str) -> _Header:
        name = client_id.encode()
        return _Header(_HEADER.pack(API_KEY, VERSION, correlation_id, len(name)) + name)

    def parse_response_header(self, buffer: BytesIO) -> _Header:
        return _Header(correlation_id=_COUNT.unpack(buffer.read(4))[0])

    def encode(self) -> bytes:
        parts = [
            _HEAD.pack(_ANY_REPLICA, self._wait_ms, 1, self._bytes_max, _READ_UNCOMMITTED, len(self._topics)),
        ]
        for topic, partitions in self._topics.items():
            name = topic.encode()
            parts.append(_LENGTH.pack(len(name)) + name + _COUNT.pack(len(partitions)))
            parts += [
                _ASKED.pack(partition, offset, self._partition_bytes_max) for partition, offset in partitions.items()
            ]
        return b"".join(parts)
