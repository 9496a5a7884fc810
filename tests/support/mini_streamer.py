"""A small streamer on a real socket, which speaks the protocol with the real codecs."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from protos.book import Book
from protos.codec import CODECS, Codec
from protos.messages import (
    BookState,
    BookUpdate,
    Channel,
    Digest,
    Error,
    ErrorCode,
    Flag,
    Notice,
    NoticeCode,
    Ping,
    Pong,
    Resume,
    Scale,
    ServerMessage,
    Side,
    Subscribe,
    Subscribed,
    Trade,
    TradesUpdate,
    Unsubscribe,
    Unsubscribed,
    Welcome,
)

SCALE = Scale(-2, -4)
KNOWN = "sim:spot:BTCUSDT"


class Streamer:
    """Serves one instrument whose book grows by one bid with each update. Speaks the protocol with the real codec."""

    def __init__(self) -> None:
        self.epoch, self.seq = 1, 1
        self.flags = Flag.NONE  # of snapshots, besides SNAPSHOT
        self.heartbeat_ms = 15_000
        self.instruments = [KNOWN]
        self.refuse: list[tuple[int, str]] = []  # (status, Retry-After) of the next handshakes
        self.resumed: list[Resume | None] = []
        self.headers: list[str] = []
        self.sockets: list[ServerConnection] = []
        self.server: Server
        self.greets = True

    @property
    def url(self) -> str:
        port = next(iter(self.server.sockets)).getsockname()[1]
        return f"ws://127.0.0.1:{port}/v1/stream"

    def gate(self, socket: ServerConnection, request: Request) -> Response | None:
        self.headers.append(request.headers.get("Authorization", ""))
        if request.path == "/v1/instruments":
            names = [{"instrument": name} for name in self.instruments]
            return socket.respond(HTTPStatus.OK, json.dumps({"instruments": names}))
        if not self.refuse:
            return None
        status, retry_after = self.refuse.pop(0)
        response = socket.respond(HTTPStatus(status), "no\n")
        if retry_after:
            response.headers["Retry-After"] = retry_after
        return response

    async def handle(self, socket: ServerConnection) -> None:
        codec = CODECS[str(socket.subprotocol)]
        self.sockets.append(socket)
        if self.greets:
            await self.send(socket, codec, Welcome("s", self.heartbeat_ms, 4096, 100))
        with suppress(ConnectionClosed):
            await self.answer(socket, codec)

    async def answer(self, socket: ServerConnection, codec: Codec) -> None:
        async for data in socket:
            assert isinstance(data, bytes) is codec.binary
            command = codec.decode_command(data.encode() if isinstance(data, str) else data)
            if isinstance(command, Ping):
                await self.send(socket, codec, Pong(command.id, 1))
            elif isinstance(command, Unsubscribe):
                await self.send(socket, codec, Unsubscribed(command.id, command.stream))
            elif isinstance(command, Subscribe):
                await self.subscribe(socket, codec, command)

    async def subscribe(self, socket: ServerConnection, codec: Codec, command: Subscribe) -> None:
        if command.instrument != KNOWN:
            await self.send(socket, codec, Error(command.id, ErrorCode.UNKNOWN_INSTRUMENT, "there is no such thing"))
            return
        if command.channel is Channel.TRADES:
            reply = Subscribed(command.id, 2, KNOWN, Channel.TRADES, scale=SCALE, state=BookState.SYNCED)
            await self.send(socket, codec, reply, self.trades())
            return
        resume = command.resume
        self.resumed.append(resume)
        good = resume is not None and resume.epoch == self.epoch
        reply = Subscribed(command.id, 1, KNOWN, command.channel, scale=SCALE, resumed=good, state=BookState.SYNCED)
        update: ServerMessage
        if resume == Resume(self.epoch, self.seq):
            update = Notice(NoticeCode.RECOVERED, 1, self.epoch, self.seq, self.seq)
        elif good and resume is not None:
            seqs = range(resume.seq + 1, self.seq + 1)
            update = BookUpdate(1, self.epoch, self.seq, resume.seq, Flag.CONFLATED, bids=[(seq, 1) for seq in seqs])
        else:
            update = self.snapshot()
        await self.send(socket, codec, reply, update)

    def snapshot(self) -> BookUpdate:
        bids = [(seq, 1) for seq in range(1, self.seq + 1)]
        flags = Flag.SNAPSHOT | self.flags
        return BookUpdate(1, self.epoch, self.seq, 0, flags, bids=bids, asks=[(10**6, 1)], scale=SCALE)

    def trades(self) -> TradesUpdate:
        trades = [Trade(7, 25_000, Side.SELL)]
        return TradesUpdate(2, self.epoch, self.seq, 0, Flag.SNAPSHOT, trades=trades, scale=SCALE)

    def digest(self) -> Digest:
        book = Book()
        book.apply(self.snapshot())
        return Digest(1, self.epoch, self.seq, book.digest())

    def delta(self) -> BookUpdate:
        self.seq += 1
        return BookUpdate(1, self.epoch, self.seq, self.seq - 1, bids=[(self.seq, 1)])

    async def push(self, *messages: ServerMessage) -> None:
        socket = self.sockets[-1]
        await self.send(socket, CODECS[str(socket.subprotocol)], *messages)

    async def send(self, socket: ServerConnection, codec: Codec, *messages: ServerMessage) -> None:
        await socket.send(b"".join(codec.encode(m, SCALE) for m in messages), text=not codec.binary)


@asynccontextmanager
async def streamer() -> AsyncIterator[Streamer]:
    peer = Streamer()
    names = [Subprotocol(name) for name in CODECS]
    async with serve(
        peer.handle, "127.0.0.1", 0, subprotocols=names, process_request=peer.gate, ping_interval=None
    ) as server:
        peer.server = server
        yield peer
