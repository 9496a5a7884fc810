"""An endpoint over real sockets, without Kafka: the hub is fed directly. And two clients: a library's, and a socket
that says exactly what a test wants."""

import asyncio
import base64
import os
import socket
import ssl
import struct
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeVar

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode
from websockets.typing import Subprotocol

from protos.codec import CODECS, Codec
from protos.messages import (
    BookUpdate,
    Channel,
    Command,
    Flag,
    MarketMessage,
    Notice,
    NoticeCode,
    Scale,
    ServerMessage,
    Subscribe,
    Welcome,
)
from services.auth.store import Store
from services.config import Settings
from services.metrics import Metrics
from services.streamer.app import limits_of
from services.streamer.clock import Clock
from services.streamer.endpoint import Endpoint
from services.streamer.sending import Line
from streamer.hub import Hub

BTC = "binance:spot:BTCUSDT"
PROTO = CODECS["depthcast.v1.proto"]
JSON = CODECS["depthcast.v1.json"]
M = TypeVar("M", bound=ServerMessage)


class Rig:
    """An endpoint with one instrument, and what a test wants of it."""

    def __init__(self, store: Store | None = None, **overrides: object) -> None:
        settings = Settings(http_port=0, **overrides)  # type: ignore[arg-type]
        self.metrics, self.clock = Metrics(), Clock()
        self.hub = Hub(limits_of(settings), Line())
        self.endpoint = Endpoint(settings, self.hub, self.metrics, self.clock, store)
        self.raws: list[Raw] = []
        self.seq = 1
        self.apply(
            BookUpdate(epoch=1, seq=1, flags=Flag.SNAPSHOT, bids=[(100, 5)], asks=[(101, 7)], scale=Scale(-2, -3))
        )
        self.hub.ready = True

    def apply(self, message: MarketMessage) -> None:
        self.hub.apply(BTC, message, self.clock.now_ns())
        self.endpoint.flusher.wake()

    def update(self, levels: int = 1) -> int:
        """One more delta of so many levels; returns its seq."""
        self.seq += 1
        bids = [(100 - 1_000_003 * i, self.seq) for i in range(levels)]
        bids.sort()
        self.apply(BookUpdate(epoch=1, seq=self.seq, prev_seq=self.seq - 1, bids=bids))
        return self.seq

    @property
    def port(self) -> int:
        return self.endpoint.port

    def sample(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"depthcast_{name}", labels) or 0.0

    async def settle(self, connections: int = 0) -> None:
        """Wait until so many connections are open."""
        async with asyncio.timeout(5):
            while self.endpoint.clients.open != connections:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


@asynccontextmanager
async def running(store: Store | None = None, **overrides: object) -> AsyncIterator[Rig]:
    rig = Rig(store, **overrides)
    try:
        await rig.endpoint.start()
        yield rig
    finally:
        for raw in rig.raws:
            raw.writer.close()
        await rig.endpoint.stop()


@dataclass
class Client:
    """A connection of the `websockets` library, and messages that came in the same frame as an earlier one."""

    ws: ClientConnection
    codec: Codec = PROTO
    held: deque[ServerMessage] = field(default_factory=deque)

    async def next(self) -> ServerMessage:
        async with asyncio.timeout(5):
            while not self.held:
                self.held.extend(self.codec.decode(await self.ws.recv(decode=False)))
        return self.held.popleft()

    async def until(self, kind: type[M]) -> M:
        while not isinstance(message := await self.next(), kind):
            pass
        return message

    async def send(self, *commands: Command) -> None:
        for command in commands:
            data = self.codec.encode_command(command)
            await self.ws.send(data if self.codec.binary else data.decode())

    async def end(self) -> tuple[int | None, str | None]:
        """Read to the end: close code and reason."""
        async with asyncio.timeout(5):
            try:
                while True:
                    await self.ws.recv(decode=False)
            except ConnectionClosed:
                return self.ws.close_code, self.ws.close_reason


@asynccontextmanager
async def client(rig: Rig, codec: Codec = PROTO, tls: ssl.SSLContext | None = None) -> AsyncIterator[Client]:
    url = f"{'wss' if tls else 'ws'}://127.0.0.1:{rig.port}/v1/stream"
    protocols = [Subprotocol(codec.name)]
    async with connect(url, subprotocols=protocols, ping_interval=None, max_size=None, ssl=tls) as ws:
        one = Client(ws, codec)
        assert isinstance(await one.next(), Welcome)
        yield one


class Raw:
    """A socket that says exactly what the test says."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, rig: Rig, receive_buffer: int = 0) -> "Raw":
        sock = socket.socket()
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", rig.port))
        raw = cls(*await asyncio.open_connection(sock=sock, limit=1 << 14))
        rig.raws.append(raw)
        return raw

    async def head(self) -> tuple[int, bytes]:
        """The status and the head of the response."""
        async with asyncio.timeout(5):
            head = await self.reader.readuntil(b"\r\n\r\n")
        return int(head.split(b" ", 2)[1]), head

    async def frame(self) -> tuple[int, bytes]:
        async with asyncio.timeout(5):
            first, size = await self.reader.readexactly(2)
            if size == 126:
                (size,) = struct.unpack("!H", await self.reader.readexactly(2))
            elif size == 127:
                (size,) = struct.unpack("!Q", await self.reader.readexactly(8))
            return first, await self.reader.readexactly(size)

    async def close_code(self) -> int:
        """Of the close frame, after whatever else comes."""
        while True:
            first, payload = await self.frame()
            if first == 0x88:
                return int.from_bytes(payload[:2], "big")

    async def end(self) -> bytes:
        """What comes until the server closes."""
        async with asyncio.timeout(5):
            return await self.reader.read(-1)


def request(path: str = "/v1/stream", method: str = "GET", version: str = "HTTP/1.1", **changes: str | None) -> bytes:
    """An upgrade request; ``changes`` set headers (``_`` for ``-``), None leaves one out."""
    headers: dict[str, str | None] = {
        "host": "x",
        "connection": "Upgrade",
        "upgrade": "websocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": base64.b64encode(os.urandom(16)).decode(),
        "sec-websocket-protocol": PROTO.name,
    }
    headers.update({name.replace("_", "-"): value for name, value in changes.items()})
    lines = [f"{method} {path} {version}", *(f"{k}: {v}" for k, v in headers.items() if v is not None)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def masked(opcode: Opcode, data: bytes, fin: bool = True) -> bytes:
    return Frame(opcode, data, fin).serialize(mask=True)


async def upgraded(rig: Rig, codec: Codec = PROTO, receive_buffer: int = 0) -> Raw:
    """A raw connection after its handshake and Welcome."""
    raw = await Raw.connect(rig, receive_buffer)
    raw.writer.write(request(sec_websocket_protocol=codec.name))
    assert (await raw.head())[0] == 101
    await raw.frame()
    return raw


async def slow_and_back(rig: Rig, raw: Raw) -> list[ServerMessage]:
    """The whole book to a client that reads nothing until it is judged slow, then all that there is."""
    raw.writer.write(masked(Opcode.BINARY, PROTO.encode_command(Subscribe(1, BTC, Channel.BOOK))))
    seen: list[ServerMessage] = []
    async with asyncio.timeout(20):
        while not rig.hub.counters.slow_episodes:
            for _ in range(20):
                rig.update(levels=100)
            await asyncio.sleep(0.002)
        last = rig.update()
        while not (seen and isinstance(seen[-1], BookUpdate) and seen[-1].seq == last):
            seen += PROTO.decode((await raw.frame())[1])
    return seen


def check_conflated(seen: list[ServerMessage]) -> list[BookUpdate]:
    """It was told that it is slow, and what it got is one chain, with an update that stands for others."""
    assert any(isinstance(m, Notice) and m.code is NoticeCode.SLOW for m in seen)
    updates = [m for m in seen if isinstance(m, BookUpdate)]
    assert all(after.prev_seq == before.seq or after.flags & Flag.SNAPSHOT for before, after in pairwise(updates))
    assert any(m.flags & (Flag.CONFLATED | Flag.SNAPSHOT) for m in updates[1:])
    return updates
