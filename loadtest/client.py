"""One WebSocket connection of a load test: an asyncio protocol without task or queue, so that 10,000 fit a process."""

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from loadtest.errors import LoadTestError
from loadtest.receiver import BROKEN, ENDED, UNLIMITED, Receiver
from loadtest.wire import OP_CLOSE, OP_PING, OP_PONG, client_frame

HANDSHAKE_BYTES_MAX = 16_384
PORTS_PER_ADDRESS = 20_000
"""Connections from one of our addresses to one port of the server: Linux has 28,000 ports for them by default."""
_CONNECT_S = 20.0
"""For one connection."""


class Watcher(Protocol):
    """Who is told what happens on the connections."""

    def opened(self, client: "LoadClient") -> None:
        """The handshake is done."""

    def closed(self, client: "LoadClient", code: int) -> None:
        """The connection ended; ``code`` as in RFC 6455 section 7.4, 1006 without a close frame, 0 before it opened."""


class LoadClient(asyncio.Protocol):
    """Handshake, pongs, close. What comes after the handshake is read and counted by the receiver.

    ``read_to`` stops reading, which is what a slow consumer is to a server.
    """

    __slots__ = (
        "_attached",
        "_close_code",
        "_hello",
        "_open",
        "_receiver",
        "_transport",
        "_watcher",
        "index",
        "refusal",
    )

    def __init__(self, index: int, hello: bytes, watcher: Watcher, receiver: Receiver) -> None:
        self.index = index
        self.refusal = ""
        """The status line with which the server refused the handshake."""
        self._hello = hello
        self._watcher = watcher
        self._receiver = receiver
        self._open = False
        self._attached = False
        self._close_code = 0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's is not a subclass of asyncio's
        self.send(self._hello)
        self._hello = b""

    def data_received(self, data: bytes) -> None:
        if self._open:
            self._receiver.feed(self.index, data)
            self._mind_the_limit()
        else:
            self._handshake(data)

    def _handshake(self, data: bytes) -> None:
        self._hello += data
        head, found, rest = self._hello.partition(b"\r\n\r\n")
        if found and head.startswith(b"HTTP/1.1 101"):
            self._open = True
            self._close_code = 1006
            self._hello = b""
            self._receiver.begin(self.index)
            self._watcher.opened(self)
            self._receiver.feed(self.index, rest)
            self._attach()
        elif found or len(self._hello) > HANDSHAKE_BYTES_MAX:
            self.refusal = head[:100].partition(b"\r\n")[0].decode("ascii", "replace")
            self.abort()

    def _attach(self) -> None:
        """Let the receiver read, if it can; it cannot decrypt."""
        transport = self._transport
        if transport is None or transport.is_closing() or transport.get_extra_info("sslcontext") is not None:
            return
        self._attached = self._receiver.attach(self.index, transport.get_extra_info("socket").fileno())
        if self._attached:
            transport.pause_reading()

    def _detach(self) -> None:
        if self._attached:
            self._attached = False
            self._receiver.detach(self.index)

    def handed(self, what: int, payload: bytes) -> None:
        """A control frame, or how reading ended."""
        if what == OP_PING:
            self.send(client_frame(OP_PONG, payload))
        elif what == OP_CLOSE:
            self._close_code = int.from_bytes(payload[:2], "big") if len(payload) >= 2 else 1005
            self.send(client_frame(OP_CLOSE, payload[:2]))
            if self._transport is not None:
                self._transport.close()
        elif what == BROKEN:
            self._close_code = 1002
            self.abort()
        elif what == ENDED:
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._detach()
        self._transport = None
        self._watcher.closed(self, self._close_code)

    @property
    def connected(self) -> bool:
        return self._transport is not None

    def send(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def read_to(self, size: int = UNLIMITED) -> None:
        """Read until ``size`` bytes have come in all since the counts began, and no further."""
        self._receiver.limit(self.index, size)
        if not self._attached:
            self._mind_the_limit()

    def _mind_the_limit(self) -> None:
        counts, transport = self._receiver.counts[self.index], self._transport
        if self._attached or transport is None or transport.is_closing():
            return
        if counts.bytes >= counts.limit:
            transport.pause_reading()
        elif not transport.is_reading():
            transport.resume_reading()

    def abort(self) -> None:
        """Cut the connection without a word."""
        self._detach()
        if self._transport is not None:
            self._transport.abort()


@dataclass(slots=True, frozen=True)
class Address:
    """Where to connect; with ``tls``, over TLS."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None


async def connect_all(
    address: Address, clients: Sequence[LoadClient], receive_buffer: Callable[[int], int], *, at_once: int
) -> None:
    """Connect each client, ``at_once`` under way at a time; the first failure ends it.

    Args:
        receive_buffer: Says for each client the bytes of the kernel's buffer (SO_RCVBUF); 0 leaves it to the kernel.

    Raises:
        LoadTestError: The server refuses connections.
    """
    waiting = iter(clients)

    async def some() -> None:
        for client in waiting:
            await connect(address, client, receive_buffer(client.index))

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(at_once, len(clients))):
                group.create_task(some())
    except* LoadTestError as errors:
        raise errors.exceptions[0] from None


async def connect(address: Address, client: LoadClient, receive_buffer: int = 0) -> None:
    """Open the connection of one client, from one of 127.0.0.0/8 when there are more than one address has ports.

    Raises:
        LoadTestError: It cannot be opened.
    """
    loop = asyncio.get_running_loop()
    host = address.host
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        ours = client.index // PORTS_PER_ADDRESS
        if ours and host.startswith("127."):
            sock.bind((f"127.0.0.{1 + ours}", 0))
        async with asyncio.timeout(_CONNECT_S):
            await loop.sock_connect(sock, (host, address.port))
            name = host if address.tls else None
            await loop.create_connection(lambda: client, sock=sock, ssl=address.tls, server_hostname=name)
    except OSError as error:  # a time-out is one, too
        sock.close()
        raise LoadTestError(f"cannot connect to {host}:{address.port}: {_why(error)}") from None


def _why(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return f"{getattr(error, 'verify_message', '') or error.reason or error}; give its authority with --ca-file"
    if isinstance(error, TimeoutError):
        return f"no answer in {_CONNECT_S:.0f} s"
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine has no port left for another connection to it; use fewer clients, or several machines"
    return f"{error.strerror or error}; is the server running?"
