"""An ingest worker: ticks in, verified market updates out, from start to end.

Effectively once, without transactions: outputs are a function of the ticks log and named by it, so a worker that dies
anywhere is replaced by one that starts at the last checkpoint and writes *identical* records; readers drop what they
have. The order of a checkpoint is what makes it one: market flushed, states, checkpoint, and last the group's offset,
which nothing relies on. It is of one moment, and written while ticks go on: to wait for it was a pause
of 30 ms.
"""

import asyncio
import gc
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from ingest.pipeline import Outputs, Pipeline, TickRecord
from protos.messages import Checkpoint, InstrumentState
from protos.records import encode_checkpoint, encode_market, encode_state
from protos.topics import HEADER_REASON, HEADER_SOURCE, Topics, checkpoint_key
from services.admin import Admin
from services.build import describe
from services.config import Settings
from services.ingest_observe import observe, observe_batch, observe_outputs
from services.ingest_recovery import read_left
from services.kafka import RECORD_BYTES_MAX, BrokerError, DeliveryError, GroupReader, OffsetsLostError, Producer, Record
from services.metrics import Metrics
from services.signals import stop_on_signals
from services.topics import check_topics

POLL_MS = 100
RECORDS_MAX = 2_000
"""Per poll: some 100 ms of work, so that a checkpoint or a rebalance does not wait."""
SLICE_S = 0.005
"""Seconds of processing before the event loop gets its turn: heartbeats and writes share it."""
RETRY_S = 1.0
STOP_S = 10.0
GC_OBJECTS = 50_000
"""Each tick is hundreds of objects without a cycle among them; looking for cycles every 700 costs 4 % of the rate."""
SPARE_AFTER_S = 10.0
"""A worker that got no partition in this time is ready too: it waits for another to go."""

_log = logging.getLogger("depthcast.ingest")


async def run_ingest(
    settings: Settings, stop: asyncio.Event | None = None, *, ready: Callable[[int], None] | None = None
) -> None:
    """Work until SIGTERM or SIGINT, or until ``stop`` is set; then write a last checkpoint and return.

    Args:
        ready: Called with the admin port when the first partitions are ours.

    Raises:
        UserError: A port is taken, Kafka cannot be reached, or its topics are missing.
    """
    stop = stop or stop_on_signals()
    metrics = Metrics()
    worker = Worker(settings, metrics)
    admin = Admin(settings, metrics, worker.why_not_ready)
    try:
        await check_topics(settings)
        await admin.start()
        _log.info("%s", describe())
        gc.freeze()
        gc.set_threshold(GC_OBJECTS)
        while not stop.is_set():
            try:
                await worker.run(stop, lambda: ready(admin.port) if ready else None)
            except (DeliveryError, BrokerError) as error:
                _log.error("starting anew from the last checkpoint: %s", error)
                await asyncio.sleep(RETRY_S)
    finally:
        await admin.stop()


class Cut(NamedTuple):
    """A partition at one offset of its ticks."""

    position: int
    market_end: Callable[[], int | None]
    """Offset after the updates of the ticks below ``position``; known once they are flushed. None: nobody wrote any."""
    states: Mapping[str, InstrumentState]
    """Of the instruments that changed since the cut before."""


class Worker:
    """A member of the consumer group. `run` is one membership; after a failure it can be run again."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.settings, self.metrics = settings, metrics
        self.topics = Topics(settings.topic_prefix)
        self.producer: Producer
        self.reader: GroupReader
        self.pipelines: dict[int, Pipeline] = {}
        self.checkpoints: dict[int, Checkpoint] = {}
        self.snapshots_end: dict[int, int] = {}
        """Offset of the next record of each snapshots partition, if nobody but us writes there."""
        self.checkpoint_at = self.started_at = time.monotonic()
        self.writing: asyncio.Task[None] | None = None
        """A checkpoint; one at a time."""
        self._assigned = asyncio.Event()

    async def run(self, stop: asyncio.Event, on_ready: Callable[[], None]) -> None:
        """Join, process until ``stop``, write a last checkpoint, leave.

        Raises:
            DeliveryError, BrokerError: Kafka failed; what came after the last checkpoint is to be done again.
        """
        settings, told = self.settings, False
        self._forget()
        self.producer = Producer(settings)
        self.reader = GroupReader(
            settings, self.topics.ticks, settings.ingest_group, self._on_assigned, self._on_revoked
        )
        try:
            await self.producer.start()
            await self.reader.start()
            observe(self.metrics, self.reader, lambda: self.checkpoint_at)
            while not stop.is_set():
                await self._process(await self._poll())
                if self.writing is not None and self.writing.done():
                    await self._written()
                if time.monotonic() - self.checkpoint_at >= self.settings.checkpoint_interval_ms / 1e3:
                    self._begin_checkpoint()
                if not told and self._assigned.is_set():
                    told = True
                    on_ready()
            await asyncio.wait_for(self.checkpoint(), STOP_S)
        except TimeoutError:
            _log.error("Kafka is away: stopped without a last checkpoint; the next worker starts at the one before")
        finally:
            if self.writing is not None:
                self.writing.cancel()
                await asyncio.gather(self.writing, return_exceptions=True)
                self.writing = None
            await self.reader.stop()
            await self.producer.stop()

    def why_not_ready(self) -> str:
        spare = time.monotonic() - self.started_at > SPARE_AFTER_S
        return "" if self._assigned.is_set() or spare else "waiting for partitions"

    async def _poll(self) -> list[Record]:
        try:
            return await self.reader.poll(POLL_MS, RECORDS_MAX)
        except OffsetsLostError as error:
            _log.error("%s; their books wait for snapshots", error)
            self.metrics.kafka_offsets_lost.inc()
            self.pipelines[error.partition[1]].offsets_lost()
            self.reader.seek(error.partition, error.beginning)
            return []

    async def _process(self, records: list[Record]) -> None:
        until = time.monotonic() + SLICE_S
        for record in records:
            pipeline = self.pipelines[record.partition]
            outputs = pipeline.process(TickRecord(*record[1:]))
            self._send(record, outputs)
            if time.monotonic() > until:
                await self.producer.room()
                await asyncio.sleep(0)
                until = time.monotonic() + SLICE_S
        observe_batch(self.metrics, self.topics.ticks, len(records), self.pipelines.values())
        await self.producer.room()

    def _send(self, record: Record, outputs: Outputs) -> None:
        for key, update in outputs.market:
            value = encode_market(update)
            self.producer.send(self.topics.market, record.partition, key, value, timestamp_ms=record.timestamp_ms)
        if outputs.dead:
            self._bury(record, outputs.dead.reason)
        observe_outputs(self.metrics, outputs)

    def _bury(self, record: Record, reason: str) -> None:
        """To the dead letter topic, as it came; cut only if Kafka could not take it."""
        source = f"{record.topic}/{record.partition}/{record.offset}"
        headers = {**record.headers, HEADER_REASON: reason.encode(), HEADER_SOURCE: source.encode()}
        value = record.value and record.value[: RECORD_BYTES_MAX - len(record.key or b"")]
        self.producer.send(self.topics.dlq, record.partition, record.key, value, headers, record.timestamp_ms)

    async def checkpoint(self) -> None:
        """Write what is new since the last one; returns when it is written."""
        await self._written()
        self._begin_checkpoint()
        await self._written()

    async def _written(self) -> None:
        """Wait until no checkpoint is being written. Raises what that one raised."""
        if self.writing is not None:
            await asyncio.shield(self.writing)
            self.writing = None

    def _begin_checkpoint(self) -> None:
        """Cut here, and write it beside all else; unless one is being written."""
        if self.writing is not None:
            return
        self.checkpoint_at = time.monotonic()
        moved = [p for p, pipeline in self.pipelines.items() if self._has_moved(p, pipeline)]
        if moved:
            self.writing = asyncio.create_task(self._write_checkpoint(self._cut(moved)), name="checkpoint")

    def _cut(self, partitions: Iterable[int]) -> dict[int, Cut]:
        """What is new of them, as of now."""
        pipelines, market = self.pipelines, self.topics.market
        return {p: Cut(pipelines[p].position, self.producer.end(market, p), pipelines[p].changed()) for p in partitions}

    async def _write_checkpoint(self, cuts: dict[int, Cut]) -> None:
        """Or not, if the group has moved on: another works from the old."""
        started = time.monotonic()
        await self.producer.flush()  # the market up to the cut
        if not await self._owns(cuts):
            _log.warning("the group has moved on; no checkpoint")
            for p in cuts:
                self.pipelines[p].all_changed()
            return
        await self._write_states(cuts)  # before the checkpoint that says they are there
        if foreign := [p for p in cuts if self._is_foreign(p)]:
            _log.warning("another worker wrote states of partitions %s: ours are written over them", foreign)
            self.metrics.foreign_states.inc(len(foreign))
            for p in foreign:
                self.pipelines[p].all_changed()
            again = self._cut(foreign)
            await self.producer.flush()
            await self._write_states(again)
            cuts |= again
        for p, cut in cuts.items():
            market_end = cut.market_end()
            market_offset = self.checkpoints[p].market_offset if market_end is None else market_end
            checkpoint = self.checkpoints[p] = Checkpoint(cut.position, market_offset)
            self._write(p, checkpoint_key(p), encode_checkpoint(checkpoint))
        await self.producer.flush()
        await self.reader.commit(self._offsets(cuts))
        self.metrics.checkpoint_duration.observe(time.monotonic() - started)

    async def _write_states(self, cuts: Mapping[int, Cut]) -> None:
        for p, cut in cuts.items():
            for name, state in cut.states.items():
                self._write(p, name.encode(), encode_state(state))
                await self.producer.room()
                await asyncio.sleep(0)  # ticks go on between two of them
        await self.producer.flush()

    def _write(self, partition: int, key: bytes, value: bytes) -> None:
        self.producer.send(self.topics.snapshots, partition, key, value)
        self.snapshots_end[partition] += 1

    def _is_foreign(self, partition: int) -> bool:
        """Whether somebody else has written to these snapshots since we looked last. Only a worker can that stood still
        between being told that they are its own and writing: its states are older than ours, and come after them."""
        acked = self.producer.acked(self.topics.snapshots, partition)
        expected = self.snapshots_end[partition]
        self.snapshots_end[partition] = expected if acked is None else acked + 1
        return self.snapshots_end[partition] != expected

    def _has_moved(self, partition: int, pipeline: Pipeline) -> bool:
        return pipeline.position != self.checkpoints[partition].ticks_offset

    async def _owns(self, partitions: Iterable[int]) -> bool:
        """Commit what is committed already: the group refuses it from a worker that it has given up."""
        return await self.reader.commit(self._offsets(partitions))

    def _offsets(self, partitions: Iterable[int]) -> dict[tuple[str, int], int]:
        return {(self.topics.ticks, p): self.checkpoints[p].ticks_offset for p in partitions}

    async def _on_assigned(self, partitions: list[int]) -> dict[int, int]:
        started = time.monotonic()
        if (
            partitions[-1] >= self.settings.partitions
        ):  # they were added: keys have moved, and halves of books with them
            await check_topics(self.settings)
        left = await read_left(self.settings, self.topics.snapshots, partitions)
        ends = await self.reader.end_offsets((self.topics.market, p) for p in partitions)
        begins = await self.reader.beginning_offsets((self.topics.ticks, p) for p in partitions)
        for p in partitions:
            fresh = Checkpoint(begins[self.topics.ticks, p], ends[self.topics.market, p])
            self.checkpoints[p] = left[p].checkpoint or fresh
            self.snapshots_end[p] = left[p].end
            self.pipelines[p] = Pipeline(p, self.settings.tick_bytes_max)
            left[p].restore(self.pipelines[p], self.checkpoints[p].ticks_offset)
        self.checkpoint_at = time.monotonic()
        self._assigned.set()
        _log.info("partitions %s are ours after %.1f s", partitions, time.monotonic() - started)
        return {p: self.checkpoints[p].ticks_offset for p in partitions}

    async def _on_revoked(self, partitions: list[int]) -> None:
        await self.checkpoint()
        self._forget()
        _log.info("partitions %s go to others", partitions)

    def _forget(self) -> None:
        self.pipelines.clear()
        self.checkpoints.clear()
        self.snapshots_end.clear()
