"""The stream endpoint over real sockets, without Kafka: the hub is fed directly."""

import asyncio
import socket
from collections.abc import AsyncIterator
from uuid import UUID

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.frames import Opcode
from websockets.typing import Subprotocol

from protos.codec import CODECS
from protos.messages import (
    BookUpdate,
    Channel,
    CloseCode,
    Command,
    Error,
    ErrorCode,
    Flag,
    Notice,
    NoticeCode,
    Ping,
    Pong,
    Resume,
    Scale,
    Subscribe,
    Subscribed,
    Unsubscribe,
    Unsubscribed,
    Welcome,
)
from tests.support.endpoint import BTC, JSON, PROTO, Raw, Rig, client, masked, request, running, upgraded


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with running() as one:
        yield one


# ---- handshakes


@pytest.mark.parametrize("name", CODECS)
async def test_the_subprotocol_selects_the_codec(rig: Rig, name: str) -> None:
    async with client(rig, CODECS[name]) as one:
        assert one.ws.subprotocol == name
        await one.send(Subscribe(7, BTC, Channel.BOOK))
        reply = await one.until(Subscribed)
        assert (reply.id, reply.scale) == (7, Scale(-2, -3))
        assert (await one.until(BookUpdate)).bids == [(100, 5)]


async def test_the_first_offered_subprotocol_that_we_speak_wins(rig: Rig) -> None:
    offers = [Subprotocol(name) for name in ("chat", JSON.name, PROTO.name)]
    async with connect(f"ws://127.0.0.1:{rig.port}/v1/stream", subprotocols=offers) as ws:
        assert ws.subprotocol == JSON.name


REFUSED = {
    "no subprotocol": (request(sec_websocket_protocol=None), 400, b"offer a subprotocol"),
    "unknown subprotocol": (request(sec_websocket_protocol="chat"), 400, b"depthcast.v1.json"),
    "other path": (request("/v2/stream"), 404, b"/v1/stream"),
    "old version": (request(sec_websocket_version="8"), 426, b"13"),
    "no version": (request(sec_websocket_version=None), 400, b"Sec-WebSocket-Version"),
    "no key": (request(sec_websocket_key=None), 400, b"Sec-WebSocket-Key"),
    "short key": (request(sec_websocket_key="c2hvcnQ="), 400, b"Sec-WebSocket-Key"),
    "no host": (request(host=None), 400, b"Host"),
    "a body": (request(content_length="5"), 400, b"body"),
    "HTTP/1.0": (request(version="HTTP/1.0"), 505, b"HTTP/1.0"),
    "POST": (request(method="POST"), 405, b"POST"),
    "too many headers": (request(**{f"x_{i}": "1" for i in range(101)}), 431, b"100 headers"),
    "a long header": (request(cookie="x" * 17_000), 431, b"bytes"),
    "a long path": (request("/v1/stream?" + "x" * 17_000), 431, b"bytes"),
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello\r\n\r\n", 400, b"HTTP"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_a_wrong_handshake_gets_a_proper_http_error_and_the_connection_ends(rig: Rig, case: str) -> None:
    data, status, text = REFUSED[case]
    raw = await Raw.connect(rig)
    raw.writer.write(data)
    got, head = await raw.head()
    body = await raw.end()
    assert (got, text in body) == (status, True), (head, body)
    assert b"connection: close" in head.lower()
    assert rig.sample("connects_total") == 0


async def test_a_request_head_that_never_ends_is_cut_at_its_limit(rig: Rig) -> None:
    raw = await Raw.connect(rig)
    raw.writer.write(b"GET /v1/stream HTTP/1.1\r\nx: ")
    for _ in range(20):
        raw.writer.write(b"y" * 1024)
        await asyncio.sleep(0.001)
    assert (await raw.head())[0] == 431


async def test_what_comes_with_the_upgrade_request_is_not_lost(rig: Rig) -> None:
    raw = await Raw.connect(rig)
    raw.writer.write(request() + masked(Opcode.BINARY, PROTO.encode_command(Ping(42))))
    assert (await raw.head())[0] == 101
    await raw.frame()
    assert PROTO.decode((await raw.frame())[1])[0].id == 42  # type: ignore[union-attr]


async def test_a_handshake_may_come_byte_by_byte(rig: Rig) -> None:
    raw = await Raw.connect(rig)
    for byte in request() + masked(Opcode.PING, b"hi"):
        raw.writer.write(bytes((byte,)))
        await raw.writer.drain()
    assert (await raw.head())[0] == 101
    assert isinstance(PROTO.decode((await raw.frame())[1])[0], Welcome)
    assert await raw.frame() == (0x8A, b"hi")


async def test_who_knows_some_session_ids_guesses_no_other(rig: Rig) -> None:
    found = set()
    for _ in range(3):
        raw = await Raw.connect(rig)
        raw.writer.write(request())
        await raw.head()
        welcome = PROTO.decode((await raw.frame())[1])[0]
        assert isinstance(welcome, Welcome)
        assert UUID(welcome.session_id).version == 4, "122 random bits"
        found.add(welcome.session_id)
    assert len(found) == 3


async def test_before_the_books_have_caught_up_clients_are_told_to_come_back(rig: Rig) -> None:
    rig.hub.ready = False
    with pytest.raises(InvalidStatus) as refused:
        async with client(rig):
            pass
    assert refused.value.response.status_code == 503
    assert refused.value.response.headers["Retry-After"] == "2"
    assert rig.sample("handshakes_total", outcome="503") == 1


async def test_one_connection_too_many_is_refused_and_let_in_when_another_has_left() -> None:
    async with running(connections_max=1) as rig:
        async with client(rig):
            with pytest.raises(InvalidStatus, match="503"):
                async with client(rig):
                    pass
        await rig.settle(0)
        async with client(rig):
            assert rig.sample("handshakes_total", outcome="101") == 2
            assert rig.sample("connects_total") == 2


async def test_accepted_sockets_have_the_small_kernel_buffers_of_the_listener(rig: Rig) -> None:
    async with client(rig):
        (member,) = rig.endpoint.clients.members.values()
        sock = member._transport.get_extra_info("socket")  # type: ignore[attr-defined]
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * (64 << 10)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert sock.getsockopt(socket.IPPROTO_TCP, 25) == 16 << 10, "TCP_NOTSENT_LOWAT"


# ---- the conversation


async def test_subscribe_update_unsubscribe(rig: Rig) -> None:
    async with client(rig) as one:
        await one.send(Subscribe(1, BTC, Channel.BOOK))
        stream = (await one.until(Subscribed)).stream
        first = await one.until(BookUpdate)
        assert (first.stream, first.seq, first.flags & Flag.SNAPSHOT) == (stream, 1, Flag.SNAPSHOT)
        for seq in (2, 3, 4):
            assert rig.update() == seq
            update = await one.until(BookUpdate)
            assert (update.prev_seq, update.seq) == (seq - 1, seq)
        await one.send(Unsubscribe(2, stream))
        assert await one.until(Unsubscribed) == Unsubscribed(2, stream)
        rig.update()
        await one.send(Ping(3))
        assert isinstance(await one.next(), Pong), "no update after the reply"


async def test_resume_continues_with_one_merged_delta_or_a_snapshot(rig: Rig) -> None:
    for _ in range(3):
        rig.update()
    async with client(rig) as one:
        await one.send(Subscribe(1, BTC, Channel.BOOK, resume=Resume(1, 2)))
        assert (await one.until(Subscribed)).resumed
        merged = await one.until(BookUpdate)
        assert (merged.prev_seq, merged.seq, merged.bids) == (2, 4, [(100, 4)])
        assert merged.flags & Flag.CONFLATED
    async with client(rig) as other:
        await other.send(Subscribe(1, BTC, Channel.BOOK, resume=Resume(9, 9)))
        assert not (await other.until(Subscribed)).resumed
        assert (await other.until(BookUpdate)).flags & Flag.SNAPSHOT


async def test_a_tier_moves_at_its_interval_without_market_data_waking_the_loop(rig: Rig) -> None:
    async with client(rig) as one:
        await one.send(Subscribe(1, BTC, Channel.BOOK, depth=1, interval_ms=50))
        assert (await one.until(BookUpdate)).seq == 1
        rig.hub.apply(
            BTC, BookUpdate(epoch=1, seq=2, prev_seq=1, bids=[(100, 9)]), rig.clock.now_ns()
        )  # no wake(): the tier's own time must come
        assert (await one.until(BookUpdate)).bids == [(100, 9)]


async def test_hundred_updates_between_two_flushes_are_one_frame_for_each_client(rig: Rig) -> None:
    async with client(rig) as one, client(rig) as other:
        for each in (one, other):
            await each.send(Subscribe(1, BTC, Channel.BOOK))
            await each.until(BookUpdate)
        before = rig.endpoint.clients.sends
        for _ in range(100):
            rig.update()
        for each in (one, other):
            frame = PROTO.decode(await each.ws.recv(decode=False))
            assert [m.seq for m in frame if isinstance(m, BookUpdate)] == list(range(2, 102))
        assert rig.endpoint.clients.sends - before == 2


async def test_pings_are_answered_and_several_commands_in_one_segment_get_one_frame(rig: Rig) -> None:
    raw = await upgraded(rig)
    raw.writer.write(masked(Opcode.PING, b"1") + masked(Opcode.PING, b"2"))
    assert [await raw.frame(), await raw.frame()] == [(0x8A, b"1"), (0x8A, b"2")]
    commands: list[Command] = [Ping(1), Subscribe(2, BTC, Channel.BBO), Ping(3)]
    raw.writer.write(b"".join(masked(Opcode.BINARY, PROTO.encode_command(c)) for c in commands))
    replies = PROTO.decode((await raw.frame())[1])
    assert [type(reply).__name__ for reply in replies[:3]] == ["Pong", "Subscribed", "Pong"]


async def test_a_fragmented_command_with_a_ping_between_is_one_command(rig: Rig) -> None:
    raw = await upgraded(rig)
    data = PROTO.encode_command(Ping(300))
    raw.writer.write(masked(Opcode.BINARY, data[:1], fin=False) + masked(Opcode.PING, b"?"))
    raw.writer.write(masked(Opcode.CONT, b"", fin=False) + masked(Opcode.CONT, data[1:]))
    assert await raw.frame() == (0x8A, b"?")
    assert isinstance(PROTO.decode((await raw.frame())[1])[0], Pong)


async def test_bad_commands_get_a_reply_and_the_tenth_closes(rig: Rig) -> None:
    async with client(rig) as one:
        await one.send(Subscribe(1, "no:such:thing", Channel.BOOK))
        assert (await one.until(Error)).code is ErrorCode.UNKNOWN_INSTRUMENT
        for _ in range(9):
            await one.ws.send(b"\xff\xff")
            assert (await one.until(Error)).code is ErrorCode.BAD_COMMAND
        assert (await one.end())[0] == CloseCode.BAD_COMMANDS
    await rig.settle()
    assert rig.sample("commands_total", outcome="malformed") == 9
    assert rig.sample("commands_total", outcome="refused") == 1
    assert rig.sample("disconnects_total", code="4400") == 1


# ---- how it ends

BROKEN = {
    "text for a binary codec": (masked(Opcode.TEXT, b"{}"), CloseCode.UNSUPPORTED_DATA),
    "too large": (masked(Opcode.BINARY, b"x" * 4097), CloseCode.MESSAGE_TOO_BIG),
    "too large in fragments": (
        masked(Opcode.BINARY, b"x" * 4000, fin=False) + masked(Opcode.CONT, b"x" * 4000),
        CloseCode.MESSAGE_TOO_BIG,
    ),
    "endless fragments": (
        masked(Opcode.BINARY, b"", fin=False) + masked(Opcode.CONT, b"", fin=False) * 100,
        CloseCode.POLICY_VIOLATION,
    ),
    "not masked": (b"\x82\x01x", CloseCode.PROTOCOL_ERROR),
    "reserved bit": (b"\xc2\x80\0\0\0\0", CloseCode.PROTOCOL_ERROR),
    "unknown opcode": (b"\x83\x80\0\0\0\0", CloseCode.PROTOCOL_ERROR),
    "a continuation of nothing": (masked(Opcode.CONT, b"x"), CloseCode.PROTOCOL_ERROR),
    "a ping flood": (masked(Opcode.PING, b"x") * 200, CloseCode.POLICY_VIOLATION),
    "a close code out of range": (masked(Opcode.CLOSE, b"\x00\x05"), CloseCode.PROTOCOL_ERROR),
}


@pytest.mark.parametrize("case", BROKEN)
async def test_what_breaks_the_protocol_is_answered_with_a_close_code(rig: Rig, case: str) -> None:
    data, code = BROKEN[case]
    raw = await upgraded(rig)
    raw.writer.write(data + masked(Opcode.PING, b"nothing is obeyed or answered any more"))
    assert await raw.close_code() == code
    raw.writer.write(masked(Opcode.CLOSE, int(code).to_bytes(2, "big")))
    assert await raw.end() == b"", "nothing after the close frame"
    raw.writer.close()
    await rig.settle()
    assert rig.sample("disconnects_total", code=str(int(code))) == 1


async def test_text_that_is_not_utf_8_closes_1007(rig: Rig) -> None:
    raw = await upgraded(rig, JSON)
    raw.writer.write(masked(Opcode.TEXT, b'{"a":"\xff"}'))
    assert await raw.close_code() == CloseCode.INVALID_PAYLOAD


async def test_the_peers_close_is_echoed_and_counted(rig: Rig) -> None:
    async with client(rig) as one:
        await one.ws.close(1001, "bye")
        assert one.ws.close_code == 1001
    await rig.settle()
    assert rig.sample("disconnects_total", code="1001") == 1
    assert not rig.hub.outboxes


async def test_a_connection_that_breaks_off_leaves_nothing_behind(rig: Rig) -> None:
    raw = await upgraded(rig)
    raw.writer.write(masked(Opcode.BINARY, PROTO.encode_command(Subscribe(1, BTC, Channel.BOOK))))
    await raw.frame()
    raw.writer.transport.abort()
    await rig.settle()
    assert rig.sample("disconnects_total", code="1006") == 1
    assert not rig.hub.outboxes
    assert not rig.hub.streams()


async def test_a_peer_that_does_not_answer_our_close_is_aborted(rig: Rig) -> None:
    raw = await upgraded(rig)
    (member,) = rig.endpoint.clients.members.values()
    member.close(CloseCode.GOING_AWAY, "test")
    assert await raw.close_code() == 1001
    assert rig.endpoint.clients.open == 1, "it waits for the peer's close frame"
    await rig.settle()
    assert rig.sample("disconnects_total", code="1001") == 1


async def test_a_silent_peer_is_pinged_and_then_closed_4009() -> None:
    async with running(heartbeat_interval_ms=120) as rig:
        raw = await upgraded(rig)
        assert (await raw.frame())[0] == 0x89
        assert await raw.close_code() == CloseCode.HEARTBEAT_TIMEOUT


async def test_a_peer_that_answers_pings_stays() -> None:
    async with running(heartbeat_interval_ms=120) as rig, client(rig) as one:
        await asyncio.sleep(0.8)
        await one.send(Ping(1))
        assert isinstance(await one.next(), Pong)


async def test_drain_warns_every_client_and_closes_1012() -> None:
    async with running() as rig, client(rig) as one, client(rig, JSON) as other:
        drain = asyncio.create_task(rig.endpoint.drain(0.4))
        for each in (one, other):
            notice = await each.until(Notice)
            assert notice.code is NoticeCode.SHUTDOWN
            assert 100 <= notice.retry_after_ms < 400
            assert (await each.end())[0] == CloseCode.SERVICE_RESTART
        await drain
        assert rig.endpoint.clients.open == 0
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", rig.port)
