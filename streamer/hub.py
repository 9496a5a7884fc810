"""Who listens to what: market updates in, segments in outboxes out.

The shell's loop, and the order that makes it right::

    hub.apply(instrument, message, now_ns)   # for each record read; publishes on streams that have subscribers
    hub.advance(instrument, record, now_ns)  # or this, for less, if it can
    hub.tick(now_ns)                         # interval tiers and digests that are due
    queues = hub.flush(now_ns, 128)          # who waits longest; again while there are more `waiting`
    # those with a socket and a plain queue may be written to in one call, and taken from the list
    for queue in queues:
        outbox = queue.owner
        if outbox.close_code is not None: close the connection with it, then hub.detach(outbox)
        elif the socket is writable:      write hub.payload(outbox, bytes_max), until it is empty

Nothing here waits, and the cost of an update does not depend on the number of its listeners until `flush`, where it is
one list append each per stream, however many updates the stream had.
"""

from collections import deque

from protos.book import Book
from protos.codec import Codec
from protos.messages import (
    Channel,
    CloseCode,
    InstrumentState,
    MarketMessage,
    Reason,
    Resume,
    ServerMessage,
    SlowPolicy,
    StatusUpdate,
    Subscribed,
    Trade,
    Unsubscribed,
)
from streamer.counters import Counters
from streamer.instrument import Instrument
from streamer.limits import Limits
from streamer.line import Line, PlainLine, Queue
from streamer.outbox import MS, Offer, Outbox
from streamer.streams import Fanout, Stream, StreamKey, announce_changes
from streamer.tiers import TierStream

_SWEEP_MS = 100
"""How often a backlog is judged when nothing new was offered to it: often enough for outbox_stall_ms."""

_TIERS_MAX = 16
"""Tiers moved by one call of `tick`: for 0.4 to 1.3 ms, compiled, the event loop waits."""


class Hub:
    """All instruments, streams and outboxes of one process. ``ready`` is the shell's: caught up with Kafka."""

    __slots__ = (
        "_backlog",
        "_digests",
        "_fanout",
        "_flushed",
        "_instruments",
        "_streams",
        "_streams_made",
        "_sweep_ns",
        "_ticking",
        "_tiers",
        "_tiers_due",
        "counters",
        "limits",
        "outboxes",
        "ready",
    )

    def __init__(self, limits: Limits, line: Line | None = None) -> None:
        self.limits = limits
        self.ready = False
        self.outboxes: set[Outbox] = set()
        self._fanout = Fanout(limits, line if line is not None else PlainLine())
        self.counters: Counters = self._fanout.counters
        self._instruments: dict[str, Instrument] = {}
        self._streams: dict[int, Stream] = {}
        self._streams_made = 0
        self._tiers: dict[int, dict[TierStream, None]] = {}  # by interval_ms
        self._tiers_due: dict[int, int] = {}  # interval_ms -> ns
        self._ticking: deque[TierStream] = deque()  # due, and not moved yet
        self._digests: deque[tuple[int, Stream]] = deque()  # next visit in ns, ascending because all wait equally long
        self._flushed: list[Queue] = []  # returned by the last flush, as far as the shell left them there
        self._backlog: set[Outbox] = set()  # had something left when the next flush began
        self._sweep_ns = 0

    # ---- the market

    def apply(self, instrument: str, message: MarketMessage, now_ns: int) -> bool:
        """Apply one record of the market topic. The message is the hub's from now on.

        Returns:
            False when it was dropped as a duplicate by (epoch, seq), or belongs to an epoch that is over.
        """
        self._fanout.now_ns = now_ns
        return self._instrument(instrument).apply(message)

    def advance(self, instrument: str, record: bytes, now_ns: int) -> int:
        """`apply` a record of the market topic without decoding it, if it is a delta that continues a book.

        Returns:
            Its ts_received_ns; -1: it is something else, nothing has happened, and `apply` takes its message.
        """
        known = self._instruments.get(instrument)
        self._fanout.now_ns = now_ns
        return known.market.ts_received_ns if known is not None and known.advance(record) else -1

    def load(self, instrument: str, state: InstrumentState) -> None:
        """Adopt a record of the snapshots topic, as far as it is newer than what was applied."""
        self._instrument(instrument).load(state)

    def gap(self, instrument: str, reason: Reason, now_ns: int) -> None:
        """Records of it were lost: not live until the next snapshot. Nothing happens to one that is not known."""
        self._fanout.now_ns = now_ns
        known = self._instruments.get(instrument)
        if known is not None:
            known.gap(reason)

    def _instrument(self, name: str) -> Instrument:
        known = self._instruments.get(name)
        if known is None:
            known = self._instruments[name] = Instrument(name, self._fanout)
        return known

    def mark_stale(self, now_ns: int) -> None:
        """Kafka is gone, or read too late: everything is flagged STALE until `mark_live`."""
        self._mark(now_ns, stale=True)

    def mark_live(self, now_ns: int) -> None:
        self._mark(now_ns, stale=False)

    def _mark(self, now_ns: int, *, stale: bool) -> None:
        if self._fanout.stale is stale:
            return
        self._fanout.now_ns = now_ns
        before = [(stream, stream.health()) for stream in self._streams.values()]
        self._fanout.stale = stale
        announce_changes(before)

    # ---- clients

    def attach(self, codec: Codec) -> Outbox:
        """The outbox of a new client."""
        outbox = Outbox(codec, self.limits, self.counters, self._fanout.line)
        self.outboxes.add(outbox)
        return outbox

    def detach(self, outbox: Outbox) -> None:
        """The client is gone; what was queued is counted as lost. Harmless when repeated."""
        self._abandon(outbox, CloseCode.NORMAL)
        self.outboxes.discard(outbox)
        self._backlog.discard(outbox)
        self._fanout.line.leave(outbox.queue)
        outbox.queue.owner = None  # or both would wait for the collector

    def _abandon(self, outbox: Outbox, code: CloseCode) -> None:
        outbox.close(code)
        for lane in list(outbox.lanes.values()):
            self._leave(outbox, lane.source.id)

    def find(self, key: StreamKey) -> Stream | None:
        """The stream of a key, when it has subscribers."""
        known = self._instruments.get(key.instrument)
        return known.streams.get(key) if known is not None else None

    def subscribe(
        self,
        outbox: Outbox,
        key: StreamKey,
        resume: Resume | None,
        slow_policy: SlowPolicy,
        now_ns: int,
        command_id: int = 0,
    ) -> Stream:
        """Queue the Subscribed reply; the snapshot, or what `resume` lacks, follows it in-band at the next take.

        Subscribing again to the same key is how a client asks for a new snapshot. The caller has checked the key
        (`Session` does): an instrument that is not known yet is made, and waits for its first record.
        """
        self._fanout.now_ns = now_ns
        instrument = self._instrument(key.instrument)
        stream = instrument.streams.get(key)
        if stream is not None and stream.id in outbox.lanes:
            outbox.leave(outbox.lanes[stream.id])
        if stream is None:
            stream = self._open(instrument, key, now_ns)
        position = resume if resume is not None else Resume(0, 0)
        resumed = stream.can_resume(position.epoch, position.seq)
        outbox.reply(
            Subscribed(
                id=command_id,
                stream=stream.id,
                instrument=key.instrument,
                channel=key.channel,
                depth=key.depth,
                interval_ms=key.interval_ms,
                epoch=stream.epoch,
                seq=stream.seq,
                scale=stream.scale(),
                resumed=resumed,
                state=instrument.state(),
            )
        )
        skip = slow_policy is SlowPolicy.SKIP and key.channel is Channel.TRADES  # a book with a hole is no book
        outbox.join(stream.lane(outbox.codec), position.epoch, position.seq, skip=skip)
        if resume is not None:
            if resumed:
                self.counters.resumes_delta += 1
            else:
                self.counters.resumes_snapshot += 1
        return stream

    def _open(self, instrument: Instrument, key: StreamKey, now_ns: int) -> Stream:
        self._streams_made += 1
        stream = instrument.open(self._streams_made, key)
        self._streams[stream.id] = stream
        if isinstance(stream, TierStream) and key.interval_ms:
            self._tiers.setdefault(key.interval_ms, {})[stream] = None
            self._tiers_due.setdefault(key.interval_ms, now_ns)
        if stream.digest() is not None:
            self._digests.append((now_ns + self.limits.digest_interval_ms * MS // 2, stream))
        return stream

    def unsubscribe(self, outbox: Outbox, stream_id: int, command_id: int = 0) -> bool:
        """Stop, and queue the Unsubscribed reply. False: there is no such subscription."""
        if stream_id not in outbox.lanes:
            return False
        self._leave(outbox, stream_id)
        outbox.reply(Unsubscribed(command_id, stream_id))
        return True

    def subscriptions(self, outbox: Outbox) -> list[tuple[StreamKey, SlowPolicy]]:
        """What a client listens to."""
        skips = outbox.skips
        return [
            (self._streams[stream_id].key, SlowPolicy.SKIP if lane in skips else SlowPolicy.CLOSE)
            for stream_id, lane in outbox.lanes.items()
        ]

    def _leave(self, outbox: Outbox, stream_id: int) -> None:
        lane = outbox.lanes[stream_id]
        outbox.leave(lane)
        stream = self._streams[stream_id]
        if stream.release(lane):
            del self._streams[stream_id]
            self._instruments[stream.key.instrument].close(stream)
            if isinstance(stream, TierStream) and stream.key.interval_ms:
                del self._tiers[stream.key.interval_ms][stream]

    def broadcast(self, message: ServerMessage) -> None:
        """Queue a message about the connection for every client, encoded once per codec."""
        chunks: dict[str, bytes] = {}
        for outbox in self.outboxes:
            codec = outbox.codec
            if codec.name not in chunks:
                chunks[codec.name] = codec.encode(message, None)
            outbox.push(chunks[codec.name])

    # ---- time

    @property
    def due_ns(self) -> int:
        """When `tick` has something to do; a shell that is idle may sleep until then. 2**63 - 1: never."""
        if self._ticking:
            return 0
        due = [self._tiers_due[interval] for interval, streams in self._tiers.items() if streams]
        if self._digests:
            due.append(self._digests[0][0])
        return min(due, default=(1 << 63) - 1)

    def tick(self, now_ns: int) -> None:
        """Move interval tiers that are due, `_TIERS_MAX` at most: when there are more, `due_ns` stays in the past.

        All of an interval are offered together, when the last has moved: fewer sends than spreading them.
        """
        self._fanout.now_ns = now_ns
        ticking = self._ticking
        if not ticking:
            for interval_ms, streams in self._tiers.items():
                if streams and now_ns >= self._tiers_due[interval_ms]:
                    interval_ns = interval_ms * MS
                    self._tiers_due[interval_ms] = now_ns - now_ns % interval_ns + interval_ns
                    ticking.extend(streams)
        for _ in range(min(len(ticking), _TIERS_MAX)):
            tier = ticking.popleft()
            if tier.id in self._streams:
                tier.on_tick()
        digests, half_ns = self._digests, self.limits.digest_interval_ms * MS // 2
        while digests and digests[0][0] <= now_ns:
            due_ns, stream = digests.popleft()
            if stream.id in self._streams:
                digests.append((max(due_ns, now_ns - half_ns) + half_ns, stream))
                stream.visit_digest()

    @property
    def waiting(self) -> int:
        """Queues with something new to take, which `flush` has not returned yet."""
        return len(self._fanout.line)

    @property
    def backlog(self) -> bool:
        """Whether somebody may not have taken what `flush` brought: it is judged at the next."""
        return bool(self._flushed or self._backlog)

    def flush(self, now_ns: int, queues_max: int | None = None) -> list[Queue]:
        """Offer what was published to every listener, and judge who did not take what `flush` brought before.

        While `tick` has more tiers to move, nothing is offered yet.

        Args:
            queues_max: Of those with something new; None: all. The others keep their place in the line, and get what
                is published until it is their turn with the rest.

        Returns:
            Of those with something new to take, who waits longest first; and of those that were closed now
            (`close_code` is set). Who left something is returned again when there is more: the shell knows when its
            socket has room. Whom it wrote everything it may take out of the list: that one has no backlog.
        """
        fanout = self._fanout
        fanout.now_ns = now_ns
        backlog = self._backlog
        for queue in self._flushed:
            if queue.owner is not None:
                backlog.add(queue.owner)
        if backlog:
            backlog.intersection_update([outbox for outbox in backlog if len(outbox.queue) or outbox.behind])
        if not self._ticking:
            for stream in fanout.touched:
                stream.cut()
            fanout.touched.clear()
        flushed = self._flushed = fanout.line.take(queues_max)
        if backlog:
            self._settle(flushed, now_ns)
        return flushed

    def _settle(self, flushed: list[Queue], now_ns: int) -> None:
        backlog = self._backlog
        judged = [outbox for queue in flushed if (outbox := queue.owner) is not None and outbox in backlog]
        if now_ns - self._sweep_ns >= _SWEEP_MS * MS:
            self._sweep_ns = now_ns
            judged = list(backlog)
        here = set(flushed)
        for outbox in judged:
            if outbox.close_code is None and outbox.settle(now_ns) is Offer.OVERFLOW:
                self.counters.overflows += 1
                self._abandon(outbox, CloseCode.SLOW_CONSUMER)
                if outbox.queue not in here:
                    flushed.append(outbox.queue)

    def payload(self, outbox: Outbox, bytes_max: int) -> bytes:
        """`Outbox.take`, joined; b"" when there is nothing to send."""
        return b"".join(outbox.take(bytes_max))

    # ---- for HTTP and metrics

    def instruments(self) -> list[str]:
        """All known, sorted."""
        return sorted(self._instruments)

    def knows(self, instrument: str) -> bool:
        return instrument in self._instruments

    def book(self, instrument: str) -> Book | None:
        """The book as applied; None when the instrument is unknown or had no snapshot yet. Not to be changed."""
        known = self._instruments.get(instrument)
        return known.market.book if known is not None and known.market.book.epoch else None

    def last_trades(self, instrument: str) -> list[Trade]:
        """Oldest first, in the scale of `book`; [] when there are none."""
        known = self._instruments.get(instrument)
        return known.market.last_trades(self.limits.trades_kept) if known is not None else []

    def status(self, instrument: str) -> StatusUpdate | None:
        """State and reason as of now; None when the instrument is unknown."""
        known = self._instruments.get(instrument)
        return known.status() if known is not None else None

    def streams(self) -> list[Stream]:
        """All with subscribers."""
        return list(self._streams.values())

    def queued(self) -> int:
        """`Outbox.queued` of all. The event loop waits for it, so who has nothing costs little."""
        return sum([outbox.queued() for outbox in self.outboxes if len(outbox.queue) or outbox.behind])

    def queued_bytes(self) -> int:
        return sum([outbox.queued_bytes() for outbox in self.outboxes if len(outbox.queue)])

    @property
    def stale(self) -> bool:
        return self._fanout.stale
