"""One client's queue against a source that is only a counter."""

from protos.codec import CODECS
from protos.messages import Channel, CloseCode, MarketMessage, Notice, NoticeCode, Pong, Scale
from streamer.counters import Counters, count, tally
from streamer.frames import BINARY, TEXT
from streamer.limits import Limits
from streamer.line import PlainLine
from streamer.outbox import Lane, Offer, Outbox, Segment

CODEC = CODECS["depthcast.v1.proto"]
LIMITS = Limits(outbox_soft_bytes=100, outbox_soft_ms=500, outbox_hard_bytes=300, outbox_stall_ms=1_000)
MS = 1_000_000
NOW_NS = 1_700_000_000_000_000_001
EPOCHS = "1700000000000", "1700000000001"
"""As text: each `int` of it is another object, as it is in two messages."""


class Numbers:
    """A source whose updates are 20 bytes each, and whose since() is a Pong with the position asked for."""

    def __init__(self, stream_id: int, channel: Channel) -> None:
        self.id = stream_id
        self.channel = channel
        self.epoch = 1
        self.seq = 0
        self.total = 0
        self.cuts = 0

    def cut(self) -> None:
        self.cuts += 1

    def since(self, epoch: int, seq: int) -> list[MarketMessage | Notice]:
        return [Notice(NoticeCode.RECOVERED, self.id, epoch, seq, self.seq)]

    def scale(self) -> Scale | None:
        return None


class Bench:
    """One outbox and some lanes, offered to as the hub does."""

    def __init__(self, *channels: Channel, skip: bool = False) -> None:
        self.counters = Counters()
        self.line = PlainLine()
        self.outbox = Outbox(CODEC, LIMITS, self.counters, self.line)
        self.sources = [Numbers(i + 1, channel) for i, channel in enumerate(channels)]
        self.lanes = [Lane(source, CODEC, LIMITS, self.counters, self.line.listeners()) for source in self.sources]
        for lane in self.lanes:
            self.outbox.join(lane, 0, 0, skip=skip)
        self.outbox.take(10_000)

    def offer(self, index: int, size: int = 20, epoch: int = 1) -> None:
        source, lane = self.sources[index], self.lanes[index]
        prev_seq = source.seq if epoch == source.epoch else 0
        source.epoch, source.seq = epoch, source.seq + 1
        updates = tally(source.channel, 1)
        self.counters.offered += updates * (len(lane.listeners) + lane.conflating)
        source.total += updates
        lane.listeners.offer(Segment(bytes([index]) * size, lane, epoch, prev_seq, source.seq, updates))

    def notices(self, chunks: list[bytes]) -> list[Notice]:
        messages = [message for chunk in chunks if len(set(chunk)) > 1 for message in CODEC.decode(chunk)]
        return [message for message in messages if isinstance(message, Notice)]


def test_take_fills_a_frame_and_lets_one_large_chunk_through() -> None:
    bench = Bench(Channel.RAW)
    for size in (20, 20, 20, 90, 5):
        bench.offer(0, size)
    assert [len(chunk) for chunk in bench.outbox.take(45)] == [20, 20]
    assert bench.outbox.queued_bytes() == 115
    assert [len(chunk) for chunk in bench.outbox.take(45)] == [20]
    assert [len(chunk) for chunk in bench.outbox.take(45)] == [90]
    assert [len(chunk) for chunk in bench.outbox.take(45)] == [5]
    assert bench.outbox.take(45) == []
    assert count(bench.counters.delivered, Channel.RAW) == 5


def test_a_frame_may_be_full_to_the_byte() -> None:
    bench = Bench(Channel.RAW, Channel.BOOK)
    for _ in range(4):
        bench.offer(0, 20)
    bench.outbox.join(bench.lanes[1], 0, 0, skip=False)
    assert [len(bench.outbox.take(size)) for size in (39, 40, 20)] == [1, 2, 1], "and no catch-up comes beyond"


def test_an_outbox_begins_with_nothing() -> None:
    outbox = Outbox(CODEC, LIMITS, Counters(), PlainLine())
    assert (outbox.first, Outbox(CODECS["depthcast.v1.json"], LIMITS, Counters(), PlainLine()).first) == (BINARY, TEXT)
    lane = Lane(Numbers(1, Channel.BOOK), CODEC, LIMITS, outbox.counters, PlainLine().listeners())
    lane.source.total = tally(Channel.BOOK, 7)
    outbox.join(lane, 0, 0, skip=False)
    assert outbox.queued() == 0, "what it joins to was never its own"
    outbox.reply(Pong(1, 1))
    assert outbox.settle(NOW_NS) is Offer.QUEUED
    assert (outbox.bytes, outbox.settled, outbox.kept) == (outbox.queued_bytes(), 1, 0)


def test_a_part_that_is_taken_leaves_the_account_of_the_rest() -> None:
    bench = Bench(Channel.RAW, Channel.BOOK)
    for _ in range(5):
        bench.offer(0, 25)
    bench.outbox.settle(NOW_NS)
    assert (bench.outbox.bytes, bench.outbox.settled, bench.outbox.kept) == (125, 5, 5)
    bench.offer(1, 10)
    bench.outbox.take(50)
    assert (bench.outbox.bytes, bench.outbox.settled, bench.outbox.kept) == (75, 3, 3)
    bench.offer(1, 50)
    assert bench.outbox.settle(NOW_NS) is Offer.CONFLATED
    assert {segment.lane for segment in bench.outbox.queue.segments()} == {bench.lanes[0], None}


def test_a_part_of_what_may_collapse_collapses_still() -> None:
    bench = Bench(Channel.BOOK)
    for _ in range(3):
        bench.offer(0, 60)
    bench.outbox.take(60)
    assert bench.outbox.settle(NOW_NS) is Offer.CONFLATED
    assert [segment.lane for segment in bench.outbox.queue.segments()] == [None]


def test_a_backlog_below_the_soft_mark_only_waits() -> None:
    bench = Bench(Channel.BOOK)
    bench.offer(0, 100)
    assert bench.outbox.settle(1) is Offer.QUEUED
    assert bench.outbox.bytes == 100
    assert not bench.outbox.slow


def test_book_and_quotes_collapse_to_the_position_the_client_has() -> None:
    bench = Bench(Channel.BOOK, Channel.BBO, Channel.RAW)
    bench.offer(0)
    bench.outbox.take(1_000)
    for _ in range(3):
        for index in range(3):
            bench.offer(index)
    assert bench.outbox.settle(1) is Offer.CONFLATED
    assert {segment.lane for segment in bench.outbox.queue.segments()} == {bench.lanes[2], None}
    first = tally(Channel.BOOK, 1)
    assert bench.outbox.behind == {bench.lanes[0]: (1, 1, first), bench.lanes[1]: (1, 0, 0)}
    bench.offer(0)
    assert bench.counters.conflated == 0, "not before the client gets what covers them"
    assert bench.outbox.queued() == tally(Channel.BOOK, 4) + tally(Channel.BBO, 3) + tally(Channel.RAW, 3)
    taken = bench.outbox.take(1_000)
    assert count(bench.counters.conflated, Channel.BOOK) == 4
    assert count(bench.counters.conflated, Channel.BBO) == 3
    slow, book, quote = bench.notices(taken)
    assert slow.code is NoticeCode.SLOW
    assert (book.stream, book.from_seq, book.to_seq) == (1, 1, 5)
    assert (quote.stream, quote.from_seq, quote.to_seq) == (2, 0, 3)
    assert not bench.outbox.behind
    assert all(lane.conflating == 0 and bench.outbox.queue in lane.listeners for lane in bench.lanes)
    assert bench.sources[0].cuts == 2, "what was published before must not come again"


def test_all_that_a_client_waits_for_is_counted_once() -> None:
    """In its queue, and behind, of the same channel."""
    bench = Bench(Channel.BOOK, Channel.BOOK)
    bench.offer(0)
    bench.offer(0)
    bench.outbox.take(1_000)
    for _ in range(3):
        bench.offer(0, 60)
    bench.outbox.settle(NOW_NS)
    assert bench.outbox.behind == {bench.lanes[0]: (1, 2, tally(Channel.BOOK, 2))}
    bench.offer(1)
    assert bench.outbox.queued() == tally(Channel.BOOK, 4)
    bench.outbox.take(1_000)
    assert bench.counters.conflated == tally(Channel.BOOK, 3)
    assert bench.counters.delivered == tally(Channel.BOOK, 3)


def test_slow_is_told_once_per_episode() -> None:
    bench = Bench(Channel.RAW)
    for _ in range(3):
        bench.offer(0, 60)
        bench.outbox.settle(1)
    assert [notice.code for notice in bench.notices(bench.outbox.take(1_000))] == [NoticeCode.SLOW]
    for _ in range(3):
        bench.offer(0, 60)
        bench.outbox.settle(1)
    assert bench.counters.slow_episodes == 2
    assert (len(bench.outbox.take(60)), bench.outbox.slow) == (1, True), "as long as something is left"


def test_who_is_slow_from_the_beginning_is_told() -> None:
    outbox = Outbox(CODEC, LIMITS, Counters(), PlainLine())
    outbox.push(bytes(LIMITS.outbox_soft_bytes + 1))
    assert (outbox.settle(1), outbox.counters.slow_episodes) == (Offer.CONFLATED, 1)
    assert CODEC.decode(outbox.queue.segments()[1].data) == [Notice(NoticeCode.SLOW)]


def test_catch_ups_come_one_by_one_as_the_socket_has_room() -> None:
    bench = Bench(Channel.BOOK, Channel.BOOK, Channel.BOOK)
    for index in range(3):
        bench.offer(index, 50)
    bench.outbox.settle(1)
    bench.outbox.take(1)
    assert [len(bench.notices(bench.outbox.take(1))) for _ in range(3)] == [1, 1, 1]
    assert bench.outbox.take(1) == []


def test_skipped_trades_are_named_where_they_were() -> None:
    bench = Bench(Channel.TRADES, skip=True)
    for _ in range(3):
        bench.offer(0, 30)
    bench.outbox.push(CODEC.encode(Pong(1, 1)))
    for _ in range(3):
        bench.offer(0, 30)
    assert bench.outbox.settle(1) is Offer.CONFLATED
    notice = bench.outbox.queue.segments()[0]
    (first,) = bench.notices([notice.data])
    assert (first.code, first.epoch, first.from_seq) == (NoticeCode.SKIPPED, 1, 0)
    assert first.to_seq == count(bench.outbox.holes[notice], Channel.TRADES)
    assert bench.outbox.queue.segments()[1].data == CODEC.encode(Pong(1, 1))
    assert bench.outbox.queue.segments()[2].prev_seq == first.to_seq
    bench.offer(0, 30)
    bench.offer(0, 30)
    bench.outbox.settle(2)
    assert bench.outbox.queue.segments()[0] is notice, "the same hole grows"
    (second,) = bench.notices([notice.data])
    assert second.from_seq == 0
    assert second.to_seq == count(bench.outbox.holes[notice], Channel.TRADES) > first.to_seq
    assert bench.outbox.bytes <= LIMITS.outbox_soft_bytes + len(notice.data)
    assert bench.counters.skipped == 0, "not before the client is told"
    bench.outbox.take(len(notice.data))
    assert count(bench.counters.skipped, Channel.TRADES) == second.to_seq
    assert not bench.outbox.holes


def test_no_more_is_skipped_than_needed_and_only_where_it_is_allowed() -> None:
    bench = Bench(Channel.TRADES, Channel.RAW, skip=True)
    bench.outbox.skips.discard(bench.lanes[1])
    bench.offer(1, 30)
    for size in (60, 30, 40):
        bench.offer(0, size, epoch=int(EPOCHS[0]))
    bench.outbox.settle(NOW_NS)
    raw, notice, *kept = bench.outbox.queue.segments()
    assert (len(raw.data), [len(segment.data) for segment in kept[:2]]) == (30, [30, 40])
    assert bench.outbox.holes == {notice: tally(Channel.TRADES, 1)}
    bench.outbox.take(10_000)
    assert bench.counters.skipped == tally(Channel.TRADES, 1), "nothing else that is taken counts as skipped"


def test_one_notice_names_all_that_is_skipped_of_an_epoch() -> None:
    bench = Bench(Channel.TRADES, skip=True)
    for _ in range(5):
        bench.offer(0, 60, epoch=int(EPOCHS[0]))
    bench.outbox.settle(NOW_NS)
    assert list(bench.outbox.holes.values()) == [tally(Channel.TRADES, 4)]


def test_a_hole_does_not_span_epochs() -> None:
    bench = Bench(Channel.TRADES, skip=True)
    bench.offer(0, 60)
    bench.offer(0, 60, epoch=2)
    bench.offer(0, 60, epoch=2)
    bench.outbox.settle(1)
    holes = [(n.epoch, n.from_seq, n.to_seq) for n in bench.notices(bench.outbox.take(1_000)) if n.stream]
    assert holes == [(1, 0, 1), (2, 0, 2)]


def test_trades_that_may_not_be_skipped_wait_for_the_hard_mark() -> None:
    bench = Bench(Channel.TRADES)
    bench.offer(0, 300)
    assert bench.outbox.settle(1) is Offer.CONFLATED
    assert len(bench.outbox.queue) == 2
    bench.offer(0, 1)
    assert bench.outbox.settle(2) is Offer.OVERFLOW


def test_a_queue_that_waits_too_long_collapses_too_if_it_can() -> None:
    bench = Bench(Channel.BOOK, Channel.RAW)
    bench.offer(1)
    assert bench.outbox.settle(1) is Offer.QUEUED
    assert bench.outbox.settle(600 * MS) is Offer.QUEUED, "raw may not"
    assert not bench.outbox.slow
    bench.offer(0)
    assert bench.outbox.settle(601 * MS) is Offer.CONFLATED
    assert set(bench.outbox.behind) == {bench.lanes[0]}


def test_marks_of_time_hold_to_the_nanosecond() -> None:
    bench = Bench(Channel.BOOK)
    bench.offer(0)
    assert bench.outbox.settle(NOW_NS) is Offer.QUEUED
    assert bench.outbox.settle(NOW_NS + 500 * MS - 1) is Offer.QUEUED
    assert bench.outbox.settle(NOW_NS + 500 * MS) is Offer.CONFLATED
    assert not len(bench.lanes[0].listeners)
    assert bench.outbox.settle(NOW_NS + 1_000 * MS - 1) is Offer.CONFLATED
    assert bench.outbox.settle(NOW_NS + 1_000 * MS) is Offer.OVERFLOW
    assert bench.outbox.settle(NOW_NS + 3_000 * MS) is Offer.OVERFLOW, "however late it is judged"


def test_time_without_progress_overflows_and_a_take_is_progress() -> None:
    bench = Bench(Channel.RAW)
    bench.offer(0, 10)
    bench.offer(0, 10)
    assert bench.outbox.settle(5 * MS) is Offer.QUEUED
    assert bench.outbox.settle(1_004 * MS) is Offer.QUEUED
    bench.outbox.take(10)
    assert bench.outbox.settle(1_005 * MS) is Offer.QUEUED
    assert bench.outbox.settle(2_004 * MS) is Offer.QUEUED
    assert bench.outbox.settle(2_005 * MS) is Offer.OVERFLOW


def test_progress_with_what_was_taken_is_progress() -> None:
    bench = Bench(Channel.RAW)
    bench.offer(0, 10)
    assert bench.outbox.settle(5 * MS) is Offer.QUEUED
    bench.outbox.taking_ns = 900 * MS
    assert bench.outbox.settle(1_899 * MS) is Offer.QUEUED
    assert bench.outbox.settle(1_900 * MS) is Offer.OVERFLOW


def test_leaving_takes_what_is_queued_along() -> None:
    bench = Bench(Channel.BOOK, Channel.RAW)
    bench.offer(0)
    bench.offer(1)
    bench.outbox.leave(bench.lanes[0])
    assert [segment.lane for segment in bench.outbox.queue.segments()] == [bench.lanes[1]]
    assert count(bench.counters.skipped, Channel.BOOK) == 1
    assert not len(bench.lanes[0].listeners)
    assert not bench.lanes[0].members
    outbox = bench.outbox
    assert (outbox.bytes, outbox.settled, outbox.kept, outbox.queue.plain) == (0, 0, 0, True)
    assert bench.outbox.settle(NOW_NS) is Offer.QUEUED
    assert bench.outbox.bytes == bench.outbox.queued_bytes()


def test_leaving_takes_the_holes_along() -> None:
    bench = Bench(Channel.TRADES, skip=True)
    for _ in range(4):
        bench.offer(0, 60)
    bench.outbox.settle(NOW_NS)
    assert bench.outbox.holes
    bench.outbox.leave(bench.lanes[0])
    assert bench.counters.skipped == tally(Channel.TRADES, 4)
    assert not bench.outbox.holes


def test_leaving_while_collapsed_ends_the_counting() -> None:
    bench = Bench(Channel.BOOK)
    bench.offer(0, 200)
    bench.outbox.settle(1)
    assert bench.lanes[0].conflating == 1
    bench.outbox.leave(bench.lanes[0])
    assert bench.lanes[0].conflating == 0
    assert not bench.outbox.behind
    assert count(bench.counters.skipped, Channel.BOOK) == 1


def test_what_was_dropped_for_a_client_that_never_reads_again_is_lost() -> None:
    bench = Bench(Channel.BOOK, Channel.TRADES, skip=True)
    for _ in range(5):
        bench.offer(0)
        bench.offer(1, 30)
    bench.outbox.settle(1)
    bench.offer(0)
    assert bench.outbox.holes
    assert bench.outbox.queued() == bench.counters.offered
    bench.outbox.close(CloseCode.SLOW_CONSUMER)
    for lane in bench.lanes:
        bench.outbox.leave(lane)
    assert bench.counters.lost == bench.counters.offered == tally(Channel.BOOK, 6) + tally(Channel.TRADES, 5)
    assert (bench.counters.conflated, bench.counters.skipped) == (0, 0)
    assert bench.lanes[0].conflating == 0


def test_a_closed_outbox_takes_nothing_and_keeps_its_first_code() -> None:
    bench = Bench(Channel.RAW)
    bench.offer(0)
    bench.outbox.queue.socket = 5
    bench.outbox.close(CloseCode.SLOW_CONSUMER)
    bench.outbox.close(CloseCode.NORMAL)
    bench.outbox.reply(Pong(1, 1))
    assert bench.outbox.close_code is CloseCode.SLOW_CONSUMER
    outbox = bench.outbox
    assert (outbox.bytes, outbox.settled, outbox.kept, outbox.queue.plain) == (0, 0, 0, False)
    assert bench.outbox.take(100) == []
    assert count(bench.counters.lost, Channel.RAW) == 1


def test_catch_ups_are_shared_but_not_hoarded() -> None:
    counters, line = Counters(), PlainLine()
    source = Numbers(1, Channel.BOOK)
    lane = Lane(source, CODEC, Limits(catch_ups_cached=2), counters, line.listeners())
    for seq in (0, 0, 1, 0, 2, 3, 3):
        outbox = Outbox(CODEC, LIMITS, counters, line)
        outbox.join(lane, 1, seq, skip=False)
        assert bench_seq(outbox.take(1_000)) == seq
        assert len(lane.cache) <= 2
    assert (counters.catch_ups, counters.catch_ups_encoded) == (7, 4)


def bench_seq(chunks: list[bytes]) -> int:
    (message,) = CODEC.decode(b"".join(chunks))
    assert isinstance(message, Notice)
    return message.from_seq
