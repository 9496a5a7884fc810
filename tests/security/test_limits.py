"""Every limit of the public port: it has a setting, holds at exactly its number, and is counted."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from websockets.frames import Opcode

from protos.messages import (
    Channel,
    CloseCode,
    Command,
    Error,
    ErrorCode,
    Notice,
    NoticeCode,
    Ping,
    Pong,
    Subscribe,
    Subscribed,
)
from services.config import Settings
from services.metrics import LIMITS
from services.streamer.admission import RETRY_AFTER_MAX_S, SOCKETS_SPARE, Admission, site
from tests.support.accounts import SETTINGS, token
from tests.support.endpoint import BTC, PROTO, Raw, Rig, client, masked, request, running, upgraded
from tests.support.guests import guest, show

pytestmark = pytest.mark.security

GET = b"GET /v1/instruments HTTP/1.1\r\nhost: x\r\n"


SETTING_OF = {
    "sockets": "connections_max",
    "connections": "connections_max",
    "connections_per_address": "connections_per_address_max",
    "connections_per_token": "connections_per_token_max",
    "handshake_rate": "handshakes_per_s",
    "connection_age": "connection_age_max_ms",
    "head_size": "head_bytes_max",
    "body_size": "body_bytes_max",
    "request_timeout": "request_timeout_ms",
    "command_size": "command_bytes_max",
    "command_rate": "commands_per_s",
    "subscriptions": "subscriptions_max",
    "controls": "controls_max",
    "fragments": "fragments_max",
}


def limited(rig: Rig) -> dict[str, float]:
    """The limits that were met, and how often."""
    counts = {limit: rig.sample("limited_total", limit=limit) for limit in LIMITS}
    return {limit: count for limit, count in counts.items() if count}


async def status_of(rig: Rig, data: bytes) -> int:
    """Of the response to ``data``, after which the server ends the connection."""
    raw = await Raw.connect(rig)
    raw.writer.write(data)
    status, _ = await raw.head()
    if status != 101:
        await raw.end()
    return status


# ---- who gets in


async def test_connections_of_one_address() -> None:
    async with running(connections_per_address_max=2) as rig:
        first = await upgraded(rig)
        await upgraded(rig)
        assert await status_of(rig, request()) == 429
        assert limited(rig) == {"connections_per_address": 1}
        assert rig.sample("handshakes_total", outcome="429") == 1
        first.writer.close()
        await rig.settle(1)
        assert await status_of(rig, request()) == 101


async def test_clients_behind_our_own_proxy_are_counted_by_their_own_addresses() -> None:
    async with running(connections_per_address_max=1, trusted_proxies="127.0.0.1") as rig:
        for client_ip, status in (("192.0.2.1", 101), ("192.0.2.1", 429), ("192.0.2.2", 101)):
            assert await status_of(rig, request(x_forwarded_for=client_ip)) == status


async def test_connections_of_the_whole_process() -> None:
    async with running(connections_max=1) as rig:
        await upgraded(rig)
        assert await status_of(rig, request()) == 503
        assert limited(rig) == {"connections": 1}


async def test_connections_of_one_token() -> None:
    async with running(connections_per_token_max=1, **SETTINGS) as rig, guest(rig, token()):
        assert await status_of(rig, request(authorization=f"Bearer {token()}")) == 429
        assert limited(rig) == {"connections_per_token": 1}
        async with guest(rig) as late:  # it is in before it says who it is
            await show(late, token())
            assert (await late.end())[0] == CloseCode.TOO_MANY
        assert limited(rig) == {"connections_per_token": 2}


async def test_handshakes_per_second() -> None:
    async with running(handshakes_per_s=5) as rig:
        statuses = [await status_of(rig, request()) for _ in range(8)]
        assert statuses[:5] == [101] * 5
        refused = statuses.count(503)
        assert refused >= 1
        assert limited(rig) == {"handshake_rate": refused}
        async with asyncio.timeout(5):
            while await status_of(rig, request()) != 101:  # noqa: ASYNC110
                await asyncio.sleep(0.1)


def test_who_is_sent_away_is_told_a_time_of_its_own() -> None:
    """As many for each second as may come in it; and never longer than a client waits anyway."""
    admission = Admission(Settings(handshakes_per_s=10))
    first = [admission.ask(f"192.0.2.{n}", 0) for n in range(10)]
    told = [full.retry_after_s for n in range(35) if (full := admission.ask(f"192.0.3.{n}", 0))]
    assert first == [None] * 10
    assert told == sorted(told)
    assert [told.count(seconds) for seconds in (1, 2, 3, 4, 5)] == [9, 10, 10, 6, 0]
    many = [admission.ask("", 0) for _ in range(10_000)]
    assert max(full.retry_after_s for full in many if full) == RETRY_AFTER_MAX_S
    later = 60_000_000_000
    assert [admission.ask("", later) for _ in range(10)] == [None] * 10
    again = admission.ask("", later)
    assert again is not None
    assert again.retry_after_s == 1, "nobody waits for what was promised long ago"


async def test_sockets_that_never_become_streams() -> None:
    async with running(connections_max=1) as rig:
        socks = [await asyncio.open_connection("127.0.0.1", rig.port) for _ in range(SOCKETS_SPARE + 3)]
        async with asyncio.timeout(10):
            while not limited(rig):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert limited(rig).keys() == {"sockets"}
        for _, writer in socks:
            writer.transport.abort()


def test_an_ipv6_network_is_one_address() -> None:
    assert site("2001:db8:1:2::1") == site("2001:db8:1:2:ffff::9") == "2001:db8:1:2::"
    assert site("2001:db8:1:3::1") != site("2001:db8:1:2::1")
    assert site("::ffff:192.0.2.1") == site("192.0.2.1") == "192.0.2.1"
    assert site("fe80::1%eth0") == "fe80::"
    assert site("") == ""


def test_an_address_is_forgotten_with_its_last_connection() -> None:
    admission = Admission(Settings(connections_per_address_max=2))
    for address in ("192.0.2.1", "2001:db8::1", "2001:db8::2"):
        assert admission.ask(address, 0) is None
        admission.enter(address)
    full = admission.ask("2001:db8::3", 0)
    assert full is not None
    assert full.limit == "connections_per_address"
    for address in ("2001:db8::1", "192.0.2.1", "2001:db8::2"):
        admission.leave(address)
    assert admission.open == 0
    assert admission._by_address == {}


# ---- requests


def of_size(size: int) -> bytes:
    """An upgrade request whose target and headers have ``size`` bytes, as they are counted."""
    plain = request(sec_websocket_key="x" * 24, cookie="")
    counted = len(plain) - len("GET  HTTP/1.1\r\n") - len("\r\n")
    return request(cookie="y" * (size - counted))


def with_headers(count: int) -> bytes:
    return request(**{f"x_{i}": "1" for i in range(count - request().count(b": "))})


def with_body(size: int) -> bytes:
    return GET + b"connection: close\r\ncontent-length: %d\r\n\r\n" % size + b"x" * size


SIZES: dict[str, tuple[str, Callable[[int], bytes], int, int, str]] = {
    "bytes of a head": ("head_bytes_max", of_size, 101, 431, "head_size"),
    "headers": ("headers_max", with_headers, 101, 431, "head_size"),
    "bytes of a body": ("body_bytes_max", with_body, 200, 413, "body_size"),
}


@pytest.mark.parametrize("case", SIZES)
async def test_the_size_of_a_request(case: str) -> None:
    setting, build, good, bad, limit = SIZES[case]
    async with running(**{setting: 500}) as rig:
        assert await status_of(rig, build(500)) == good
        assert limited(rig) == {}
        assert await status_of(rig, build(501)) == bad
        assert limited(rig) == {limit: 1}


async def test_a_body_without_an_end_is_cut_with_its_chunk_headers_and_trailers() -> None:
    async with running(body_bytes_max=1_000, head_bytes_max=1_000) as rig:
        raw = await Raw.connect(rig)
        raw.writer.write(b"POST /v1/instruments HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        assert (await raw.head())[0] == 405
        for piece in (
            b"1;" + b"e" * 400 + b"\r\nx\r\n",
            b"1\r\nx\r\n",
            b"0\r\n",
            *[b"t: " + b"x" * 100 + b"\r\n"] * 30,
        ):
            raw.writer.write(piece)
            await asyncio.sleep(0.002)
        await raw.end()
        assert limited(rig) == {"body_size": 1}


async def trickle(raw: Raw, data: bytes) -> None:
    """One byte at a time, for longer than any deadline of these tests."""
    while not raw.writer.is_closing():
        for byte in data:
            raw.writer.write(bytes((byte,)))
            await asyncio.sleep(0.02)


SLOW = {
    "nothing": (b"", b"", b""),
    "a head that never ends": (b"GET /v1/stream HTTP/1.1\r\nx: ", b"y", b"408"),
    "headers without an end": (b"GET /v1/stream HTTP/1.1\r\n", b"x: y\r\n", b"408"),
    "lines between requests": (GET + b"\r\n", b"\r\n", b"200"),
    "a body after its response": (GET + b"content-length: 9999\r\n\r\n", b"y", b"200"),
    "a body before its response": (b"POST /v1/token HTTP/1.1\r\nhost: x\r\ncontent-length: 9999\r\n\r\n", b"y", b"4"),
    "a handshake with a body": (request(content_length="9999"), b"y", b"400"),
}


@pytest.mark.parametrize("case", SLOW)
async def test_a_peer_that_sends_byte_by_byte_is_cut_off_in_time(case: str) -> None:
    start, more, status = SLOW[case]
    async with running(request_timeout_ms=300, heartbeat_interval_ms=600) as rig:
        raw = await Raw.connect(rig)
        raw.writer.write(start)
        sending = asyncio.create_task(trickle(raw, more)) if more else None
        answer = await read_all(raw)
        assert answer.partition(b" ")[2].startswith(status), answer
        if sending is not None:
            sending.cancel()
        assert limited(rig) == ({} if status == b"400" else {"request_timeout": 1})


async def test_a_peer_that_does_not_read_its_response_is_cut_off_in_time() -> None:
    async with running(request_timeout_ms=300, heartbeat_interval_ms=600) as rig:
        rig.update(levels=4_000)
        raw = await Raw.connect(rig, receive_buffer=4096)
        get = f"GET /v1/instruments/{BTC}/book?depth=0 HTTP/1.1\r\nhost: x\r\n\r\n".encode()
        raw.writer.write(get * 40)
        async with asyncio.timeout(10):
            while not limited(rig):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert limited(rig) == {"request_timeout": 1}


async def test_a_client_in_time_is_not_cut_off() -> None:
    async with running(request_timeout_ms=300, heartbeat_interval_ms=600) as rig, client(rig) as one:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{rig.port}") as http:
            for _ in range(8):
                assert (await http.get("/v1/instruments")).status_code == 200
                await asyncio.sleep(0.1)
        await one.send(Ping(1))
        assert isinstance(await one.until(Pong), Pong)
        assert limited(rig) == {}


async def read_all(raw: Raw) -> bytes:
    """Until the server ends it, by a reset if need be."""
    data = b""
    async with asyncio.timeout(10):
        with suppress(ConnectionError):
            while more := await raw.reader.read(4096):
                data += more
    return data


# ---- what a client says


def command(command: Command) -> bytes:
    return masked(Opcode.BINARY, PROTO.encode_command(command))


async def test_the_size_of_a_command() -> None:
    async with running(command_bytes_max=100) as rig:
        raw = await upgraded(rig)
        raw.writer.write(masked(Opcode.BINARY, b"x" * 100))
        assert isinstance(PROTO.decode((await raw.frame())[1])[0], Error)
        raw.writer.write(masked(Opcode.BINARY, b"x" * 101))
        assert await raw.close_code() == CloseCode.MESSAGE_TOO_BIG
        assert limited(rig) == {"command_size": 1}


async def test_the_rate_of_commands() -> None:
    async with running(commands_burst=20, commands_per_s=1) as rig, client(rig) as one:
        await one.send(*(Ping(n) for n in range(1, 50)))
        answers = [await one.next() for _ in range(20)]
        assert all(isinstance(answer, Pong) for answer in answers)
        first = await one.until(Error)
        assert first.code is ErrorCode.LIMIT
        assert (await one.end())[0] == CloseCode.TOO_MANY
        assert limited(rig) == {"command_rate": 10}


async def test_subscriptions_of_one_connection() -> None:
    async with running(subscriptions_max=2) as rig, client(rig) as one:
        for depth in (1, 10, 50):
            await one.send(Subscribe(depth, BTC, Channel.BOOK, depth, 100))
        await one.until(Subscribed)
        await one.until(Subscribed)
        error = await one.until(Error)
        assert (error.id, error.code) == (50, ErrorCode.LIMIT)
        assert limited(rig) == {"subscriptions": 1}


@pytest.mark.parametrize("opcode", [Opcode.PING, Opcode.PONG])
async def test_pings_and_pongs_per_heartbeat(opcode: Opcode) -> None:
    async with running(controls_max=7) as rig:
        raw = await upgraded(rig)
        raw.writer.write(masked(opcode, b"") * 7 + command(Ping(1)))
        while (frame := await raw.frame())[0] == 0x8A:
            pass
        assert isinstance(PROTO.decode(frame[1])[0], Pong)
        raw.writer.write(masked(opcode, b"") * 7)
        assert await raw.close_code() == CloseCode.POLICY_VIOLATION
        assert limited(rig) == {"controls": 1}


async def test_the_budget_of_pings_is_renewed_at_each_heartbeat() -> None:
    async with running(controls_max=4, heartbeat_interval_ms=200) as rig:
        raw = await upgraded(rig)
        for _ in range(3):
            while (await raw.frame())[0] != 0x89:
                pass
            raw.writer.write(masked(Opcode.PONG, b"") + masked(Opcode.PING, b"") * 2)
        assert limited(rig) == {}


async def test_fragments_of_one_message() -> None:
    async with running(fragments_max=5) as rig:
        raw = await upgraded(rig)
        data = PROTO.encode_command(Ping(1))
        empty = masked(Opcode.CONT, b"", fin=False)
        raw.writer.write(masked(Opcode.BINARY, data, fin=False) + empty * 3 + masked(Opcode.CONT, b""))
        assert isinstance(PROTO.decode((await raw.frame())[1])[0], Pong)
        raw.writer.write(masked(Opcode.BINARY, data, fin=False) + empty * 4)
        assert await raw.close_code() == CloseCode.POLICY_VIOLATION
        assert limited(rig) == {"fragments": 1}


async def test_the_age_of_a_connection() -> None:
    async with running(connection_age_max_ms=500, heartbeat_interval_ms=200) as rig, client(rig) as one:
        notice = await one.until(Notice)
        assert notice.code is NoticeCode.SHUTDOWN
        assert 100 <= notice.retry_after_ms < 1_000
        assert (await one.end())[0] == CloseCode.SERVICE_RESTART
        assert limited(rig) == {"connection_age": 1}


async def test_ages_differ_by_up_to_a_tenth() -> None:
    async with running(connection_age_max_ms=1_000_000) as rig:
        now_ns = rig.clock.now_ns()
        ages_s = [(rig.endpoint.clients.retire_ns() - now_ns) / 1e9 for _ in range(200)]
        assert 899 < min(ages_s) < 920
        assert 980 < max(ages_s) <= 1_001


def test_each_limit_has_a_setting_with_a_default_and_a_test_here() -> None:
    assert SETTING_OF.keys() == set(LIMITS)
    assert [setting for setting in SETTING_OF.values() if Settings.model_fields[setting].is_required()] == []
    source = Path(__file__).read_text()
    assert [limit for limit in LIMITS if f'{{"{limit}"' not in source and f'"{limit}")' not in source] == []
