"""One client's bounded queue of shared segments, and what becomes of a client that reads too slowly.

A flush appends one segment per touched stream to the queue of each listener (`streamer.line`): no counting, because
that append is the only work done per delivery. The shell takes what the socket can hold. Whatever is still queued at
the next flush is a backlog, and `Outbox.settle` judges it:

- Over the soft mark, in bytes or in time without a take, `book` and `bbo` *collapse*: their queued segments are dropped
  and the stream is remembered as behind the position that the client has, which is the ``prev_seq`` of the first
  dropped segment. It leaves the list of listeners, costs nothing while the client does not read, and joins again with
  one `since()` message when it does.
- `trades` with SlowPolicy.SKIP lose their oldest segments, with a SKIPPED notice in their place.
- Everything else waits for the hard mark, in bytes or in time without progress: OVERFLOW, and the connection closes
  with 4008. The client resumes by (epoch, seq).

Joining and resuming take the same way: a new subscription is behind a position, or behind nothing. So no snapshot is
ever queued, and a client that joins a thousand full books gets each when its socket has room for it.

An update is counted once, when its fate is known: conflated when the since() message that covers it is taken, skipped
when the notice that names it is. Whatever still waits for either when the connection closes is lost with it.
"""

from enum import IntEnum
from typing import Protocol

from protos.codec import Codec
from protos.messages import Channel, CloseCode, MarketMessage, Notice, NoticeCode, Scale, ServerMessage
from streamer.counters import Counters
from streamer.frames import BINARY, TEXT
from streamer.limits import Limits
from streamer.line import Line, Listeners, Queue

MS = 1_000_000
"""Nanoseconds in a millisecond."""


class Offer(IntEnum):
    """What became of the segments offered to an outbox."""

    QUEUED = 0
    CONFLATED = 1
    OVERFLOW = 2


class Source(Protocol):
    """The stream behind a lane: what an outbox needs to know of it."""

    id: int
    channel: Channel
    epoch: int
    seq: int
    total: int
    """Tally of what was cut since the stream began."""

    def cut(self) -> None:
        """Offer what was published since the last cut, so that who joins now does not get it twice."""
        ...

    def since(self, epoch: int, seq: int) -> list[MarketMessage | Notice]:
        """What brings a client from that position to the stream's; from seq 0, the snapshot."""
        ...

    def scale(self) -> Scale | None: ...


class Segment:
    """Encoded chunks of one lane, from after ``prev_seq`` up to ``seq`` of one epoch. Shared by all listeners."""

    __slots__ = ("data", "epoch", "lane", "prev_seq", "seq", "tally")

    def __init__(self, data: bytes, lane: "Lane | None", epoch: int, prev_seq: int, seq: int, tally: int) -> None:
        self.data = data
        self.lane = lane  # None: a reply, or a notice about the connection
        self.epoch = epoch
        self.prev_seq = prev_seq  # 0: it starts the chain
        self.seq = seq
        self.tally = tally


class Lane:
    """One stream in one codec: who listens, who is behind, and what they share."""

    __slots__ = (
        "cache",
        "cached_max",
        "chunks",
        "codec",
        "conflatable",
        "conflating",
        "counters",
        "listeners",
        "members",
        "source",
    )

    def __init__(self, source: Source, codec: Codec, limits: Limits, counters: Counters, listeners: Listeners) -> None:
        self.source = source
        self.codec = codec
        self.counters = counters
        self.conflatable = source.channel in (Channel.BOOK, Channel.BBO)
        self.chunks: list[bytes] = []
        self.listeners = listeners
        self.members: set[Outbox] = set()
        self.conflating = 0  # members that collapsed and did not catch up yet
        self.cache: dict[tuple[int, int], bytes] = {}  # since() as of this position of the stream
        self.cached_max = limits.catch_ups_cached

    def catch_up(self, outbox: "Outbox", epoch: int, seq: int) -> bytes:
        """Make ``outbox`` a listener from the stream's position on. All that was published is cut.

        Returns:
            The chunks that bring it there from (epoch, seq); b"" when there is nothing to say.
        """
        self.listeners.add(outbox.queue)
        data = self.cache.get((epoch, seq))
        if data is None:
            scale = self.source.scale()
            encode = self.codec.encode
            data = b"".join([encode(message, scale) for message in self.source.since(epoch, seq)])
            if len(self.cache) >= self.cached_max:
                self.cache.clear()
            self.cache[epoch, seq] = data
            self.counters.catch_ups_encoded += 1
        self.counters.catch_ups += 1
        return data


class Outbox:
    """One client's queue. `take` is called by the shell when the socket has room; the rest by the hub."""

    __slots__ = (
        "behind",
        "bytes",
        "close_code",
        "codec",
        "counters",
        "first",
        "holes",
        "kept",
        "lanes",
        "limits",
        "queue",
        "settled",
        "skips",
        "slow",
        "stalled_ns",
        "taking_ns",
    )

    def __init__(self, codec: Codec, limits: Limits, counters: Counters, line: Line) -> None:
        self.codec = codec
        self.limits = limits
        self.counters = counters
        self.first = BINARY if codec.binary else TEXT  # byte of each frame
        self.queue: Queue = line.queue(self, self.first)
        self.lanes: dict[int, Lane] = {}  # by stream id
        self.skips: set[Lane] = set()  # subscribed with SlowPolicy.SKIP
        self.behind: dict[Lane, tuple[int, int, int]] = {}  # epoch, seq the client has; the stream's total there, or -1
        self.holes: dict[Segment, int] = {}  # SKIPPED notices of this queue, with the tally of what they name
        self.close_code: CloseCode | None = None
        self.slow = False
        self.bytes = 0  # of the first `settled` segments
        self.settled = 0
        self.kept = 0  # leading segments that cannot collapse
        self.stalled_ns = 0  # when the backlog was first seen without a take since; 0: not seen
        self.taking_ns = 0  # the shell's: when the client last made progress with what was taken

    def push(self, chunk: bytes) -> None:
        """Queue a chunk that belongs to no stream, in order with what is queued. Nothing once the outbox is closed."""
        if self.close_code is None:
            self.queue.append(Segment(chunk, None, 0, 0, 0, 0))

    def reply(self, message: ServerMessage) -> None:
        """`push` a message about no price, or one that carries its scale."""
        self.push(self.codec.encode(message, None))

    def take(self, bytes_max: int) -> list[bytes]:
        """Chunks for one frame: what is queued, then catch-up messages of streams that are behind.

        Args:
            bytes_max: Of the frame. A first chunk or a catch-up that is larger comes whole.
        """
        queue = self.queue
        segments = queue.segments()
        chunks: list[bytes] = []
        size = 0
        tally = 0
        for segment in segments:  # one plain loop: half the time of two comprehensions and two sums
            data = segment.data
            size += len(data)
            if size > bytes_max and chunks:
                break
            chunks.append(data)
            tally += segment.tally
        self.counters.delivered += tally
        if self.holes:
            self.counters.skipped += sum([self.holes.pop(segment, 0) for segment in segments[: len(chunks)]])
        if len(chunks) == len(segments):
            queue.replace([])
            self.bytes = self.settled = self.kept = self.stalled_ns = 0
        else:
            self._forget_first(segments, len(chunks))
        while self.behind and not queue and size < bytes_max:
            data = self._rejoin(next(iter(self.behind)))
            if data:
                chunks.append(data)
                size += len(data)
        if not queue and not self.behind:
            self.slow = False
            queue.plain = self.close_code is None
        return chunks

    def _forget_first(self, segments: list[Segment], taken: int) -> None:
        settled = min(taken, self.settled)
        for segment in segments[:settled]:
            self.bytes -= len(segment.data)
        self.settled -= settled
        self.kept = max(0, self.kept - taken)
        self.stalled_ns = 0
        self.queue.replace(segments[taken:])

    def _rejoin(self, lane: Lane) -> bytes:
        lane.source.cut()  # what was published before must not come again
        epoch, seq, _ = self.behind[lane]
        self.counters.conflated += self._forget_behind(lane)
        return lane.catch_up(self, epoch, seq)

    def _forget_behind(self, lane: Lane) -> int:
        """No longer behind; returns the tally of what a since() message would have covered. 0 for who only joined."""
        _, _, total = self.behind.pop(lane)
        if total < 0:
            return 0
        lane.conflating -= 1
        return lane.source.total - total

    def settle(self, now_ns: int) -> Offer:
        """Judge a backlog: what one flush queued and the client had not taken by the next."""
        self.queue.plain = False
        if self.stalled_ns == 0:
            self.stalled_ns = now_ns
        limits = self.limits
        segments = self.queue.segments()
        for segment in segments[self.settled :]:
            self.bytes += len(segment.data)
        self.settled = len(segments)
        if now_ns - max(self.stalled_ns, self.taking_ns) >= limits.outbox_stall_ms * MS:
            return Offer.OVERFLOW
        few = self.bytes <= limits.outbox_soft_bytes
        if few and now_ns - self.stalled_ns < limits.outbox_soft_ms * MS:
            return Offer.QUEUED
        self._collapse()
        if few and not self.behind:
            return Offer.QUEUED
        if self.skips and self.bytes > limits.outbox_soft_bytes:
            self._skip()
        if self.bytes > limits.outbox_hard_bytes:
            return Offer.OVERFLOW
        if not self.slow:
            self.slow = True
            self.counters.slow_episodes += 1
            self.reply(Notice(NoticeCode.SLOW))
        return Offer.CONFLATED

    def _collapse(self) -> None:
        """Drop what a since() message can replace."""
        segments = self.queue.segments()
        keep = segments[: self.kept]
        dropped: dict[Lane, int] = {}
        for segment in segments[self.kept :]:
            lane = segment.lane
            if lane is None or not lane.conflatable:
                keep.append(segment)
                continue
            if lane not in dropped:
                self.behind[lane] = (segment.epoch, segment.prev_seq, lane.source.total)
                lane.conflating += 1
                lane.listeners.discard(self.queue)
            dropped[lane] = dropped.get(lane, 0) + segment.tally
            self.bytes -= len(segment.data)
        for lane, tally in dropped.items():
            epoch, seq, total = self.behind[lane]
            self.behind[lane] = (epoch, seq, total - tally)
        self.queue.replace(keep)
        self.kept = self.settled = len(keep)

    def _skip(self) -> None:
        """Drop the oldest trades until the queue is below the soft mark, and say so where they were."""
        keep: list[Segment] = []
        notices: dict[Lane, Segment] = {}
        changed: dict[Segment, Lane] = {}
        for segment in self.queue.segments():
            lane = segment.lane
            if lane is None or lane not in self.skips:
                keep.append(segment)
                continue
            if segment in self.holes:
                notices[lane] = segment
                keep.append(segment)
                continue
            if self.bytes <= self.limits.outbox_soft_bytes:
                keep.append(segment)
                continue
            self.bytes -= len(segment.data)
            notice = notices.get(lane)
            if notice is None or notice.epoch != segment.epoch:
                notice = Segment(b"", lane, segment.epoch, segment.prev_seq, segment.seq, 0)
                self.holes[notice] = 0
                notices[lane] = notice
                keep.append(notice)
            self.holes[notice] += segment.tally
            notice.seq = segment.seq
            changed[notice] = lane
        for notice, lane in changed.items():
            self._announce_skipped(notice, lane)
        self.queue.replace(keep)
        self.kept = self.settled = len(keep)

    def _announce_skipped(self, notice: Segment, lane: Lane) -> None:
        message = Notice(NoticeCode.SKIPPED, lane.source.id, notice.epoch, notice.prev_seq, notice.seq)
        self.bytes -= len(notice.data)
        notice.data = self.codec.encode(message, None)
        self.bytes += len(notice.data)

    def join(self, lane: Lane, epoch: int, seq: int, *, skip: bool) -> None:
        """Subscribe: behind the position that the client has (seq 0: none), until the next take."""
        self.queue.plain = False
        self.queue.stand()
        self.lanes[lane.source.id] = lane
        lane.members.add(self)
        self.behind[lane] = (epoch, seq, -1)
        if skip:
            self.skips.add(lane)

    def leave(self, lane: Lane) -> None:
        """Unsubscribe. What waits of it goes too, so that a later join cannot be mixed up with it: skipped, and the
        reply says so."""
        del self.lanes[lane.source.id]
        lane.members.discard(self)
        lane.listeners.discard(self.queue)
        self.skips.discard(lane)
        skipped = self._forget_behind(lane) if lane in self.behind else 0
        segments = self.queue.segments()
        mine = [segment for segment in segments if segment.lane is lane]
        if mine:
            skipped += sum([segment.tally + self.holes.pop(segment, 0) for segment in mine])
            self.queue.replace([segment for segment in segments if segment.lane is not lane])
            self.bytes = self.settled = self.kept = 0
        self.counters.skipped += skipped

    def close(self, code: CloseCode | None) -> None:
        """Forget all that waits, counted as lost. Nothing is accepted afterwards. The first code stays."""
        self.counters.lost += self.queued()
        for lane in list(self.behind):
            self._forget_behind(lane)
        self.queue.replace([])
        self.queue.plain = False
        self.holes.clear()
        self.bytes = self.settled = self.kept = 0
        if self.close_code is None:
            self.close_code = code

    def queued(self) -> int:
        """Tally of the updates that wait, as they are or for what stands in their place."""
        behind = [lane.source.total - total for lane, (_, _, total) in self.behind.items() if total >= 0]
        return sum([segment.tally for segment in self.queue.segments()]) + sum(self.holes.values()) + sum(behind)

    def queued_bytes(self) -> int:
        return sum([len(segment.data) for segment in self.queue.segments()])
