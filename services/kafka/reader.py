"""Reads records: assigned partitions at given offsets, or as a member of a group. No deserializers: an exception in one
would make aiokafka read the same record for ever."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from typing import Any

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
from services.kafka.fetcher import FETCH_TIMEOUT_MS, Fetcher
from services.kafka.follower import Partition, Record

EARLIEST = -2
"""As a position: the oldest record there is."""
LATEST = -1
"""As a position: after the newest record."""

REBALANCE_TIMEOUT_MS = 30_000
"""How long a rebalance waits for a member's ``on_revoked``; below the request timeout, which a join counts against."""
MAX_POLL_INTERVAL_MS = 300_000
_OFFSETS_TIMEOUT_MS = 10_000
_WATCH_MS = 1_000
"""So often aiokafka is asked anew what ails the group; what does is told at once."""


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
    """What both readers share: aiokafka's consumer knows offsets and groups, and never fetches; `Fetcher` does."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._consumer: Any = None
        self._fetcher = Fetcher(settings)
        self._polled_at = time.monotonic()

    async def _connect(self, **options: Any) -> None:  # noqa: ANN401 aiokafka has no types
        self._consumer = AIOKafkaConsumer(
            **{**client_options(self._settings), **options},
            auto_offset_reset="none",
            enable_auto_commit=False,
        )
        await connect(self._consumer.start, self._consumer.stop, self._settings)
        try:
            await self._fetcher.start()
        except BaseException:
            await self._consumer.stop()
            raise

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

    def last_poll_age_s(self) -> float:
        """Seconds since ``poll`` returned. Grows while the caller is stuck, or Kafka is away."""
        return time.monotonic() - self._polled_at

    async def _fetch(self, timeout_ms: int, records_max: int | None, *, ahead: bool = True) -> list[Record]:
        try:
            records = await self._fetcher.poll(timeout_ms / 1000, records_max, ahead=ahead)
        except OffsetOutOfRangeError as error:
            raise await self._lost(error) from None
        except KafkaError as error:
            raise _explained(error) from error
        self._polled_at = time.monotonic()
        return records

    async def _lost(self, error: OffsetOutOfRangeError) -> OffsetsLostError:
        ((tp, position),) = error.args[0].items()
        partition = (tp.topic, tp.partition)
        beginning = await self.beginning_offsets([partition])
        end = await self.end_offsets([partition])
        return OffsetsLostError(partition, position, beginning[partition], end[partition])

    async def stop(self) -> None:
        """Disconnect."""
        await self._fetcher.stop()
        if self._consumer is not None:
            await self._consumer.stop()


class Reader(_Consumer):
    """Reads given partitions from given positions: no group, no commits.

    ``start``, ``assign``, then ``poll`` for ever.
    """

    async def start(self) -> None:
        """Connect.

        Raises:
            UserError: Kafka cannot be reached.
        """
        await self._connect(group_id=None, request_timeout_ms=FETCH_TIMEOUT_MS)

    async def assign(self, positions: Mapping[Partition, int]) -> None:
        """Read these partitions from now on, each from its position (an offset, EARLIEST or LATEST)."""
        resolved = await self._resolved(positions)
        await self._fetcher.assign(resolved, await self.end_offsets(positions))

    async def poll(self, timeout_ms: int, records_max: int | None = None, *, ahead: bool = True) -> list[Record]:
        """Records that came, in order within each partition; empty when none came in ``timeout_ms``.

        Args:
            timeout_ms: How long to wait for a first one.
            records_max: None: all that came.
            ahead: Whether to ask for the next ones at once, see `Fetcher.poll`.

        Raises:
            OffsetsLostError: A position is out of range.
            UserError: Kafka forbids reading.
            BrokerError: Kafka fails.
        """
        return await self._fetch(timeout_ms, records_max, ahead=ahead)


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
        self._topic, self._group = topic, group
        self._on_assigned, self._on_revoked = on_assigned, on_revoked
        self._rebalance: tuple[Callable[[], Awaitable[None]], asyncio.Future[None]] | None = None
        self._watch: asyncio.Task[Any] | None = None  # for what ails the group
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
        self._raise_errors()
        if self._rebalance is None:
            return await self._fetch(timeout_ms, records_max)
        (callback, done), self._rebalance = self._rebalance, None
        try:
            await callback()
        finally:
            if not done.done():
                done.set_result(None)
        return []

    def _raise_errors(self) -> None:
        """What aiokafka has to say about the group: it does so to who asks for records. Of these there are none, as all
        partitions are paused. Who does not come here for `MAX_POLL_INTERVAL_MS` leaves the group."""
        if self._watch is not None and self._watch.done():
            watch, self._watch = self._watch, None
            try:
                watch.result()
            except KafkaError as error:
                raise _explained(error) from error
        if self._watch is None:
            self._watch = asyncio.create_task(self._consumer.getmany(timeout_ms=_WATCH_MS))

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
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        await super().stop()

    async def _in_poll(self, callback: Callable[[], Awaitable[None]]) -> None:
        if self._stopped:
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._rebalance = (callback, done)
        self._fetcher.interrupt()
        await done

    async def _revoked(self, partitions: list[int]) -> None:
        async def revoke() -> None:
            try:
                await self._on_revoked(partitions)
            finally:
                self._fetcher.forget()  # here: the next poll may come before we do

        if partitions:
            await self._in_poll(revoke)

    async def _assigned(self, partitions: list[int]) -> None:
        async def assign() -> None:
            positions = await self._on_assigned(partitions)
            resolved = await self._resolved({(self._topic, p): positions[p] for p in partitions})
            await self._fetcher.assign(resolved, await self.end_offsets(resolved))

        if partitions:
            await self._in_poll(assign)


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    """aiokafka calls it in its own task, and would go on to fetch from the committed offsets."""

    def __init__(self, reader: GroupReader) -> None:
        self._reader = reader

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        await self._reader._revoked(sorted(tp.partition for tp in revoked))  # noqa: SLF001

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        consumer = self._reader._consumer  # noqa: SLF001
        for tp in assigned:  # before the first await; for good, as we fetch ourselves
            consumer.pause(tp)
            consumer.seek(tp, 0)
        await self._reader._assigned(sorted(tp.partition for tp in assigned))  # noqa: SLF001


def _explained(error: Exception) -> Exception:
    if isinstance(error, TopicAuthorizationFailedError):
        return UserError(f"Kafka forbids reading {error.args[0]}: allow Read and Describe on it to this user")
    if isinstance(error, GroupAuthorizationFailedError):
        return UserError(f"Kafka forbids the group {error.args[0]}: allow Read on it to this user")
    return BrokerError(f"Kafka: {error!r}")
