"""Kafka to the hub: every partition of `snapshots` and `market`, without a consumer group.

Start: read `snapshots` to its end, load the newest state of each instrument, then read `market` from each partition's
checkpoint. What both hold is dropped by (epoch, seq). Caught up with the end offsets of that moment: ready.

Recovery is the same, for one partition. When market records were lost (expired, unreadable, a broken chain), its
instruments are gapped and its snapshots are read again from beginning to end. The newest checkpoint, if it is beyond
the loss, or else the next that is, brings their states and the place to read `market` from. So `snapshots` is read
all the time; it costs nothing but its bytes.
"""

import asyncio
import logging
import time

from protos.codec import CodecError
from protos.delta import ADVANCES
from protos.messages import BookUpdate, Checkpoint, Reason
from protos.records import decode_checkpoint, decode_market, decode_state
from protos.topics import Topics, is_checkpoint_key
from services.config import Settings
from services.kafka import EARLIEST, OffsetsLostError, Reader, Record
from services.metrics import Metrics
from services.streamer.clock import Clock
from services.streamer.flush import Flusher
from streamer.hub import Hub

POLL_MS = 200
"""How long a poll waits for records. Silence is noticed between polls."""
RECORDS_MAX = 5_000
"""Records per poll."""
SLICE_S = 0.002
"""Seconds of applying before the event loop, and with it the flush, gets its turn."""
STEP = 16
"""Records between two looks at the clock: some 0.1 ms."""
RETRY_S = 1.0

_log = logging.getLogger("depthcast.market")


class Recovery:
    """What a partition waits for after a loss: states, and a checkpoint at or after ``market_offset``.

    The newest one that there is: an older one may be of a market topic that was deleted, where offsets meant other
    records.
    """

    def __init__(self, market_offset: int) -> None:
        self.market_offset = market_offset
        self.snapshots_end = 0
        self.states: dict[str, bytes] = {}
        self.checkpoint: Checkpoint | None = None

    def is_covered(self, snapshots_offset: int, market_end: int) -> bool:
        """Whether what was read up to this record brings the partition beyond the loss."""
        if self.checkpoint is None or snapshots_offset + 1 < self.snapshots_end:
            return False
        return self.market_offset <= self.checkpoint.market_offset <= market_end


class MarketReader:
    """Reads for ever; ``caught_up`` is set when the books are what Kafka held at the start."""

    def __init__(
        self,
        settings: Settings,
        hub: Hub,
        metrics: Metrics,
        clock: Clock,
        flusher: Flusher,
    ) -> None:
        topics = Topics(settings.topic_prefix)
        self._snapshots, self._market = topics.snapshots, topics.market
        self._partitions = range(settings.partitions)
        self._stale_after_s = settings.stale_after_ms / 1e3
        self._hub = hub
        self._counters = hub.counters
        self._metrics = metrics
        self._count_market = metrics.kafka_records.labels(topics.market).inc
        self._count_snapshots = metrics.kafka_records.labels(topics.snapshots).inc
        self._clock = clock
        self._flusher = flusher
        self._wake = flusher.wake
        self._applied = flusher.applied
        self.reader = Reader(settings)
        self.updated_ns: dict[str, int] = {}
        """Instrument -> when its book changed last, on the monotonic clock."""
        self._partition_of: dict[str, int] = {}
        self._recoveries: dict[int, Recovery] = {}
        self._rewinds: set[int] = set()
        self._sought: set[int] = set()
        self._heard_s = time.monotonic()
        self.caught_up = asyncio.Event()

    async def start(self) -> None:
        """Connect.

        Raises:
            UserError: Kafka cannot be reached.
        """
        await self.reader.start()

    async def stop(self) -> None:
        await self.reader.stop()

    async def run(self) -> None:
        """Load, catch up, and follow for ever."""
        started = time.monotonic()
        await self.reader.assign(await self._load_snapshots())
        ends = await self.reader.end_offsets([(self._market, p) for p in self._partitions])
        await self._check_positions(ends)
        self._heard_s = time.monotonic()
        loaded = False
        while True:
            if not self._hub.ready and all(self.reader.position(p) >= end for p, end in ends.items()):
                self._hub.ready = True
                self.caught_up.set()
                _log.info("ready: %d instruments in %.1f s", len(self._hub.instruments()), time.monotonic() - started)
            records = await self._poll(ahead=not loaded)
            if records:
                self._flusher.hold()
            await self._process(records)
            if records:
                loaded = await self._flusher.room()

    async def _check_positions(self, ends: dict[tuple[str, int], int]) -> None:
        """A position beyond the end, of a topic that was made anew, would count as caught up."""
        beyond = [partition for partition, end in ends.items() if self.reader.position(partition) > end]
        for partition, beginning in (await self.reader.beginning_offsets(beyond)).items():
            self._on_lost(OffsetsLostError(partition, self.reader.position(partition), beginning, ends[partition]))

    async def _poll(self, *, ahead: bool = True) -> list[Record]:
        try:
            if self._rewinds:
                await self._rewind_snapshots()
            return await self.reader.poll(POLL_MS, RECORDS_MAX, ahead=ahead)
        except OffsetsLostError as error:
            self._on_lost(error)
        except Exception as error:  # whatever ails Kafka: serve what we have, flagged STALE, and come back
            _log.warning("cannot read from Kafka, trying again: %s", error)
            await asyncio.sleep(RETRY_S)
        return []

    async def _load_snapshots(self) -> dict[tuple[str, int], int]:
        """Load the newest states; returns where to read on."""
        everything = {(self._snapshots, p): EARLIEST for p in self._partitions}
        await self.reader.assign(everything)
        ends = await self.reader.end_offsets(everything)
        states: dict[str, Record] = {}
        checkpoints: dict[int, Checkpoint] = {}
        while any(self.reader.position(p) < end for p, end in ends.items()):
            for record in await self._poll():
                if record.key is None or record.value is None:
                    self._unusable(record, "null")
                elif not is_checkpoint_key(record.key):
                    states[record.key.decode(errors="replace")] = record
                elif checkpoint := self._checkpoint(record):
                    checkpoints[record.partition] = checkpoint
        for instrument, record in states.items():
            if record.value is not None and not self._load(instrument, record.partition, record.value):
                self._unusable(record, "bad-state")
            await asyncio.sleep(0)
        offsets = self.reader.positions()
        for p in self._partitions:
            offsets[self._market, p] = checkpoints[p].market_offset if p in checkpoints else EARLIEST
        return offsets

    def _checkpoint(self, record: Record) -> Checkpoint | None:
        try:
            return decode_checkpoint(record.value or b"")
        except CodecError:
            self._unusable(record, "bad-checkpoint")
            return None

    def _load(self, instrument: str, partition: int, value: bytes) -> bool:
        try:
            state = decode_state(value)
        except CodecError:
            return False
        self._partition_of[instrument] = partition
        self.updated_ns[instrument] = time.monotonic_ns()
        self._hub.load(instrument, state)
        return True

    async def _process(self, records: list[Record]) -> None:
        self._sought.clear()
        self._judge_silence(heard=any(record.topic == self._market for record in records))
        until = time.monotonic() + SLICE_S
        market, sought, of_market = self._market, self._sought, 0
        for start in range(0, len(records), STEP):
            if time.monotonic() > until:
                self._wake()
                await asyncio.sleep(0)
                until = time.monotonic() + SLICE_S
            now_ns, monotonic_ns = self._clock.now_ns(), time.monotonic_ns()
            for record in records[start : start + STEP]:
                if record.topic != market:
                    self._on_snapshot(record)
                    continue
                of_market += 1
                if record.partition not in sought:
                    self._on_market(record, now_ns, monotonic_ns)
        if records:
            self._count_market(of_market)
            self._count_snapshots(len(records) - of_market)
            self._wake()
            await asyncio.sleep(0)

    def _on_market(self, record: Record, now_ns: int, monotonic_ns: int) -> None:
        _, partition, offset, timestamp_ms, key, value, _ = record
        hub, counters = self._hub, self._counters
        try:
            instrument = (key or b"").decode("ascii")
            received_ns = hub.advance(instrument, value or b"", now_ns) if ADVANCES else -1
            if received_ns >= 0:
                self.updated_ns[instrument] = monotonic_ns
                if hub.ready:
                    self._applied(received_ns, timestamp_ms * 1_000_000)
                return
            message = decode_market(value or b"")
        except (CodecError, UnicodeDecodeError):
            self._unusable(record, "bad-update")
            hub.gap((key or b"").decode(errors="replace"), Reason.OFFSETS_LOST, now_ns)
            self._recover(partition, offset + 1)
            return
        breaks = counters.chain_breaks
        is_book = isinstance(message, BookUpdate)
        received_ns = message.ts_received_ns
        if not hub.apply(instrument, message, now_ns):
            return
        if instrument not in self._partition_of:
            self._partition_of[instrument] = partition
        if is_book:
            self.updated_ns[instrument] = monotonic_ns
            if counters.chain_breaks != breaks and partition not in self._recoveries:
                self._recover(partition, offset)
        if hub.ready:
            self._applied(received_ns, timestamp_ms * 1_000_000)

    def _on_snapshot(self, record: Record) -> None:
        recovery = self._recoveries.get(record.partition)
        if recovery is None:
            return
        if record.key is not None and record.value is not None:
            if is_checkpoint_key(record.key):
                recovery.checkpoint = self._checkpoint(record) or recovery.checkpoint
            else:
                recovery.states[record.key.decode(errors="replace")] = record.value
        partition = (self._market, record.partition)
        market_end = self.reader.position(partition) + self.reader.lag()[partition]
        if recovery.checkpoint is None or not recovery.is_covered(record.offset, market_end):
            return
        del self._recoveries[record.partition]
        for instrument, value in recovery.states.items():
            if not self._load(instrument, record.partition, value):
                self._unusable(record, "bad-state")
        offset = recovery.checkpoint.market_offset
        if offset < self.reader.position(partition):
            self.reader.seek(partition, offset)
            self._sought.add(record.partition)  # what this poll still holds of it comes again, in its place
        self._wake()
        _log.info("market/%d: recovered from the checkpoint at %d", record.partition, offset)

    def _recover(self, partition: int, market_offset: int) -> None:
        """Begin to wait for a checkpoint beyond the loss, or for a later one than so far."""
        recovery = self._recoveries.get(partition)
        if recovery is not None:
            recovery.market_offset = max(recovery.market_offset, market_offset)
            return
        self._recoveries[partition] = Recovery(market_offset)
        self._rewinds.add(partition)
        _log.warning("market/%d: records before %d are lost; waiting for a checkpoint", partition, market_offset)

    async def _rewind_snapshots(self) -> None:
        partitions = [(self._snapshots, p) for p in self._rewinds]
        beginnings = await self.reader.beginning_offsets(partitions)
        ends = await self.reader.end_offsets(partitions)
        self._rewinds.clear()
        for partition, offset in beginnings.items():
            self.reader.seek(partition, offset)
            if recovery := self._recoveries.get(partition[1]):
                recovery.snapshots_end = ends[partition]

    def _on_lost(self, error: OffsetsLostError) -> None:
        topic, partition = error.partition
        _log.error("%s", error)
        self._metrics.kafka_offsets_lost.inc()
        self.reader.seek(error.partition, error.beginning)
        if topic == self._market:
            now_ns = self._clock.now_ns()
            for instrument, home in self._partition_of.items():
                if home == partition:
                    self._hub.gap(instrument, Reason.OFFSETS_LOST, now_ns)
            self._recover(partition, error.beginning)
            self._wake()

    def _unusable(self, record: Record, reason: str) -> None:
        """Count a record that cannot be decoded; the partition goes on."""
        self._metrics.dead_letters.labels(reason).inc()
        _log.error("%s/%d at %d: %s", record.topic, record.partition, record.offset, reason)

    def _judge_silence(self, *, heard: bool) -> None:
        """Flag everything STALE when no update comes, until updates come and we are not behind."""
        now_s, hub = time.monotonic(), self._hub
        if heard:
            self._heard_s = now_s
            if hub.stale and max(self.reader.lag().values(), default=0) <= RECORDS_MAX:
                hub.mark_live(self._clock.now_ns())
        elif hub.ready and not hub.stale and now_s - self._heard_s > self._stale_after_s:
            _log.warning("no update for %.0f s: books are stale", now_s - self._heard_s)
            hub.mark_stale(self._clock.now_ns())
            self._wake()
