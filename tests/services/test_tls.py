"""wss and https on the public port: the same protocol, and the same fate of slow clients, through TLS transports."""

import asyncio
import random
import socket
import ssl
from pathlib import Path

import httpx
import pytest
import trustme
from websockets.frames import Opcode

from protos.messages import BookUpdate, Channel, CloseCode, Notice, NoticeCode, Subscribe
from services.config import Settings
from services.errors import UserError
from services.serving import tls_options
from tests.support.endpoint import (
    BTC,
    PROTO,
    Client,
    Raw,
    Rig,
    check_conflated,
    client,
    masked,
    request,
    running,
    slow_and_back,
)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def files(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The two settings."""
    directory = tmp_path_factory.mktemp("tls")
    issued = authority.issue_cert("127.0.0.1")
    paths = {"ssl_certfile": directory / "chain.pem", "ssl_keyfile": directory / "key.pem"}
    issued.private_key_pem.write_to_path(paths["ssl_keyfile"])
    for blob in issued.cert_chain_pems:
        blob.write_to_path(paths["ssl_certfile"], append=True)
    return paths


@pytest.fixture(scope="module")
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def _subscribed(one: Client) -> None:
    await one.send(Subscribe(1, BTC, Channel.BOOK))
    await one.until(BookUpdate)


async def test_every_update_arrives_in_order(files: dict[str, Path], trusting: ssl.SSLContext) -> None:
    async with running(**files) as rig, client(rig, tls=trusting) as one:
        await _subscribed(one)
        for _ in range(300):
            last = rig.update(levels=20)
            if last % 10 == 0:
                await asyncio.sleep(0)
        seen = []
        while not seen or seen[-1].seq != last:
            seen.append(await one.until(BookUpdate))
        assert [(u.prev_seq, u.seq) for u in seen] == [(seq - 1, seq) for seq in range(2, last + 1)]
        assert {outbox.queue.socket for outbox in rig.hub.outboxes} == {-1}, "nobody writes past TLS"


async def test_https_answers_on_the_same_port(files: dict[str, Path], trusting: ssl.SSLContext) -> None:
    async with running(**files) as rig, httpx.AsyncClient(verify=trusting) as http:
        answer = await http.get(f"https://127.0.0.1:{rig.port}/v1/instruments")
        assert [found["instrument"] for found in answer.json()["instruments"]] == [BTC]


async def _secret(rig: Rig, context: ssl.SSLContext) -> Raw:
    """A TLS connection with small buffers, after its handshake."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", rig.port))
    raw = Raw(*await asyncio.open_connection(sock=sock, ssl=context, server_hostname="127.0.0.1", limit=1 << 14))
    rig.raws.append(raw)
    raw.writer.write(request())
    assert (await raw.head())[0] == 101
    await raw.frame()
    return raw


async def test_a_client_that_pauses_is_conflated_and_its_chain_stays_whole(
    files: dict[str, Path], trusting: ssl.SSLContext
) -> None:
    async with running(**files) as rig:
        raw = await _secret(rig, trusting)
        check_conflated(await slow_and_back(rig, raw))


async def test_a_client_that_never_reads_is_closed(files: dict[str, Path], trusting: ssl.SSLContext) -> None:
    async with running(outbox_stall_ms=500, **files) as rig:
        raw = await _secret(rig, trusting)
        raw.writer.write(masked(Opcode.BINARY, PROTO.encode_command(Subscribe(1, BTC, Channel.RAW))))
        async with asyncio.timeout(20):
            while not rig.hub.counters.overflows:
                rig.update(levels=100)
                await asyncio.sleep(0.002)
        await rig.settle()
        assert rig.sample("disconnects_total", code="4008") == 1


async def test_drain_warns_and_closes(files: dict[str, Path], trusting: ssl.SSLContext) -> None:
    async with running(**files) as rig, client(rig, tls=trusting) as one:
        await _subscribed(one)
        draining = asyncio.create_task(rig.endpoint.clients.drain(0.3, random.Random(1)))
        assert (await one.until(Notice)).code is NoticeCode.SHUTDOWN
        assert (await one.end())[0] == CloseCode.SERVICE_RESTART
        await draining
        await rig.settle()


HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"


@pytest.mark.security
@pytest.mark.parametrize("started", [b"", HELLO], ids=["nothing", "half a hello"])
async def test_a_tls_handshake_that_does_not_come_to_an_end_is_cut_off_in_time(
    files: dict[str, Path], started: bytes
) -> None:
    async with running(request_timeout_ms=300, **files) as rig:
        raw = await Raw.connect(rig)
        raw.writer.write(started)
        assert await raw.end() == b""


async def test_plain_text_on_a_tls_port_is_refused(files: dict[str, Path]) -> None:
    async with running(**files) as rig:
        raw = await Raw.connect(rig)
        raw.writer.write(request())
        assert b"HTTP" not in await raw.end()


def test_files_that_do_not_fit_are_one_clear_line(
    files: dict[str, Path], authority: trustme.CA, tmp_path: Path
) -> None:
    other = tmp_path / "other.pem"
    authority.issue_cert("127.0.0.1").private_key_pem.write_to_path(other)
    with pytest.raises(UserError, match=r"cannot use .*chain\.pem with key .*other\.pem: .*MISMATCH"):
        tls_options(files["ssl_certfile"], other)
    with pytest.raises(UserError, match=r"cannot use .*other\.pem"):
        tls_options(other, None)
    with pytest.raises(UserError, match="needs DEPTHCAST_SSL_CERTFILE"):
        tls_options(None, files["ssl_keyfile"])
    assert tls_options(None, None) == {}
    assert str(Settings(**files).ssl_certfile) == str(files["ssl_certfile"])  # type: ignore[arg-type]
