"""The fetch request and its answer as bytes, in one pass each.

aiokafka's own are described field by field and walked in Python, which costs more than what a single record costs
otherwise (docs/performance.md). A request has what `AIOKafkaConnection` asks of one for which it reads the answer.
"""

import struct
from collections.abc import Mapping
from io import BytesIO
from typing import ClassVar, NamedTuple

from aiokafka.errors import IncompatibleBrokerVersion

API_KEY, VERSION = 1, 4
"""Of the format of records with headers; every broker since 0.11 takes it, Kafka 4 none that is older."""
_ANY_REPLICA, _READ_UNCOMMITTED = -1, 0
_START = struct.Struct(">ihh")  # length of what follows, key, version
_CORRELATION_AT = _START.size
_HEADER = struct.Struct(">ih")  # correlation, length of the client's name
_HEAD = struct.Struct(">iiiibi")  # replica, wait, bytes at least and at most, isolation, topics
_ASKED = struct.Struct(">iqi")  # partition, offset, bytes at most
_OFFSET = struct.Struct(">q")
_ANSWERED = struct.Struct(">ihqqii")  # partition, error, end, last stable offset, aborted transactions, bytes
_LENGTH, _COUNT = struct.Struct(">h"), struct.Struct(">i")
_ABORTED_BYTES = 16


Fetched = tuple[str, int, int, int, bytes]
"""What a broker answers about one partition: topic, partition, error, offset after the newest record, and batches.

The last batch may be cut off; the first may begin before the offset that was asked for."""


class _Header(NamedTuple):
    """Of an answer."""

    correlation_id: int


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
    """A request for what comes after given offsets. It is written once; after that only offsets change.

    Args:
        topics: Topic -> partition -> offset to read from; a broker fills its answer in this order.
        wait_ms: How long the broker may wait for a first record.
        bytes_max: Of all together.
        partition_bytes_max: Of each. A larger record comes alone.
        client_id: What we call ourselves.
    """

    RESPONSE_TYPE: ClassVar = FetchAnswer

    def __init__(
        self,
        topics: Mapping[str, Mapping[int, int]],
        wait_ms: int,
        bytes_max: int,
        partition_bytes_max: int,
        client_id: str,
    ) -> None:
        data, self._offset_at = bytearray(_CORRELATION_AT), dict[tuple[str, int], int]()
        name = client_id.encode()
        data += _HEADER.pack(0, len(name)) + name
        data += _HEAD.pack(_ANY_REPLICA, wait_ms, 1, bytes_max, _READ_UNCOMMITTED, len(topics))
        for topic, partitions in topics.items():
            name = topic.encode()
            data += _LENGTH.pack(len(name)) + name + _COUNT.pack(len(partitions))
            for partition, offset in partitions.items():
                self._offset_at[topic, partition] = len(data) + _COUNT.size
                data += _ASKED.pack(partition, offset, partition_bytes_max)
        _START.pack_into(data, 0, len(data) - _COUNT.size, API_KEY, VERSION)
        self._data = data

    def seek(self, partition: tuple[str, int], offset: int) -> None:
        """Ask for another offset from now on."""
        _OFFSET.pack_into(self._data, self._offset_at[partition], offset)

    def frame(self, correlation_id: int) -> bytes:
        """What is sent."""
        _COUNT.pack_into(self._data, _CORRELATION_AT, correlation_id)
        return bytes(self._data)

    @staticmethod
    def prepare(versions: Mapping[int, tuple[int, int]]) -> None:
        """Look whether the broker takes this version.

        Raises:
            IncompatibleBrokerVersion: It does not.
        """
        oldest, newest = versions.get(API_KEY, (0, -1))
        if not oldest <= VERSION <= newest:
            raise IncompatibleBrokerVersion(f"the broker takes fetch requests {oldest} to {newest}, not {VERSION}")

    @staticmethod
    def parse_response_header(buffer: BytesIO) -> _Header:
        return _Header(_COUNT.unpack(buffer.read(4))[0])
