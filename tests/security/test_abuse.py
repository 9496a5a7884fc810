"""Requests and commands that no client sends by mistake: each gets a defined end, and none a traceback."""

import asyncio
import os
import random

import pytest
from websockets.frames import Opcode

from protos.codec import CODECS
from protos.messages import Channel, CloseCode, Error, Ping, Pong, Subscribe
from tests.support.endpoint import BTC, PROTO, Raw, client, masked, request, running, upgraded

pytestmark = pytest.mark.security

GET = b"GET /v1/instruments HTTP/1.1\r\nhost: x\r\n\r\n"
BOOK = f"GET /v1/instruments/{BTC}/book?depth=0 HTTP/1.1\r\nhost: x\r\n\r\n".encode()
H2C = b"GET /v1/instruments HTTP/1.1\r\nhost: x\r\nconnection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\n\r\n"

BEHIND = {
    "a WebSocket handshake": request() + masked(Opcode.BINARY, PROTO.encode_command(Ping(1))),
    "a wrong WebSocket handshake": request(sec_websocket_version="8"),
    "garbage": b"\x00\xff garbage\r\n\r\n",
    "a head that is too large": request(cookie="x" * 20_000),
    "two Hosts": b"GET / HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}


@pytest.mark.parametrize("case", BEHIND)
async def test_what_follows_an_unanswered_request_does_not_come_before_its_response(case: str) -> None:
    async with running() as rig:
        raw = await Raw.connect(rig)
        raw.writer.write(GET * 3 + BEHIND[case])
        answer = await raw.end()
        assert answer.count(b"HTTP/1.1 ") == answer.count(b"HTTP/1.1 200 OK\r\n") == 3
        assert answer.rpartition(b"HTTP/1.1")[2].lower().count(b"connection: close") == 1
        assert answer.endswith(b"}]}")
        assert rig.sample("connects_total") == 0


async def test_an_answered_request_does_not_stand_in_the_way_of_a_handshake() -> None:
    async with running() as rig:
        raw = await Raw.connect(rig)
        raw.writer.write(GET)
        assert (await raw.head())[0] == 200
        await raw.reader.readuntil(b"}]}")
        raw.writer.write(request())
        assert (await raw.head())[0] == 101
        assert (await raw.frame())[0] == 0x82


async def test_a_handshake_behind_responses_that_nobody_reads_is_not_obeyed() -> None:
    """The transport would not tell the stream that it is full, and all of a stream would pile up in it."""
    async with running() as rig:
        rig.update(levels=4_000)
        raw = await Raw.connect(rig, receive_buffer=4096)
        for _ in range(40):
            raw.writer.write(BOOK)
            await asyncio.sleep(0.002)
        raw.writer.write(request())
        async with asyncio.timeout(10):
            while not raw.reader.at_eof():
                assert b"101 Switching" not in await raw.reader.read(1 << 16)
        assert rig.sample("connects_total") == 0


async def test_an_upgrade_to_http_2_is_declined_and_holds_no_socket() -> None:
    async with running() as rig:
        raw = await Raw.connect(rig)
        raw.writer.write(H2C + GET)
        answer = await raw.end()
        assert answer.count(b"HTTP/1.1 200 OK") == 1
        assert b"connection: close" in answer


TARGETS = {
    "an unclosed bracket": ("//[", 404, 404),
    "an address of nothing": ("http://[::/v1/stream", 404, 400),
    "an asterisk": ("*", 404, 404),
    "a dot segment": ("/v1/../v1/stream", 404, 404),
    "an escaped slash": ("/v1%2fstream", 404, 426),
    "a NUL": ("/v1/stream\x00", 400, 400),
    "beyond ASCII": ("/v1/str\xe9am", 400, 400),
    "absolute form": ("http://x/v1/stream", 101, 426),
    "a query": ("/v1/stream?a=b&c=%00", 101, 426),
    "only a query": ("?a=b", 400, 400),
}
"""Target, and the status as a handshake and as a plain request. Only the one path is a stream, as it is written."""


@pytest.mark.parametrize("case", TARGETS)
async def test_odd_request_targets(case: str) -> None:
    target, *statuses = TARGETS[case]
    async with running() as rig:
        for connection, status in zip(("Upgrade", "close"), statuses, strict=True):
            raw = await Raw.connect(rig)
            raw.writer.write(request(connection=connection).replace(b"/v1/stream", target.encode("latin-1")))
            assert (await raw.head())[0] == status, connection


@pytest.mark.parametrize("method", ["POST", "HEAD", "OPTIONS", "CONNECT", "TRACE", "PUT", "FOO"])
async def test_methods_other_than_get_do_not_open_a_stream(method: str) -> None:
    async with running() as rig:
        raw = await Raw.connect(rig)
        raw.writer.write(request(method=method))
        assert (await raw.head())[0] in (400, 405)
        await raw.end()
        assert rig.sample("connects_total") == 0


@pytest.mark.parametrize("name", CODECS)
async def test_ten_bad_commands_of_any_kind_end_a_connection_with_4400(name: str) -> None:
    codec = CODECS[name]
    rng = random.Random(name)
    good = [codec.encode_command(Subscribe(1, BTC, Channel.BOOK)), codec.encode_command(Ping(2))]
    async with running() as rig, client(rig, codec) as one:
        for n in range(10):
            data = bytearray(good[n % 2])
            data[rng.randrange(len(data))] = 0xFF if codec.binary else ord("\x7f")
            data += b"\xc1" if codec.binary else b"}"
            await one.ws.send(bytes(data) if codec.binary else bytes(data).decode())
            assert isinstance(await one.until(Error), Error)
        assert (await one.end())[0] == CloseCode.BAD_COMMANDS


@pytest.mark.parametrize("name", CODECS)
async def test_noise_ends_with_a_documented_code_and_disturbs_nobody(name: str) -> None:
    codec = CODECS[name]
    rng = random.Random(f"noise {name}")
    opcode = Opcode.BINARY if codec.binary else Opcode.TEXT
    async with running() as rig, client(rig, codec) as bystander:
        for _ in range(30):
            raw = await upgraded(rig, codec)
            noise = rng.randbytes(rng.randrange(1, 400))
            raw.writer.write(masked(opcode, noise) + noise if rng.random() < 0.5 else noise + os.urandom(4096))
            raw.writer.write_eof()
            await raw.end()
            raw.writer.close()
        await rig.settle(1)
        await bystander.send(Ping(9))
        assert isinstance(await bystander.until(Pong), Pong)
        assert rig.sample("disconnects_total", code="1011") == 0
        assert rig.sample("disconnects_total", code="other") == 0
