"""Both receivers count the same updates and latencies from the same bytes and sockets, and neither believes garbage."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.client import Address, LoadClient, connect
from loadtest.histogram import Histogram
from loadtest.receiver import BROKEN, Handler, NativeReceiver, PythonReceiver, Receiver, receiver
from loadtest.wire import BBO, BOOK, OP_BINARY, OP_CLOSE, OP_PING, OP_PONG, TRADES, client_frame
from protos.codec import CODECS
from protos.messages import BookUpdate, Digest, Pong, QuoteUpdate, Scale, Side, Trade, TradesUpdate
from tests.support.needs import need_compiler
from tests.support.scenario import until

CODEC = CODECS["depthcast.v1.proto"]
NOW_NS = 1_700_000_000_000_000_000
LATE_MAX_NS = (1 << 40) - 1
PRECISION = 1 - 1 / 128
"""Of a histogram."""
Updates = list[tuple[int, int, int]]
UPDATES = st.lists(
    st.tuples(st.sampled_from([BOOK, TRADES, BBO]), st.integers(-(10**6), 2**41), st.integers(-5, 10**7)), max_size=20
)
"""(kind, how late, from the venue's time to ours)"""
Make = Callable[[int, Handler], Receiver]


@pytest.fixture(scope="module", params=["python", "native"])
def make(request: pytest.FixtureRequest) -> Make:
    if request.param == "python":
        return PythonReceiver
    need_compiler()
    made = receiver(1, lambda *_: None)
    assert isinstance(made, NativeReceiver)
    made.close()
    return receiver


class Given:
    """A receiver of two clients, and what it handed over."""

    def __init__(self, make: Make) -> None:
        self.handed: list[tuple[int, int, bytes]] = []
        self.receiver = make(2, lambda *one: self.handed.append(one))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.receiver.close()


def server_frame(opcode: int, payload: bytes) -> bytes:
    """As `client_frame`, without a mask."""
    framed = client_frame(opcode, payload)
    head = len(framed) - len(payload) - 4
    return framed[:1] + bytes([framed[1] & 0x7F]) + framed[2:head] + payload


def frame_of(updates: list[tuple[int, int, int]], now_ns: int = NOW_NS) -> bytes:
    frame = CODEC.encode(Pong(7, 0), None)
    for kind, late_ns, transit_ns in updates:
        due_ns = now_ns - late_ns
        times = {"ts_event_ns": due_ns - transit_ns, "ts_received_ns": due_ns, "ts_published_ns": due_ns + 5}
        update: BookUpdate | TradesUpdate | QuoteUpdate
        if kind == BOOK:
            levels = [(price, 1 + price) for price in range(late_ns % 80)]
            update = BookUpdate(stream=300, epoch=1, seq=2, prev_seq=1, bids=levels, asks=[(1_000, 1)], **times)
        elif kind == TRADES:
            trades = [Trade(5, 6, Side.BUY, "id", due_ns)]
            update = TradesUpdate(stream=2, epoch=1, seq=2, trades=trades, scale=Scale(0, 0), **times)
        else:
            update = QuoteUpdate(stream=1, epoch=1, seq=2, prev_seq=1, bid_ticks=-4, bid_lots=1, ask_ticks=7, **times)
        frame += CODEC.encode(update, Scale(0, 0)) + CODEC.encode(Digest(300, 1, 2, 0xFFFFFFFF), None)
    return frame


class TestReceiver:
    """The contract."""

    @given(UPDATES, st.booleans(), st.data())
    def test_updates_are_counted_and_their_latencies_taken_however_they_are_cut(
        self, make: Make, updates: Updates, tiers: bool, data: st.DataObject
    ) -> None:
        before_ns = time.time_ns()
        frames = [server_frame(OP_BINARY, frame_of(part, before_ns)) for part in (updates, updates[:3])]
        sent = b"".join(frames)
        cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=4)))
        each, late_books, now = Histogram(), Histogram(), Histogram()
        with Given(make) as it:
            it.receiver.measure(1, each)
            it.receiver.measure_now(now)
            if tiers:
                it.receiver.measure_tiers(late_books)
            for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True):
                it.receiver.feed(1, sent[start:end])
            after_ns = time.time_ns()
            assert (now.count, now.max, now.quantile(0.5)) == (each.count, each.max, each.quantile(0.5))
            counts, nothing = it.receiver.counts[1], it.receiver.counts[0]
            assert (counts.frames, counts.updates, counts.bytes) == (2, len(updates + updates[:3]), len(sent))
            assert (nothing.frames, nothing.updates, nothing.bytes) == (0, 0, 0)
            assert it.receiver.updates == counts.updates
            assert not updates or before_ns <= it.receiver.last_ns <= after_ns
            assert it.handed == []
        expected = [(kind == BOOK and tiers, late) for kind, late, _ in updates + updates[:3]]
        for found, is_tier in ((each, False), (late_books, True)):
            self.assert_latencies(found, [late for tier, late in expected if tier is is_tier], after_ns - before_ns)

    @staticmethod
    def assert_latencies(found: Histogram, expected: list[int], took_ns: int) -> None:
        assert found.count == len(expected)
        for rank, late in enumerate(sorted(expected), 1):
            highest = min(max(0, late + took_ns), LATE_MAX_NS)
            assert PRECISION * min(max(0, late), LATE_MAX_NS) - 1 <= found.quantile(rank / len(expected)) <= highest
        if expected and max(expected) > 0:
            assert max(expected) <= found.max <= max(expected) + took_ns

    def test_latencies_of_now_are_of_all_who_take_them_until_somebody_else_does(self, make: Make) -> None:
        sent = server_frame(OP_BINARY, frame_of([(BOOK, 5, 0), (TRADES, 5, 0)]))
        first, second = Histogram(), Histogram()
        with Given(make) as it:
            for now, takers in ((first, ()), (first, (0,)), (second, (1,)), (None, ())):
                for taker in takers:
                    it.receiver.measure(taker, Histogram())
                it.receiver.measure_now(now)
                it.receiver.feed(0, sent)
                it.receiver.feed(1, sent)
            assert (first.count, second.count) == (2, 4)

    def test_control_frames_are_handed_over_and_frames_of_clients_that_are_kept(self, make: Make) -> None:
        frame = frame_of([(BOOK, 5, 0)])
        sent = server_frame(OP_PING, b"ping") + server_frame(OP_BINARY, frame) + server_frame(OP_CLOSE, b"\x03\xe8")
        with Given(make) as it:
            it.receiver.counts[0].kept = True
            it.receiver.feed(0, sent)
            it.receiver.feed(1, sent)
            control = [(OP_PING, b"ping"), (OP_CLOSE, b"\x03\xe8")]
            kept = [control[0], (OP_BINARY, frame), control[1]]
            assert it.handed == [*((0, *one) for one in kept), *((1, *one) for one in control)]

    @given(st.binary(min_size=1, max_size=200))
    def test_garbage_is_a_breach_of_the_protocol_at_most(self, make: Make, data: bytes) -> None:
        with Given(make) as it:
            it.receiver.measure(0, Histogram())
            it.receiver.feed(0, data)
            it.receiver.feed(1, server_frame(OP_BINARY, data))
            assert not [what for _, what, _ in it.handed if what not in {BROKEN, *range(16)}]
            assert it.receiver.counts[1].frames == 1

    @given(UPDATES.filter(bool), st.data())
    def test_a_frame_that_ends_within_a_chunk_is_a_breach(
        self, make: Make, updates: Updates, data: st.DataObject
    ) -> None:
        last = len(frame_of(updates[:-1]))
        frame = frame_of(updates)[: data.draw(st.integers(last + 1, last + 8))]
        with Given(make) as it:
            it.receiver.feed(0, server_frame(OP_BINARY, frame))
            assert it.handed == [(0, BROKEN, b"")]

    @pytest.mark.parametrize("head", ["0205", "c205", "8285"], ids=["fragment", "reserved bit", "mask"])
    def test_what_this_server_never_sends_is_a_breach(self, make: Make, head: str) -> None:
        with Given(make) as it:
            it.receiver.feed(0, bytes.fromhex(head) + bytes(9))
            assert it.handed == [(0, BROKEN, b"")]

    def test_a_new_connection_does_not_go_on_with_the_last_frame_of_the_old(self, make: Make) -> None:
        frame = server_frame(OP_BINARY, frame_of([(BOOK, 5, 0)]))
        with Given(make) as it:
            it.receiver.feed(0, frame[:-3])
            it.receiver.begin(0)
            it.receiver.feed(0, frame)
            assert (it.receiver.counts[0].frames, it.handed) == (1, [])
            it.receiver.reset()
            assert (it.receiver.counts[0].frames, it.receiver.counts[0].bytes, it.receiver.updates) == (0, 0, 0)


class Peer:
    """A server with one client of ours, and what happens to that."""

    def __init__(self, make: Make) -> None:
        self.receiver = make(1, self._handed)
        self.client = LoadClient(0, b"hello\r\n", self, self.receiver)
        self.codes: list[int] = []
        self.opened_count = 0
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    def _handed(self, index: int, what: int, payload: bytes) -> None:
        assert index == 0
        self.client.handed(what, payload)

    def opened(self, client: LoadClient) -> None:
        client.send(b"subscribe\r\n")
        self.opened_count += 1

    def closed(self, client: LoadClient, code: int) -> None:
        assert client is self.client
        self.codes.append(code)

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        assert await reader.readline() == b"hello\r\n"
        frame = server_frame(OP_BINARY, frame_of([(BOOK, 5, 0)]))
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + frame[:20])
        assert await reader.readline() == b"subscribe\r\n"
        writer.write(frame[20:])


@asynccontextmanager
async def peer_of(make: Make) -> AsyncIterator[Peer]:
    peer = Peer(make)
    server = await asyncio.start_server(peer.accept, "127.0.0.1", 0)
    async with server:
        await connect(Address("127.0.0.1", server.sockets[0].getsockname()[1]), peer.client)
        await until(lambda: peer.receiver.updates == 1, "what began with the handshake")
        yield peer
        peer.client.abort()
        await until(lambda: bool(peer.codes), "closed")
        peer.writer.close()
        peer.receiver.close()
    assert (peer.opened_count, len(peer.codes)) == (1, 1)


class TestOnSockets:
    """The contract, with a connection."""

    async def test_it_reads_as_far_as_it_may(self, make: Make) -> None:
        frame = server_frame(OP_BINARY, frame_of([(TRADES, 5, 0)]))
        async with peer_of(make) as peer:
            counts = peer.receiver.counts[0]
            peer.client.read_to(counts.bytes + 10)
            peer.writer.write(frame * 20_000)
            await until(lambda: counts.bytes >= counts.limit, "the limit")
            await asyncio.sleep(0.1)
            assert counts.updates < 20_000, "the kernel holds some, and the server the rest"
            peer.client.read_to(0)
            peer.client.read_to(counts.bytes + len(frame))
            await until(lambda: counts.bytes >= counts.limit, "a little more")
            peer.client.read_to()
            await until(lambda: counts.updates == 20_001, "all")

    async def test_pings_are_answered_and_a_close_frame_is_returned(self, make: Make) -> None:
        async with peer_of(make) as peer:
            peer.writer.write(server_frame(OP_PING, b"there?"))
            pong, close = client_frame(OP_PONG, b"there?"), client_frame(OP_CLOSE, (4008).to_bytes(2, "big"))
            assert await asyncio.wait_for(peer.reader.readexactly(len(pong)), 20) == pong
            peer.writer.write(server_frame(OP_CLOSE, (4008).to_bytes(2, "big") + b"slow"))
            assert await asyncio.wait_for(peer.reader.read(), 20) == close
            await until(lambda: peer.codes == [4008], "closed")

    async def test_an_end_without_a_word_is_1006_and_a_breach_1002(self, make: Make) -> None:
        for last, code in ((b"", 1006), (b"\x02\x05", 1002)):
            async with peer_of(make) as peer:
                peer.writer.write(last)
                peer.writer.close()
                await until(lambda: bool(peer.codes), "closed")
                assert peer.codes == [code]
                assert not peer.client.connected
