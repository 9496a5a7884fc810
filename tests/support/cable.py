"""A client's connection that a test can cut or hold."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from services.stack import Stack


class Cable:
    """A TCP relay to the streamer, with small buffers. Made by `cable`."""

    def __init__(self, stack: Stack) -> None:
        self._target = (stack.settings.http_host, stack.settings.http_port)
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._writers: list[asyncio.StreamWriter] = []
        self.port = 0

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/v1/stream"

    def cut(self) -> None:
        """Reset all connections; new ones are relayed."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    def hold(self) -> None:
        """Read nothing more from the streamer until `release`."""
        self._flowing.clear()

    def release(self) -> None:
        self._flowing.set()

    async def relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of a client."""
        upstream = socket.socket()
        upstream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        upstream.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(upstream, self._target)
            down, up = await asyncio.open_connection(sock=upstream, limit=2048)
        except OSError:
            upstream.close()
            writer.transport.abort()
            return
        self._writers += [writer, up]
        await asyncio.gather(self._pump(reader, up), self._pump(down, writer, held=True))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, held: bool = False) -> None:
        with suppress(OSError):
            while data := await reader.read(2048):
                if held:
                    await self._flowing.wait()
                writer.write(data)
                await writer.drain()
        writer.close()


@asynccontextmanager
async def cable(stack: Stack) -> AsyncIterator[Cable]:
    """A cable to the streamer of ``stack``."""
    made = Cable(stack)
    server = await asyncio.start_server(made.relay, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        made.release()
        made.cut()
