"""Clients in Python: `websockets`, aiohttp, picows, websocket-client."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import picows
import websocket
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from tests.real_clients.puppet import Closed, Puppet


class Websockets:
    ws: ClientConnection

    async def open(self, url: str, subprotocol: str) -> str:
        self.ws = await connect(url, subprotocols=[Subprotocol(subprotocol)])
        return str(self.ws.subprotocol)

    async def send(self, data: str | bytes) -> None:
        await self.ws.send(data)

    async def receive(self) -> str | bytes | Closed:
        try:
            return await self.ws.recv()
        except ConnectionClosed:
            return Closed(self.ws.close_code or 0, self.ws.close_reason or "")

    async def close(self) -> None:
        await self.ws.close()


class Aiohttp:
    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session

    async def open(self, url: str, subprotocol: str) -> str:
        self.ws = await self.session.ws_connect(url, protocols=[subprotocol])
        return str(self.ws.protocol)

    async def send(self, data: str | bytes) -> None:
        await (self.ws.send_str(data) if isinstance(data, str) else self.ws.send_bytes(data))

    async def receive(self) -> str | bytes | Closed:
        message = await self.ws.receive()
        if message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
            data: str | bytes = message.data
            return data
        return Closed(self.ws.close_code or 0, message.extra or "")

    async def close(self) -> None:
        await self.ws.close()


class _Listener(picows.WSListener):
    def __init__(self) -> None:
        self.heard: asyncio.Queue[str | bytes | Closed] = asyncio.Queue()

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        if frame.msg_type is picows.WSMsgType.TEXT:
            self.heard.put_nowait(frame.get_payload_as_utf8_text())
        elif frame.msg_type is picows.WSMsgType.BINARY:
            self.heard.put_nowait(frame.get_payload_as_bytes())
        elif frame.msg_type is picows.WSMsgType.CLOSE:
            self.heard.put_nowait(Closed(int(frame.get_close_code()), frame.get_close_reason() or ""))
            transport.send_close(frame.get_close_code())
            transport.disconnect()


class Picows:
    async def open(self, url: str, subprotocol: str) -> str:
        headers = {"Sec-WebSocket-Protocol": subprotocol}
        self.transport, listener = await picows.ws_connect(_Listener, url, extra_headers=headers)
        self.heard = listener.heard
        return str(self.transport.response.headers["Sec-WebSocket-Protocol"])

    async def send(self, data: str | bytes) -> None:
        kind = picows.WSMsgType.TEXT if isinstance(data, str) else picows.WSMsgType.BINARY
        self.transport.send(kind, data.encode() if isinstance(data, str) else data)

    async def receive(self) -> str | bytes | Closed:
        return await self.heard.get()

    async def close(self) -> None:
        self.transport.send_close(picows.WSCloseCode.OK)


class WebsocketClient:
    """Not asynchronous: each call has a thread."""

    ws: websocket.WebSocket

    async def open(self, url: str, subprotocol: str) -> str:
        self.ws = await asyncio.to_thread(websocket.create_connection, url, timeout=20, subprotocols=[subprotocol])
        return str(self.ws.subprotocol)

    async def send(self, data: str | bytes) -> None:
        opcode = websocket.ABNF.OPCODE_TEXT if isinstance(data, str) else websocket.ABNF.OPCODE_BINARY
        await asyncio.to_thread(self.ws.send, data, opcode)

    async def receive(self) -> str | bytes | Closed:
        opcode, data = await asyncio.to_thread(self.ws.recv_data)
        if opcode == websocket.ABNF.OPCODE_CLOSE:
            self.ws.shutdown()
            return Closed(int.from_bytes(data[:2], "big"), data[2:].decode())
        return data.decode() if opcode == websocket.ABNF.OPCODE_TEXT else bytes(data)

    async def close(self) -> None:
        await asyncio.to_thread(self.ws.send_close, 1000)


@asynccontextmanager
async def websockets_() -> AsyncIterator[Puppet]:
    yield Websockets()


@asynccontextmanager
async def aiohttp_() -> AsyncIterator[Puppet]:
    async with aiohttp.ClientSession() as session:
        yield Aiohttp(session)


@asynccontextmanager
async def picows_() -> AsyncIterator[Puppet]:
    yield Picows()


@asynccontextmanager
async def websocket_client() -> AsyncIterator[Puppet]:
    yield WebsocketClient()
