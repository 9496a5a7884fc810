"""The reference servers' input: records of u32 length and u32 stream (little-endian), then ``length`` bytes."""

import asyncio
import struct
from collections.abc import AsyncIterator

RECORD = struct.Struct("<II")


def record(stream: int, chunk: bytes) -> bytes:
    """One update for the feed connection."""
    return RECORD.pack(len(chunk), stream) + chunk


async def updates(port: int) -> AsyncIterator[tuple[int, bytes]]:
    """(stream, chunk) of the one publisher that connects to 127.0.0.1:``port``, until it closes."""
    arrived: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
    server = await asyncio.start_server(lambda reader, writer: arrived.put((reader, writer)), "127.0.0.1", port)
    async with server:
        reader, writer = await arrived.get()
        try:
            while True:
                length, stream = RECORD.unpack(await reader.readexactly(RECORD.size))
                yield stream, await reader.readexactly(length)
        except asyncio.IncompleteReadError:
            return
        finally:
            writer.close()


def wanted(path: str) -> frozenset[int]:
    """Streams asked for by a request path like ``/?streams=1,2,3``."""
    _, _, ids = path.partition("streams=")
    return frozenset(int(part) for part in ids.split(",") if part)
