"""A client that only reads and decodes."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from protos.codec import CODECS
from protos.messages import Channel, Notice, NoticeCode, ServerMessage, Subscribe

BTC = "binance:spot:BTCUSDT"
CODEC = CODECS["depthcast.v1.proto"]
M = TypeVar("M", bound=ServerMessage)


@dataclass
class Client:
    """A connection and the messages that came with an earlier one, in the same frame."""

    ws: ClientConnection
    held: deque[ServerMessage] = field(default_factory=deque)

    async def until(self, kind: type[M], *, seq: int = 0) -> M:
        """The next message of this kind, at ``seq`` if given."""
        async with asyncio.timeout(5):
            while True:
                while self.held:
                    message = self.held.popleft()
                    if isinstance(message, kind) and (not seq or getattr(message, "seq", seq) == seq):
                        return message
                self.held.extend(CODEC.decode(await self.ws.recv(decode=False)))

    async def noticed(self, code: NoticeCode) -> Notice:
        while (notice := await self.until(Notice)).code is not code:
            pass
        return notice

    async def follow(self, instrument: str = BTC, channel: Channel = Channel.BOOK) -> None:
        await self.ws.send(CODEC.encode_command(Subscribe(1, instrument, channel)))


@asynccontextmanager
async def client(port: int) -> AsyncIterator[Client]:
    url = f"ws://127.0.0.1:{port}/v1/stream"
    async with connect(url, subprotocols=[Subprotocol(CODEC.name)]) as ws:
        yield Client(ws)
