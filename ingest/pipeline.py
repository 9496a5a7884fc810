"""One partition of the ticks log in, market updates out: a deterministic function of the log, without clock or I/O.

Sequences. The ``seq`` of an update is the ticks position after its source: Kafka offset + 1 (see `seq_of`). So 0 is no
seq, and ``prev_seq == 0`` says without exception that a chain starts here.

Faults. A record that cannot be used becomes a `DeadLetter` and changes no instrument, with one exception: where the
venue's sequence cannot show the loss (Kraken, Coinbase), an unusable message of a live book would leave it silently
wrong, so that book is GAPPED. One instrument's fault never touches another's.

Recovery. `changed` gives the states since the last call, all as of `position`. A new Pipeline that `restore`s them and
processes the log from any offset not above the lowest of their cuts gives the same outputs, byte for byte, from then
on: each instrument skips the records below its own cut.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ingest.checksum import CHECKSUMS
from ingest.counts import Counts
from ingest.events import ControlEvent, MapError
from ingest.instrument import Instrument, Tick
from ingest.mappers import mapper_for
from ingest.sequence import CHAINS
from ingest.state import export_state, feed_of, restore_state
from protos.messages import InstrumentState, MarketMessage, Reason
from protos.topics import HEADER_CONTENT_TYPE, HEADER_FEED, HEADER_RECEIVED_NS, check_instrument

VALUE_BYTES_MAX = 1_048_576
"""Largest tick that is looked at; Kafka's own default limit."""

HEADER_BYTES_MAX = 64
RECEIVED_DIGITS_MAX = 19
TIME_NS_MAX = 2**63 - 1
"""The year 2262."""
TIME_MS_MAX = TIME_NS_MAX // 1_000_000

_MAY_BE_A_DELTA = ("bad-json", "bad-field", "bad-price", "bad-size", "too-large")
"""Reasons for which a record may have been the book's next message."""


def seq_of(offset: int) -> int:
    """The ``seq`` of updates that come from the tick at a Kafka offset."""
    return offset + 1


class TickRecord(NamedTuple):
    """A record of the ticks topic."""

    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Mapping[str, bytes]


class DeadLetter(NamedTuple):
    """Why a record cannot be used."""

    reason: str  # one word, see `MapError`; and bad-key, bug
    message: str


@dataclass(slots=True)
class Outputs:
    """What one record leads to: nothing, updates, or a dead letter (and then updates only if a book is lost by it)."""

    market: list[tuple[bytes, MarketMessage]] = field(default_factory=list)  # (key, update), in order
    dead: DeadLetter | None = None


class Pipeline:
    """The instruments of one ticks partition."""

    def __init__(self, partition: int, value_bytes_max: int = VALUE_BYTES_MAX) -> None:
        self.partition = partition
        self._counts = Counts()
        self.position = 0
        """Offset of the next record: all below are processed."""
        self._value_bytes_max = value_bytes_max
        self._instruments: dict[str, Instrument] = {}
        self._cuts: dict[str, int] = {}  # ticks below are in the restored state
        self._changed: set[str] = set()
        self._offsets_lost = False

    def process(self, record: TickRecord) -> Outputs:
        """The outputs of the next record. Never raises for what a record holds."""
        outputs, name = Outputs(), ""
        self.position = record.offset + 1
        try:
            name = self._name(record.key)
            if record.offset >= self._cuts.get(name, 0):
                outputs.market = self._updates(name, record)
        except MapError as error:
            outputs.dead = DeadLetter(error.reason, str(error))
            if error.reason in _MAY_BE_A_DELTA and not self._offsets_lost:
                outputs.market = self._mourn(name, record)
        except Exception as bug:  # ours, but a worker that dies of it dies again of the same record
            outputs.dead = DeadLetter("bug", f"{type(bug).__name__}: {bug}")
            outputs.market = self._rebuild(name, record)
        if self._offsets_lost:
            self._lose_others(outputs, record)
        self._counts.updates += len(outputs.market)
        return outputs

    def take_counts(self) -> Counts:
        """What happened since the last call."""
        return self._counts.take()

    def changed(self) -> dict[str, InstrumentState]:
        """The states of instruments that had a record since the last call, as of `position`."""
        names, self._changed = sorted(self._changed), set()
        return {name: export_state(self._instruments[name], self.position) for name in names}

    def all_changed(self) -> None:
        """Let the next `changed` give the states of all instruments."""
        self._changed.update(self._instruments)

    def restore(self, name: str, state: InstrumentState) -> None:
        """Continue an instrument from its state; its records below ``state.ticks_offset`` are skipped.

        Raises:
            CodecError: The state is not one that this version wrote.
        """
        instrument = self._new(feed_of(state))
        restore_state(instrument, state)
        self._instruments[name] = instrument
        self._cuts[name] = state.ticks_offset

    def offsets_lost(self) -> None:
        """Kafka no longer holds the record at `position`: at the next record, wherever it is, all books gap."""
        self._offsets_lost = True
        self._cuts.clear()

    def _updates(self, name: str, record: TickRecord) -> list[tuple[bytes, MarketMessage]]:
        feed = _header(record, HEADER_FEED)
        content_type = _header(record, HEADER_CONTENT_TYPE)
        mapper = mapper_for("canonical" if content_type else feed)  # a venue's feed speaks for itself in our own Tick
        events = mapper.parse(feed, name, self._value(record), content_type)
        tick = Tick(seq_of(record.offset), _timestamp_ms(record), _received_ns(record))
        if not events:
            return []
        known = self._instruments.get(name)
        instrument = known or self._new(feed)
        if known and known.feed != feed:  # another source of the same instrument: nothing connects the two
            instrument = self._new(feed)
            instrument.epoch = known.epoch
            events = [*events, ControlEvent(Reason.FEED_GAP)]
        if known and self._offsets_lost:
            events = [*events, ControlEvent(Reason.OFFSETS_LOST)]
        updates = instrument.process(tick, events)
        self._instruments[name] = instrument
        self._changed.add(name)
        key = name.encode()
        return [(key, update) for update in updates]

    def _mourn(self, name: str, record: TickRecord) -> list[tuple[bytes, MarketMessage]]:
        """A message is lost to its instrument. It matters where no later one will tell."""
        instrument = self._instruments.get(name)
        if (
            instrument is None
            or instrument.feed != _header(record, HEADER_FEED)
            or CHAINS[instrument.sequence.rule].proves_loss
        ):
            return []
        return self._lose(name, instrument, Reason.FEED_GAP, record)

    def _rebuild(self, name: str, record: TickRecord) -> list[tuple[bytes, MarketMessage]]:
        """Whatever half-done state there is goes; what was published ends."""
        known = self._instruments.get(name)
        if known is None:
            return []
        fresh = self._instruments[name] = self._new(known.feed)
        fresh.epoch = known.epoch
        return self._lose(name, fresh, Reason.INVALID_BOOK, record)

    def _lose_others(self, outputs: Outputs, record: TickRecord) -> None:
        self._offsets_lost = False
        told = {key for key, _ in outputs.market}
        for name, instrument in self._instruments.items():
            if name.encode() not in told:
                outputs.market += self._lose(name, instrument, Reason.OFFSETS_LOST, record)

    def _lose(
        self, name: str, instrument: Instrument, reason: Reason, record: TickRecord
    ) -> list[tuple[bytes, MarketMessage]]:
        self._changed.add(name)
        timestamp_ms = _timestamp_ms(record)
        tick = Tick(seq_of(record.offset), timestamp_ms, timestamp_ms * 1_000_000)
        return [(name.encode(), update) for update in instrument.process(tick, [ControlEvent(reason)])]

    def _new(self, feed: str) -> Instrument:
        mapper = mapper_for(feed)
        checksum = CHECKSUMS.get(feed.partition(".")[0])
        return Instrument(feed, mapper.RULES[feed], mapper.TRIM, checksum, self._counts)

    def _name(self, key: bytes | None) -> str:
        try:
            name = (key or b"").decode("ascii")
            return name if name in self._instruments else check_instrument(name)
        except ValueError as error:
            raise MapError("bad-key", f"the key is no instrument: {error}") from None

    def _value(self, record: TickRecord) -> bytes:
        if record.value is None:
            raise MapError("null-value", "the record has no value")
        if len(record.value) > self._value_bytes_max:
            raise MapError("too-large", f"{len(record.value)} bytes are more than {self._value_bytes_max}")
        return record.value


def _header(record: TickRecord, name: str) -> str:
    """Text of a header; "" when absent. Bytes that are not ASCII match nothing."""
    value = record.headers.get(name)
    return value[:HEADER_BYTES_MAX].decode("ascii", "replace") if value else ""


def _received_ns(record: TickRecord) -> int:
    """When the feed received it; the record's own time from producers that do not say."""
    digits = record.headers.get(HEADER_RECEIVED_NS)
    if not digits:
        return _timestamp_ms(record) * 1_000_000
    if not digits.isdigit() or len(digits) > RECEIVED_DIGITS_MAX or int(digits) > TIME_NS_MAX:
        raise MapError("bad-field", f"header received_ns is {digits[:40]!r}, not nanoseconds since 1970")
    return int(digits)


def _timestamp_ms(record: TickRecord) -> int:
    """Kafka's time of the record; 0 where a producer set one that is none."""
    return record.timestamp_ms if 0 <= record.timestamp_ms <= TIME_MS_MAX else 0
