"""What a client can listen to, and how its updates become shared segments.

A stream exists while somebody is subscribed to it; its id is never used again. `Stream.publish` encodes an update once
per codec, `Stream.cut` joins what was published since the last cut to one segment per codec and appends it to the queue
of every listener.
"""

from enum import Enum
from typing import NamedTuple

from protos.codec import Codec
from protos.delta import passed_on
from protos.messages import (
    DEPTHS,
    INTERVALS_MS,
    Channel,
    Digest,
    ErrorCode,
    Flag,
    MarketMessage,
    Notice,
    NoticeCode,
    Scale,
    ServerMessage,
)
from streamer.counters import Counters, tally
from streamer.limits import Limits
from streamer.line import Line
from streamer.market import Market
from streamer.outbox import Lane, Segment


class StreamKey(NamedTuple):
    """What a stream is. ``depth`` 0 is the full book, ``interval_ms`` 0 every update."""

    instrument: str
    channel: Channel
    depth: int = 0
    interval_ms: int = 0


def check_key(key: StreamKey) -> tuple[ErrorCode, str] | None:
    """Why there can be no such stream, with what to do; None when there can."""
    if key.channel not in (Channel.BOOK, Channel.BBO, Channel.TRADES, Channel.RAW, Channel.STATUS):
        return ErrorCode.UNKNOWN_CHANNEL, "channel must be book, bbo, trades, raw or status"
    if key.channel is not Channel.BOOK:
        if key.depth:
            return ErrorCode.BAD_DEPTH, "only channel book has a depth; leave it 0"
        if key.interval_ms:
            return ErrorCode.BAD_INTERVAL, "only channel book has an interval; leave it 0"
        return None
    if key.depth not in DEPTHS:
        return ErrorCode.BAD_DEPTH, "depth must be 1, 10, 50, 200 or 0 for the full book"
    if key.interval_ms not in INTERVALS_MS:
        return ErrorCode.BAD_INTERVAL, "interval_ms must be 50, 100, 250, 1000 or 0 for every update"
    return None


class _Digest(Enum):
    """Of this interval."""

    NONE = "none"  # not due yet
    WAITS = "waits"  # for an update
    SENT = "sent"


_NONE, _WAITS, _SENT = _Digest


class Fanout:
    """What one flush works on; shared by the hub and all streams."""

    __slots__ = ("counters", "limits", "line", "now_ns", "stale", "touched")

    def __init__(self, limits: Limits, line: Line) -> None:
        self.limits = limits
        self.line = line
        self.counters = Counters()
        self.touched: list[Stream] = []  # with something published since their last cut
        self.now_ns = 0
        self.stale = False  # the whole source is silent or behind


class Stream:
    """One stream: its position, and its lanes. Subclasses know what brings a client up to the position."""

    __slots__ = (
        "_digest",
        "_epoch",
        "_open",
        "_prev_seq",
        "_updates",
        "channel",
        "epoch",
        "fanout",
        "id",
        "key",
        "lanes",
        "market",
        "seq",
        "total",
    )

    def __init__(self, stream_id: int, key: StreamKey, market: Market, fanout: Fanout) -> None:
        self.id = stream_id
        self.key = key
        self.channel = key.channel
        self.market = market
        self.fanout = fanout
        self.lanes: list[Lane] = []
        self.epoch = 0  # position: of the last update published, or of what a joiner gets; epoch 0: none
        self.seq = 0
        self.total = 0  # tally of all that was cut
        self._open = False  # something was published since the last cut; from (_epoch, _prev_seq) on
        self._epoch = 0
        self._prev_seq = 0
        self._updates = 0
        self._digest = _NONE

    def lane(self, codec: Codec) -> Lane:
        """The lane of a codec, made when it is the first."""
        for lane in self.lanes:
            if lane.codec is codec:
                return lane
        lane = Lane(self, codec, self.fanout.limits, self.fanout.counters, self.fanout.line.listeners())
        self.lanes.append(lane)
        return lane

    def release(self, lane: Lane) -> bool:
        """Drop a lane that lost its last member. True: the stream has no lane left."""
        if not lane.members and lane in self.lanes:
            self.lanes.remove(lane)
        return not self.lanes

    def scale(self) -> Scale | None:
        return self.market.scale

    def flags(self) -> int:
        """Flags that every update of this stream carries now."""
        market = self.market
        return (Flag.GAPPED if market.gapped and self.of_book() else 0) | (
            Flag.STALE if market.stale or self.fanout.stale else 0
        )

    def of_book(self) -> bool:
        """Whether a gap in the book is a gap in this stream."""
        return self.channel in (Channel.BOOK, Channel.RAW)

    def publish(self, message: MarketMessage) -> None:
        """Move to the position of ``message`` and queue it for the listeners at the next cut."""
        if self._open and message.epoch != self._epoch:
            self.cut()
        self._move(message.epoch, message.seq, message.prev_seq)
        message.stream = self.id
        message.ts_published_ns = self.fanout.now_ns
        self._encode(message)
        if self._digest is _WAITS:
            self._announce_digest()

    def _move(self, epoch: int, seq: int, prev_seq: int) -> None:
        if not self._open:
            self._start(epoch, prev_seq)
        self.epoch = epoch
        self.seq = seq
        self._updates += 1

    def advance(self, record: bytes, prev_seq: int, flags: int) -> None:
        """`publish` the delta that the market has advanced by."""
        book = self.market.book
        self._move(book.epoch, book.seq, prev_seq)
        flags |= self.flags()
        now_ns = self.fanout.now_ns
        for lane in self.lanes:
            if lane.cache:
                lane.cache.clear()
            if lane.listeners:
                lane.chunks.append(passed_on(record, self.id, flags, now_ns, lane.codec, self.market.scale))
        if self._digest is _WAITS:
            self._announce_digest()

    def visit_digest(self) -> None:
        """Called twice per interval: a digest goes out with the first update after one visit, or alone at the next.

        All streams that began together are due together, and a digest of its own is a send to every listener.
        """
        if self._digest is _WAITS:
            self._announce_digest()
            self._digest = _NONE
        else:
            self._digest = _WAITS if self._digest is _NONE else _NONE

    def _announce_digest(self) -> None:
        self._digest = _SENT
        if self.epoch == 0 or self.market.gapped or not any(lane.listeners for lane in self.lanes):
            return
        crc = self.digest()
        if crc is not None:
            self.announce(Digest(self.id, self.epoch, self.seq, crc))
            self.fanout.counters.digests += 1

    def announce(self, message: Notice | Digest) -> None:
        """Queue a message that moves no position, in its place among the updates."""
        if not self._open:
            self._start(self.epoch, self.seq)
        self._encode(message)

    def _start(self, epoch: int, prev_seq: int) -> None:
        self._open = True
        self._epoch = epoch
        self._prev_seq = prev_seq
        self._updates = 0
        self.fanout.touched.append(self)

    def _encode(self, message: ServerMessage) -> None:
        scale = self.market.scale
        for lane in self.lanes:
            if lane.cache:
                lane.cache.clear()
            if lane.listeners:
                lane.chunks.append(lane.codec.encode(message, scale))

    def cut(self) -> None:
        """Offer what was published since the last cut to every listener, as one segment per lane."""
        if not self._open:
            return
        self._open = False
        counters = self.fanout.counters
        updates = tally(self.channel, self._updates)
        self.total += updates
        for lane in self.lanes:
            listeners = lane.listeners
            counters.offered += updates * (len(listeners) + lane.conflating)
            chunks = lane.chunks
            if listeners and chunks:
                data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
                listeners.offer(Segment(data, lane, self._epoch, self._prev_seq, self.seq, updates))
            chunks.clear()

    def health(self) -> NoticeCode:
        """GAP before STALE: a book that lost its chain is wrong, a stale one only old. RECOVERED: live."""
        flags = self.flags()
        if flags & Flag.GAPPED:
            return NoticeCode.GAP
        return NoticeCode.STALE if flags & Flag.STALE else NoticeCode.RECOVERED

    def notice(self) -> Notice:
        """The health of this stream, at its position."""
        return Notice(self.health(), self.id, self.epoch, self.seq, self.seq, reason=self.market.reason)

    def since(self, epoch: int, seq: int) -> list[MarketMessage | Notice]:
        """What brings a client from that position to this stream's: one merged delta or, when that cannot be proven,
        the snapshot, CONFLATED both; at the same position a notice of the state, because that may be news."""
        if self.epoch == 0:
            return []
        if seq and (epoch, seq) == (self.epoch, self.seq):
            return [self.notice()]
        messages = self.catch_up(epoch, seq) if seq else None
        if messages is None:
            messages = self.snapshot()
            if seq and self.channel is not Channel.TRADES:
                for message in messages:
                    message.flags |= Flag.CONFLATED
        for message in messages:
            message.stream = self.id
            message.ts_published_ns = self.fanout.now_ns
        return list(messages)

    def can_resume(self, epoch: int, seq: int) -> bool:
        """Whether `since` has better than the snapshot for that position now."""
        return seq != 0 and self.epoch != 0 and ((epoch, seq) == (self.epoch, self.seq) or self.proves(epoch, seq))

    def proves(self, epoch: int, seq: int) -> bool:
        """Whether `catch_up` succeeds."""
        raise NotImplementedError

    def catch_up(self, epoch: int, seq: int) -> "list[MarketMessage] | None":
        """Updates from that position to this stream's; None when they cannot be proven."""
        raise NotImplementedError

    def snapshot(self) -> list[MarketMessage]:
        """All of the state at the stream's position, as the start of a chain."""
        raise NotImplementedError

    def digest(self) -> int | None:
        """CRC-32 of what the client must hold at the stream's position; None for streams without a book."""
        return None


def announce_changes(before: list[tuple[Stream, NoticeCode]]) -> None:
    """Tell the listeners of each stream whose health is another than before."""
    for stream, health in before:
        if stream.epoch and stream.health() is not health:
            stream.announce(stream.notice())
