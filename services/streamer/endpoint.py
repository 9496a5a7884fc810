"""The public port: HTTP and streams on one socket, with the flush loop behind them. Knows nothing of Kafka."""

import asyncio
import random
import socket
from functools import partial

from services.auth.exchange import Exchange
from services.auth.gate import Gate
from services.auth.store import Store
from services.config import Settings
from services.metrics import Metrics
from services.serving import Server, bind, listen, tls_options
from services.streamer.clients import Clients
from services.streamer.clock import Clock
from services.streamer.flush import Flusher
from services.streamer.http import create_api
from services.streamer.lobby import Lobby
from services.streamer.upgrade import StreamHttpProtocol
from services.streamer.ws import Connection
from streamer.hub import Hub

SEND_BUFFER_BYTES = 64 << 10
"""The kernel doubles it. By default it grows to 4 MiB per client, where nothing can be conflated."""
NOTSENT_BYTES = 16 << 10
"""What the kernel may hold beyond what is in flight: a client's delay is the network's, not the buffer's."""


class Endpoint:
    """From a hub to its clients.

    Args:
        store: What streamers share; None: as the settings say.

    Raises:
        UserError: The port is taken, the certificate cannot be used, or the settings of who gets in do not add up.
    """

    def __init__(
        self, settings: Settings, hub: Hub, metrics: Metrics, clock: Clock, store: Store | None = None
    ) -> None:
        self.flusher = Flusher(hub, settings, metrics, clock)
        self.gate = Gate(settings, metrics, clock, store)
        self.clients = Clients(hub, settings, metrics, clock, self.flusher.wake, self.gate)
        self._server = Server(
            create_api(hub, self.clients.why_not_ready, self.gate, Exchange(settings)),
            stream_listener(settings),
            tls_timeout_s=settings.request_timeout_ms / 1e3,
            http=partial(StreamHttpProtocol, self.clients, Lobby()),
            ws=Connection,
            **tls_options(settings.ssl_certfile, settings.ssl_keyfile),
        )
        self.tasks: list[asyncio.Task[None]] = []
        """They end by failing only."""

    @property
    def port(self) -> int:
        return self._server.port

    async def start(self) -> None:
        """Accept connections. Streams are refused with 503 until ``hub.ready``."""
        await self._server.start()
        self.tasks = [
            asyncio.create_task(self.flusher.run(self.clients), name="flush"),
            asyncio.create_task(self.clients.run(), name="wheel"),
            asyncio.create_task(self.gate.watch(), name="expiry"),
            asyncio.create_task(self.gate.share(), name="shared state"),
            asyncio.create_task(self.gate.follow(), name="revocations"),
        ]

    async def drain(self, seconds: float) -> None:
        """Accept nothing more, and send every client elsewhere."""
        self._server.stop_accepting()
        await self.clients.drain(seconds, random.SystemRandom())

    async def stop(self) -> None:
        """Close everything."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for member in list(self.clients.members.values()):
            member.abort()
        self.clients.endings.expire_all()
        await self._server.stop()
        await self.gate.store.close()


def stream_listener(settings: Settings) -> socket.socket:
    """The public socket. Connections inherit its options, which saves three system calls for each."""
    if settings.workers == 1:
        listener = listen(settings.http_host, settings.http_port, "DEPTHCAST_HTTP_PORT")
    else:
        listener = bind(settings.http_host, settings.http_port, "DEPTHCAST_HTTP_PORT", shared=True)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOTSENT_BYTES)
    return listener
