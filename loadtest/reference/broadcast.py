"""The `websockets` library's own answer: ``broadcast``, which skips a client's back-pressure.

python -m loadtest.reference.broadcast PORT FEED_PORT
"""

import asyncio
import sys
from collections import defaultdict

from websockets.asyncio.server import ServerConnection, broadcast, serve

from loadtest.reference.feed import updates, wanted


async def main(port: int, feed_port: int) -> None:
    listeners: defaultdict[int, set[ServerConnection]] = defaultdict(set)

    async def handle(connection: ServerConnection) -> None:
        streams = wanted(connection.request.path if connection.request else "")
        for stream in streams:
            listeners[stream].add(connection)
        try:
            await connection.wait_closed()
        finally:
            for stream in streams:
                listeners[stream].discard(connection)

    async with serve(handle, "127.0.0.1", port, compression=None):
        print("ready", flush=True)
        async for stream, chunk in updates(feed_port):
            broadcast(listeners[stream], chunk)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
