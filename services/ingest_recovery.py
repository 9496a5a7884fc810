"""Where a partition was left: its checkpoint and the states of its instruments, from the snapshots topic."""

import logging
from dataclasses import dataclass, field

from ingest.events import MapError
from ingest.pipeline import Pipeline
from protos.codec import CodecError
from protos.messages import Checkpoint
from protos.records import decode_checkpoint, decode_state
from protos.topics import checkpoint_key
from services.config import Settings
from services.kafka import EARLIEST, Partition, Reader, Record

_POLL_MS = 200
_RECORDS_MAX = 1_000

_log = logging.getLogger("depthcast.ingest")


@dataclass(slots=True)
class Left:
    """What the snapshots topic says of one partition; the newest of each."""

    checkpoint: Checkpoint | None = None
    states: dict[str, bytes] = field(default_factory=dict)
    end: int = 0
    """Offset after the last record that was read."""

    def restore(self, pipeline: Pipeline, ticks_offset: int) -> None:
        """Let a new pipeline go on at ``ticks_offset``. A state that cannot be read costs that instrument its book."""
        pipeline.position = ticks_offset
        for name, value in self.states.items():
            try:
                pipeline.restore(name, decode_state(value))
            except (CodecError, MapError) as error:
                _log.error("the state of %s cannot be read, it waits for a snapshot: %s", name, error)


async def read_left(settings: Settings, topic: str, partitions: list[int]) -> dict[int, Left]:
    """Read these partitions of the snapshots topic to their ends.

    Raises:
        UserError: Kafka cannot be reached.
        BrokerError: Kafka fails.
    """
    left = {partition: Left() for partition in partitions}
    everything: dict[Partition, int] = {(topic, partition): EARLIEST for partition in partitions}
    reader = Reader(settings)
    await reader.start()
    try:
        await reader.assign(everything)
        ends = await reader.end_offsets(everything)
        while any(reader.position(partition) < end for partition, end in ends.items()):
            for record in await reader.poll(_POLL_MS, _RECORDS_MAX):
                _note(left[record.partition], record)
        for (_, partition), end in ends.items():
            left[partition].end = end
    finally:
        await reader.stop()
    return left


def _note(left: Left, record: Record) -> None:
    if record.key is None or record.value is None:
        return
    if record.key != checkpoint_key(record.partition):
        left.states[record.key.decode("ascii", "replace")] = record.value
        return
    try:
        left.checkpoint = decode_checkpoint(record.value)
    except CodecError as error:
        _log.error("checkpoint at %s/%d/%d cannot be read: %s", record.topic, record.partition, record.offset, error)
