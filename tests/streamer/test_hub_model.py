"""The hub under random markets, clients and sockets: every client checks every message, and the accounting closes."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from protos.codec import CODECS
from protos.messages import DEPTHS, INTERVALS_MS, BookState, Channel, Flag, MarketMessage, Reason, Resume, SlowPolicy
from protos.records import encode_market
from streamer.counters import by_channel, count
from streamer.hub import Hub
from streamer.limits import Limits
from streamer.line import Line, Queue
from streamer.outbox import Outbox
from streamer.streams import StreamKey
from tests.support.lines import KINDS, lines
from tests.support.shortcuts import shortcuts

NAMES = ("x:spot:A", "x:spot:B")
LIMITS = Limits(
    outbox_soft_bytes=600,
    outbox_hard_bytes=4_000,
    since_updates_max=6,
    since_prices_max=40,
    trades_kept=6,
    trades_joined=3,
    digest_interval_ms=300,
)
MS = 1_000_000

clients = st.integers(0, 3)
names = st.sampled_from(NAMES)
keys = st.one_of(
    st.builds(StreamKey, names, st.just(Channel.BOOK), st.sampled_from(DEPTHS), st.sampled_from(INTERVALS_MS)),
    st.tuples(names, st.sampled_from((Channel.BBO, Channel.TRADES, Channel.RAW, Channel.STATUS))).map(
        lambda pair: StreamKey(*pair)
    ),
)


class HubMachine(RuleBasedStateMachine):
    make_maker: Callable[..., Any]
    make_client: Callable[..., Any]
    new_line: Callable[[], Line]

    @initialize(seed=st.integers(0, 10_000))
    def start(self, seed: int) -> None:
        self.hub = Hub(LIMITS, type(self).new_line())
        self.now_ns = 1_000 * MS
        self.by_record = True
        self.makers = {name: self.make_maker(name, seed + i) for i, name in enumerate(NAMES)}
        self.gapped = dict.fromkeys(NAMES, False)
        self.venue_quotes = dict.fromkeys(NAMES, False)
        self.past: list[tuple[str, Any]] = []
        self.slots: list[Any] = [None] * 4
        self.told: set[Outbox] = set()  # returned by a flush, and did not take all since
        for name in NAMES:
            self._apply(name, self.makers[name].snapshot())
        for slot in range(4):
            self._attach(slot)
            for name in NAMES:
                for key in (StreamKey(name, Channel.RAW), StreamKey(name, Channel.BOOK), StreamKey(name, Channel.BBO)):
                    self._subscribe(slot, key, None, skip=False)
                self._subscribe(slot, StreamKey(name, Channel.BOOK, (1, 10, 50, 0)[slot], 50), None, skip=False)
                self._subscribe(slot, StreamKey(name, Channel.BOOK, (10, 1, 10, 200)[slot]), None, skip=False)
                self._subscribe(slot, StreamKey(name, Channel.TRADES), None, skip=slot % 2 == 0)

    def _attach(self, slot: int) -> None:
        codec = list(CODECS.values())[slot % len(CODECS)]
        self.slots[slot] = (self.hub.attach(codec), self.make_client(codec, self.makers))

    def _apply(self, name: str, message: MarketMessage) -> None:
        self.past.append((name, replace(message)))
        if self.by_record and self.hub.advance(name, encode_market(message), self.now_ns) >= 0:
            return
        assert self.hub.apply(name, message, self.now_ns)

    # ---- the market

    @rule(by_record=st.booleans())
    def feed(self, by_record: bool) -> None:
        """As records where that is possible, or as messages."""
        self.by_record = by_record

    @rule(name=names, touched=st.integers(0, 6), times=st.integers(1, 3))
    def book(self, name: str, touched: int, times: int) -> None:
        if not self.gapped[name]:
            for _ in range(times):
                self._apply(name, self.makers[name].delta(touched))

    @rule(name=names, times=st.integers(1, 8), trades=st.booleans(), readers=st.sets(clients))
    def burst(self, name: str, times: int, trades: bool, readers: set[int]) -> None:
        """Flush after flush, while only some clients read."""
        for _ in range(times):
            self.book(name, 4, 1)
            if trades:
                self.trades(name, 2, 1)
            self.now_ns += 7 * MS
            self.hub.tick(self.now_ns)
            self._flush()
            for slot in readers:
                self._take(slot, 600)

    @rule(name=names, levels=st.integers(0, 15), new_epoch=st.booleans())
    def snapshot(self, name: str, levels: int, new_epoch: bool) -> None:
        self._apply(name, self.makers[name].snapshot(levels, new_epoch=new_epoch or self.gapped[name]))
        self.gapped[name] = False

    @rule(name=names)
    def gap(self, name: str) -> None:
        self._apply(name, self.makers[name].status(BookState.GAPPED, Reason.SEQUENCE_GAP))
        self.gapped[name] = True

    @rule(name=names, state=st.sampled_from((BookState.STALE, BookState.SYNCED)))
    def status(self, name: str, state: BookState) -> None:
        self._apply(name, self.makers[name].status(state))

    @rule(name=names)
    def lost_record(self, name: str) -> None:
        """A record that Kafka no longer had: the next one does not chain."""
        if not self.gapped[name]:
            self.makers[name].delta()
            self._apply(name, self.makers[name].delta())
            self.gapped[name] = True

    @rule(name=names, count_=st.integers(1, 3), times=st.integers(1, 4))
    def trades(self, name: str, count_: int, times: int) -> None:
        for _ in range(times):
            self._apply(name, self.makers[name].trade(count_))

    @rule(name=names)
    def lost_trades(self, name: str) -> None:
        self.makers[name].trade()
        self._apply(name, self.makers[name].trade())

    @precondition(lambda self: self.past)
    @rule(name=st.just(NAMES[0]))
    def quote(self, name: str) -> None:
        self.venue_quotes[name] = True
        self._apply(name, self.makers[name].quote())

    @rule(data=st.data())
    def duplicate(self, data: st.DataObject) -> None:
        name, message = data.draw(st.sampled_from(self.past[-20:]))
        assert not self.hub.apply(name, replace(message), self.now_ns) or self.gapped[name]

    @rule(stale=st.booleans())
    def kafka(self, stale: bool) -> None:
        (self.hub.mark_stale if stale else self.hub.mark_live)(self.now_ns)

    # ---- the clients

    @rule(slot=clients, key=keys, skip=st.booleans(), resume=st.booleans())
    def subscribe(self, slot: int, key: StreamKey, skip: bool, resume: bool) -> None:
        outbox, client = self.slots[slot]
        if outbox.close_code is not None:
            return
        known = self.hub.find(key)
        position = None
        if known is not None and known.id in outbox.lanes:
            self._drain(slot)  # a client resumes from what it has, not from what is on the way to it
            if resume and known.id in client.streams:
                position = client.streams[known.id].position
        self._subscribe(slot, key, Resume(*position) if position else None, skip=skip)

    def _subscribe(self, slot: int, key: StreamKey, resume: Resume | None, *, skip: bool) -> None:
        policy = SlowPolicy.SKIP if skip else SlowPolicy.CLOSE
        self.hub.subscribe(self.slots[slot][0], key, resume, policy, self.now_ns)

    @rule(slot=clients, data=st.data())
    def unsubscribe(self, slot: int, data: st.DataObject) -> None:
        outbox, _ = self.slots[slot]
        if outbox.lanes:
            assert self.hub.unsubscribe(outbox, data.draw(st.sampled_from(sorted(outbox.lanes))))

    @rule(slot=clients)
    def disconnect(self, slot: int) -> None:
        self.hub.detach(self.slots[slot][0])
        self._attach(slot)

    @rule(slot=clients)
    def reconnect(self, slot: int) -> None:
        """The connection breaks with data on its way; the client resumes what it has."""
        outbox, client = self.slots[slot]
        skips = {(lane.source.id): lane in outbox.skips for lane in outbox.lanes.values()}
        self.hub.detach(outbox)
        self._attach(slot)
        self.slots[slot] = (self.slots[slot][0], client)
        subscriptions = list(client.streams.values())
        client.reconnected()
        for subscription in subscriptions:
            is_, position = subscription.is_, subscription.position
            key = StreamKey(is_.instrument, is_.channel, is_.depth, is_.interval_ms)
            self._subscribe(slot, key, Resume(*position) if position else None, skip=skips.get(is_.stream, False))

    @rule(slot=clients, bytes_max=st.sampled_from((1, 120, 400, 100_000)), times=st.integers(1, 3))
    def take(self, slot: int, bytes_max: int, times: int) -> None:
        for _ in range(times):
            self._take(slot, bytes_max)

    def _take(self, slot: int, bytes_max: int) -> bool:
        outbox, client = self.slots[slot]
        payload = self.hub.payload(outbox, bytes_max)
        client.feed(payload)
        if not len(outbox.queue) and not outbox.behind:
            self.told.discard(outbox)
        return bool(payload)

    def _drain(self, slot: int) -> None:
        while self._take(slot, 300):
            pass

    # ---- time

    @rule(ms=st.sampled_from((0, 1, 30, 60, 300)))
    def tick(self, ms: int) -> None:
        self.now_ns += ms * MS
        self.hub.tick(self.now_ns)

    @rule(queues_max=st.sampled_from((1, 3, None)), writes=st.booleans())
    def flush(self, queues_max: int | None, writes: bool) -> None:
        self._flush(queues_max, writes=writes)

    def _flush(self, queues_max: int | None = None, *, writes: bool = False) -> None:
        queues = self.hub.flush(self.now_ns, queues_max)
        dirty = [queue.owner for queue in queues]
        self.told |= set(dirty)
        if writes:
            self._write(queues)
        for outbox, _ in self.slots:
            if (len(outbox.queue) or outbox.behind) and not self.hub.waiting:
                assert outbox in self.told, "since it took all"
        for slot, (outbox, _) in enumerate(self.slots):
            if outbox.close_code is not None:
                assert outbox in dirty
                self.hub.detach(outbox)
                self._attach(slot)

    def _write(self, queues: list[Queue]) -> None:
        """As a shell that writes to sockets itself: what is plain goes out, past `take`."""
        for slot, (outbox, client) in enumerate(self.slots):
            queue = outbox.queue
            if queue in queues and queue.plain and len(queue):
                segments = queue.segments()
                queue.replace([])
                queues.remove(queue)
                self.hub.counters.delivered += sum(segment.tally for segment in segments)
                client.feed(b"".join(segment.data for segment in segments))
                self.told.discard(self.slots[slot][0])

    @invariant()
    def accounting_closes(self) -> None:
        counters = self.hub.counters
        queued = sum(outbox.queued() for outbox, _ in self.slots)
        got = counters.delivered + counters.conflated + counters.skipped + counters.lost + queued
        assert by_channel(counters.offered) == by_channel(got)

    @invariant()
    def queues_are_bounded(self) -> None:
        for outbox, _ in self.slots:
            settled = sum(len(segment.data) for segment in outbox.queue.segments()[: outbox.settled])
            assert settled == outbox.bytes

    def teardown(self) -> None:
        """After quiescence every client has the newest state."""
        if not hasattr(self, "slots"):
            return
        self.now_ns += 2_000 * MS
        self.hub.tick(self.now_ns)
        self._flush()
        self.hub.tick(self.now_ns + 2_000 * MS)
        self._flush()
        for slot in range(4):
            self._drain(slot)
        self.accounting_closes()
        for outbox, client in self.slots:
            assert not len(outbox.queue)
            assert not outbox.behind
            assert not outbox.slow
            assert set(client.streams) == set(outbox.lanes)
        for slot in range(4):
            self._check(slot)
        for outbox, _ in self.slots:
            self.hub.detach(outbox)
        assert self.hub.streams() == []

    def _check(self, slot: int) -> None:
        _, client = self.slots[slot]
        for subscription in client.streams.values():
            name, channel = subscription.is_.instrument, subscription.is_.channel
            if channel in (Channel.BOOK, Channel.RAW):
                assert subscription.live == (self.hub.status(name).state is BookState.SYNCED)
                if not self.gapped[name]:
                    assert subscription.book.top(0) == self.makers[name].book.top(subscription.is_.depth)
            elif channel is Channel.TRADES:
                client.check_trades(subscription)
            elif channel is Channel.BBO and self.venue_quotes[name]:
                assert not subscription.quote.flags & Flag.DERIVED
            elif channel is Channel.BBO and not self.gapped[name]:
                bids, asks = self.makers[name].book.top(1)
                assert (subscription.quote.bid_ticks, subscription.quote.bid_lots) == (bids[0] if bids else (0, 0))
                assert (subscription.quote.ask_ticks, subscription.quote.ask_lots) == (asks[0] if asks else (0, 0))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", KINDS)
def test_every_client_is_right_and_every_update_is_counted(
    maker: Callable[..., Any], client: Callable[..., Any], kind: str
) -> None:
    class Machine(HubMachine):
        new_line = staticmethod(lines(kind).new)
        make_maker = staticmethod(maker)
        make_client = staticmethod(client)

    with shortcuts(kind):
        run_state_machine_as_test(Machine, settings=settings(max_examples=40, stateful_step_count=50, deadline=None))


def test_counts_of_a_tally_do_not_mix() -> None:
    total = sum((1 << 64 * channel) * (channel + 1) for channel in Channel if channel)
    assert [count(total, channel) for channel in Channel if channel] == [2, 3, 4, 5, 6]
