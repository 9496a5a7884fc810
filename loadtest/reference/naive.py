"""The loop that most people write first: FastAPI, one ``await send_bytes`` per client and update.

python -m loadtest.reference.naive PORT FEED_PORT
"""

import asyncio
import sys
from collections import defaultdict

import uvicorn
from fastapi import FastAPI, WebSocket, WebSocketDisconnect

from loadtest.reference.feed import updates, wanted


def application(listeners: defaultdict[int, set[WebSocket]]) -> FastAPI:
    app = FastAPI()

    @app.websocket("/")
    async def stream(socket: WebSocket) -> None:
        await socket.accept()
        streams = wanted(str(socket.url))
        for stream in streams:
            listeners[stream].add(socket)
        try:
            while True:
                await socket.receive_bytes()
        except WebSocketDisconnect:
            for stream in streams:
                listeners[stream].discard(socket)

    return app


async def serve(port: int, feed_port: int) -> None:
    listeners: defaultdict[int, set[WebSocket]] = defaultdict(set)
    config = uvicorn.Config(application(listeners), port=port, log_level="warning", ws_per_message_deflate=False)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    print("ready", flush=True)
    async for stream, chunk in updates(feed_port):
        for socket in list(listeners[stream]):
            await socket.send_bytes(chunk)
    await serving


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2])))
