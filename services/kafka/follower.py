"""One partition that is followed: what was fetched of it, handed out record by record."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from aiokafka import TopicPartition
from aiokafka.errors import CorruptRecordException, KafkaError, RecordTooLargeError
from aiokafka.record import MemoryRecords

Partition = tuple[str, int]
"""(topic, partition)."""

_NO_HEADERS: Mapping[str, bytes] = MappingProxyType({})


class Record(NamedTuple):
    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Mapping[str, bytes]


open_batch: Callable[..., tuple[list[Record] | None, int]] | None
"""The compiled build's (`native.c`), past aiokafka's object for each record: the records of the batch that begins
somewhere in what a broker sent, or None where anything is unusual in it, and where it ends."""
try:
    from services.kafka import native

    open_batch = native.open_batch
except ImportError:
    open_batch = None


class Follower:
    """One partition: the next offset to hand out, and what was fetched from there on."""

    def __init__(self, name: Partition, position: int, end: int) -> None:
        self.name = name
        self.tp = TopicPartition(*name)
        self.end = end
        """Offset after the newest record, as of the last answer."""
        self.rests = False
        """Not to be asked for: its leader is looked up."""
        self.seek(position)

    def seek(self, position: int) -> None:
        """Forget what was fetched, and go on there."""
        self.position = position
        self.error: KafkaError | None = None
        """To be raised when all before it was handed out."""
        self._batches: Any = None
        self._data, self._at = b"", 0
        """What the batches are of, and where the next one begins, for `open_batch`."""
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
            self._data, self._at = data, 0
        elif data:
            self.error = RecordTooLargeError(f"{self.name[0]}/{self.name[1]} at {self.position}: cut off by the broker")

    def take(self, room: int) -> list[Record]:
        """At most ``room`` records. The position passes gaps too, that compaction leaves at the end of a batch."""
        records = self._records
        while len(records) < room and self._batches is not None:
            try:
                records += self._open()
            except Exception as error:  # of a decompressor too; nothing may be skipped, so it is fetched again
                self._batches, self._data = None, b""
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
        records: list[Record] | None = None
        if open_batch is not None:
            records, self._at = open_batch(self._data, self._at, start, topic, partition, Record, _NO_HEADERS)
        if batch.is_control_batch:
            records = []
        elif records is None:
            new = tuple.__new__  # past the constructor of named tuples: a third of what a record costs
            records = [
                new(
                    Record,
                    (
                        topic,
                        partition,
                        offset,
                        r.timestamp,
                        r.key,
                        r.value,
                        dict(h) if (h := r.headers) else _NO_HEADERS,
                    ),
                )
                for r in batch
                if (offset := r.offset) >= start
            ]
        self._opened_to = max(start, batch.next_offset)
        if not batches.has_next():
            self._batches, self._data = None, b""
        return records
