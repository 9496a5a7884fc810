"""Reads records: assigned partitions at given offsets, or as a member of a group. No deserializers: an exception in one
would make aiokafka read the same record for ever."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from typing import Any, Literal

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.errors import (
    CommitFailedError,
    GroupAuthorizationFailedError,
    IllegalStateError,
    KafkaError,
    KafkaTimeoutError,
    OffsetOutOfRangeError,
    TopicAuthorizationFailedError,
)

from services.config import Settings
from services.errors import UserError
from services.kafka.connection import BrokerError, client_options, connect
from services.kafka.fetcher import (
    FETCH_BYTES_MAX,
    FETCH_TIMEOUT_MS,
    PARTITION_FETCH_BYTES_MAX,
    Fetcher,
    Partition,
    Record,
)

EARLIEST = -2
"""As a position: the oldest record there is."""
LATEST = -1
"""As a position: after the newest record."""

REBALANCE_TIMEOUT_MS = 30_000
"""How long a rebalance waits for a member's ``on_revoked``; below the request timeout, which a join counts against."""
MAX_POLL_INTERVAL_MS = 300_000
_OFFSETS_TIMEOUT_MS = 10_000
_GRACE_S = 0.01


class OffsetsLostError(Exception):
    """The position is outside of what the partition holds: retention was faster than us, or the topic is a new one.

    The reader stays where it is and says so again, until ``seek()``.
    """

    def __init__(self, partition: Partition, position: int, beginning: int, end: int) -> None:
        self.partition, self.position, self.beginning, self.end = partition, position, beginning, end
        where = f"{partition[0]}/{partition[1]}"
        super().__init__(f"{where} holds offsets {beginning} to {end}, not {position}: {self.lost} records lost")

    @property
    def lost(self) -> int:
        """Records between the position and the oldest there is; 0 if the position is beyond the end."""
        return max(0, self.beginning - self.position)


class _Consumer:
    """What both readers share."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._consumer: Any = None
        self._polled_at = time.monotonic()

    async def _connect(self, **options: Any) -> None:  # noqa: ANN401 aiokafka has no types
        self._consumer = AIOKafkaConsumer(
            **{**client_options(self._settings), **options},
            auto_offset_reset="none",
            enable_auto_commit=False,
            fetch_max_wait_ms=self._settings.kafka_fetch_max_wait_ms,
            fetch_min_bytes=1,
            fetch_max_bytes=FETCH_BYTES_MAX,
            max_partition_fetch_bytes=PARTITION_FETCH_BYTES_MAX,
            check_crcs=True,
            isolation_level="read_uncommitted",
        )
        await connect(self._consumer.start, self._consumer.stop, self._settings)

    async def beginning_offsets(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """Offset of the oldest record of each partition.

        Raises:
            UserError: Kafka does not tell within 10 s.
        """
        return await self._offsets("beginning_offsets", partitions)

    async def end_offsets(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """Offset that the next record of each partition will get. Raises as ``beginning_offsets`` does."""
        return await self._offsets("end_offsets", partitions)

    async def _offsets(self, which: str, partitions: Iterable[Partition]) -> dict[Partition, int]:
        wanted = [TopicPartition(*partition) for partition in partitions]
        if not wanted:
            return {}
        try:
            async with asyncio.timeout(_OFFSETS_TIMEOUT_MS / 1000):
                found = await getattr(self._consumer, which)(wanted)
        except (TimeoutError, KafkaTimeoutError):
            topics = ", ".join(sorted({partition.topic for partition in wanted}))
            raise UserError(f"Kafka does not tell the offsets of {topics}: run `depthcast topics describe`") from None
        except KafkaError as error:
            raise _explained(error) from error
        return {(tp.topic, tp.partition): int(offset) for tp, offset in found.items()}

    async def _resolved(self, positions: Mapping[Partition, int]) -> dict[Partition, int]:
        earliest = await self.beginning_offsets(p for p, offset in positions.items() if offset == EARLIEST)
        latest = await self.end_offsets(p for p, offset in positions.items() if offset == LATEST)
        return {**positions, **earliest, **latest}

    def last_poll_age_s(self) -> float:
        """Seconds since ``poll`` returned. Grows while the caller is stuck, or Kafka is away."""
        return time.monotonic() - self._polled_at

    async def _lost(self, error: OffsetOutOfRangeError) -> OffsetsLostError:
        ((tp, position),) = error.args[0].items()
        partition = (tp.topic, tp.partition)
        beginning = await self.beginning_offsets([partition])
        end = await self.end_offsets([partition])
        return OffsetsLostError(partition, position, beginning[partition], end[partition])

    async def stop(self) -> None:
        """Disconnect."""
        if self._consumer is not None:
            await self._consumer.stop()


class Reader(_Consumer):
    """Reads given partitions from given positions: no group, no commits.

    ``start``, ``assign``, then ``poll`` for ever.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._fetcher = Fetcher(settings)

    async def start(self) -> None:
        """Connect.

        Raises:
            UserError: Kafka cannot be reached.
        """
        await self._connect(group_id=None, request_timeout_ms=FETCH_TIMEOUT_MS)
        try:
            await self._fetcher.start()
        except BaseException:
            await super().stop()
            raise

    async def stop(self) -> None:
        """Disconnect."""
        await self._fetcher.stop()
        await super().stop()

    async def assign(self, positions: Mapping[Partition, int]) -> None:
        """Read these partitions from now on, each from its position (an offset, EARLIEST or LATEST)."""
        resolved = await self._resolved(positions)
        await self._fetcher.assign(resolved, await self.end_offsets(positions))

    def seek(self, partition: Partition, offset: int) -> None:
        """Continue at ``offset`` (not EARLIEST or LATEST)."""
        self._fetcher.partitions[partition].seek(offset)

    def position(self, partition: Partition) -> int:
        """Offset of the next record that ``poll`` will return."""
        return self._fetcher.partitions[partition].position

    def positions(self) -> dict[Partition, int]:
        """``position`` of every assigned partition."""
        return {name: follower.position for name, follower in self._fetcher.partitions.items()}

    def lag(self) -> dict[Partition, int]:
        """Records between position and end of each assigned partition; the end as of the last fetch."""
        followers = self._fetcher.partitions.items()
        return {name: max(0, follower.end - follower.position) for name, follower in followers}

    async def poll(self, timeout_ms: int, records_max: int | None = None) -> list[Record]:
        """Records that came, in order within each partition; empty when none came in ``timeout_ms``.

        Raises:
            OffsetsLostError: A position is out of range.
            UserError: Kafka forbids reading.
            BrokerError: Kafka fails.
        """
        try:
            records = await self._fetcher.poll(timeout_ms / 1000, records_max)
        except OffsetOutOfRangeError as error:
            raise await self._lost(error) from None
        except KafkaError as error:
            raise _explained(error) from error
        self._polled_at = time.monotonic()
        return records


OnAssigned = Callable[[list[int]], Awaitable[Mapping[int, int]]]
"""Called with the partitions that are ours now, all of them; returns the position to read each from."""
OnRevoked = Callable[[list[int]], Awaitable[None]]
"""Called with the partitions that we are about to lose, all of them (the protocol is eager): finish and commit."""


class GroupReader(_Consumer):
    """Reads one topic as a member of a consumer group.

    ``on_assigned`` and ``on_revoked`` run inside ``poll``, in the caller's task: they never overlap the processing of
    records, and what they raise comes out of ``poll``. Partitions are handed out in ranges (aiokafka's sticky assignor
    is broken). Committed offsets decide nothing: positions come from ``on_assigned``.
    """

    def __init__(
        self, settings: Settings, topic: str, group: str, on_assigned: OnAssigned, on_revoked: OnRevoked
    ) -> None:
        super().__init__(settings)
        self._positions: dict[Partition, int] = {}
        self._ends: dict[Partition, int] = {}
        self._topic, self._group = topic, group
        self._on_assigned, self._on_revoked = on_assigned, on_revoked
        self._rebalance: tuple[Callable[[], Awaitable[None]], asyncio.Future[None]] | None = None
        self._rebalancing = asyncio.Event()
        self._turn: asyncio.Task[Literal[True]] | None = None  # waits for it; kept over many polls
        self._fetching: asyncio.Task[list[Record]] | None = None
        self._stopped = False

    async def start(self) -> None:
        """Connect and begin to join the group; partitions come with ``poll``.

        Raises:
            UserError: Kafka cannot be reached.
        """
        await self._connect(
            group_id=self._group,
            session_timeout_ms=self._settings.kafka_session_timeout_ms,
            heartbeat_interval_ms=self._settings.kafka_session_timeout_ms // 5,
            rebalance_timeout_ms=REBALANCE_TIMEOUT_MS,
            max_poll_interval_ms=MAX_POLL_INTERVAL_MS,
            partition_assignment_strategy=(RangePartitionAssignor,),
        )
        self._consumer.subscribe([self._topic], listener=_Listener(self))

    async def poll(self, timeout_ms: int, records_max: int | None = None) -> list[Record]:
        """As ``Reader.poll``; runs the rebalance callbacks when their time has come, and then returns no records.

        Raises:
            OffsetsLostError: A position is out of range.
            UserError: Kafka forbids reading.
            BrokerError: Kafka fails.
        """
        if self._fetching is None:
            self._fetching = asyncio.create_task(self._fetch(timeout_ms, records_max))
        if self._turn is None or self._turn.done():
            self._turn = asyncio.create_task(self._rebalancing.wait())
        # With a timeout of its own: during a rebalance aiokafka's does not count.
        await asyncio.wait(
            {self._fetching, self._turn}, timeout=timeout_ms / 1000 + _GRACE_S, return_when=asyncio.FIRST_COMPLETED
        )
        if self._fetching.done():  # first: these records came while the partitions were ours
            fetching, self._fetching = self._fetching, None
            return fetching.result()
        if self._rebalance is not None:
            callback, done = self._rebalance
            self._rebalance = None
            self._rebalancing.clear()
            try:
                await callback()
            finally:
                if not done.done():
                    done.set_result(None)
        return []

    def seek(self, partition: Partition, offset: int) -> None:
        """Continue at ``offset`` (not EARLIEST or LATEST)."""
        self._consumer.seek(TopicPartition(*partition), offset)
        self._positions[partition] = offset

    def position(self, partition: Partition) -> int:
        """Offset of the next record that ``poll`` will return, as of the last poll."""
        return self._positions[partition]

    def positions(self) -> dict[Partition, int]:
        """``position`` of every assigned partition."""
        return dict(self._positions)

    def lag(self) -> dict[Partition, int]:
        """Records between position and end of each assigned partition; the end as of the last fetch."""
        lags = {}
        for partition, position in self._positions.items():
            end = self._consumer.highwater(TopicPartition(*partition))
            lags[partition] = max(0, (self._ends.get(partition, 0) if end is None else end) - position)
        return lags

    async def _fetch(self, timeout_ms: int, records_max: int | None) -> list[Record]:
        try:
            fetched = await self._consumer.getmany(timeout_ms=timeout_ms, max_records=records_max)
        except OffsetOutOfRangeError as error:
            raise await self._lost(error) from None
        except KafkaError as error:
            raise _explained(error) from error
        records = [
            Record(r.topic, r.partition, r.offset, r.timestamp, r.key, r.value, dict(r.headers))
            for batch in fetched.values()
            for r in batch
        ]
        # With an empty result too: a position passes the gaps that compaction leaves at the end of a batch.
        for partition in [tuple(tp) for tp in fetched] or list(self._positions):
            if partition in self._positions:
                self._positions[partition] = await self._consumer.position(TopicPartition(*partition))
        self._polled_at = time.monotonic()
        return records

    async def commit(self, offsets: Mapping[Partition, int]) -> bool:
        """Commit the offsets of the next records to process. False: the group has moved on without us.

        Raises:
            UserError: Kafka forbids it.
            BrokerError: Kafka fails.
        """
        try:
            await self._consumer.commit({TopicPartition(*partition): offset for partition, offset in offsets.items()})
        except (CommitFailedError, IllegalStateError):
            return False
        except KafkaError as error:
            raise _explained(error) from error
        return True

    async def committed(self, partition: Partition) -> int | None:
        """What was committed last for the partition, by whomever."""
        offset: int | None = await self._consumer.committed(TopicPartition(*partition))
        return offset

    async def stop(self) -> None:
        """Leave the group and disconnect. ``on_revoked`` is not called: finish and commit before."""
        self._stopped = True
        if self._rebalance is not None:
            self._rebalance[1].set_result(None)
        for task in (self._turn, self._fetching):
            if task is not None:
                task.cancel()
                await asyncio.wait({task})
        await super().stop()

    async def _in_poll(self, callback: Callable[[], Awaitable[None]]) -> None:
        if self._stopped:
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._rebalance = (callback, done)
        self._rebalancing.set()
        await done

    async def _revoked(self, partitions: list[int]) -> None:
        if partitions:
            await self._in_poll(lambda: self._on_revoked(partitions))
        self._positions = {}

    async def _assigned(self, partitions: list[int]) -> None:
        async def assign() -> None:
            positions = await self._on_assigned(partitions)
            resolved = await self._resolved({(self._topic, p): positions[p] for p in partitions})
            self._ends = await self.end_offsets(resolved)
            for partition, offset in resolved.items():
                self.seek(partition, offset)
                self._consumer.resume(TopicPartition(*partition))

        if partitions:
            await self._in_poll(assign)


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    """aiokafka calls it in its own task, and would go on to fetch from the committed offsets meanwhile."""

    def __init__(self, reader: GroupReader) -> None:
        self._reader = reader

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        await self._reader._revoked(sorted(tp.partition for tp in revoked))  # noqa: SLF001

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        consumer = self._reader._consumer  # noqa: SLF001
        for tp in assigned:  # before the first await, so that nothing is fetched before on_assigned has its say
            consumer.pause(tp)
            consumer.seek(tp, 0)
        await self._reader._assigned(sorted(tp.partition for tp in assigned))  # noqa: SLF001


def _explained(error: Exception) -> Exception:
    if isinstance(error, TopicAuthorizationFailedError):
        return UserError(f"Kafka forbids reading {error.args[0]}: allow Read and Describe on it to this user")
    if isinstance(error, GroupAuthorizationFailedError):
        return UserError(f"Kafka forbids the group {error.args[0]}: allow Read on it to this user")
    return BrokerError(f"Kafka: {error!r}")
