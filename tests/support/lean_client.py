"""A client of the SDK's core over as little transport as there can be, so that thousands fit a core of a busy machine.

What decides is the SDK's: subscriptions, books, digests, when to come back. Handshake and frames are the load test's.
"""

import asyncio
from random import Random
from urllib.parse import urlsplit

from loadtest.wire import OP_BINARY, OP_CLOSE, OP_PING, OP_PONG, FrameReader, client_frame, handshake
from protos.codec import CODECS
from services.client.aio import DEFAULT_CODEC, OPEN_TIMEOUT_S, now_ns
from services.client.core import ClientCore
from services.client.events import Disconnected
from services.client.reconnect import Terminal
from tests.support.witness import Witness

ABNORMAL = 1006


class LeanClient(Witness):
    """Connects, and comes back whenever the core says so, until `stop`."""

    def __init__(self, url: str, rng: Random) -> None:
        super().__init__()
        self.core = ClientCore(CODECS[DEFAULT_CODEC])
        self.subscriptions = self.core.subscriptions
        self.ended = ""
        self.attempts = 0
        self._address = urlsplit(url)
        self._rng = rng
        self._wire: _Wire | None = None
        self._attempt: asyncio.Task[None] | None = None

    def start(self, delay_s: float = 0.0) -> None:
        """Try to connect after ``delay_s``."""
        asyncio.get_running_loop().call_later(delay_s, self._start)

    def stop(self) -> None:
        self.ended = self.ended or "stopped"
        if self._attempt is not None:
            self._attempt.cancel()
        if self._wire is not None:
            self._wire.cut()

    def _start(self) -> None:
        if not self.ended:
            self._attempt = asyncio.create_task(self._connect())

    async def _connect(self) -> None:
        address, loop = self._address, asyncio.get_running_loop()
        host, port = address.hostname or "", address.port or 0
        self.attempts += 1
        wire = _Wire(self, handshake(host, port, address.path))
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                await loop.create_connection(lambda: wire, host, port)
                await wire.answered.wait()
        except OSError as error:  # a time-out is one, too
            wire.cut()
            self.lost_it(wire, None, str(error) or "no answer in time")

    def opened(self, wire: "_Wire") -> None:
        self._wire = wire
        self.core.connected(now_ns())
        self.speak()

    def speak(self) -> None:
        """Send what the core has to say."""
        if self._wire is not None:
            for command in self.core.commands():
                self._wire.send(OP_BINARY, command)

    def frame(self, payload: bytes) -> None:
        for event in self.core.receive(payload, now_ns()):
            self.see(event)
        self.speak()

    def lost_it(self, wire: "_Wire", code: int | None, why: str, status: int = 0, retry_after_s: int = 0) -> None:
        """A connection ended, or an attempt failed."""
        if self.ended or wire.over:
            return
        wire.over = True
        self._wire = None
        verdict = self.core.closed(code, now_ns(), self._rng, status=status, retry_after_ms=1000 * retry_after_s)
        if isinstance(verdict, Terminal):
            self.ended = verdict.reason
            self.faults.append(f"{verdict.reason}: {why}")
            return
        for event in self.core.stale():
            self.see(event)
        self.see(Disconnected(why or verdict.why, verdict.delay_ms))
        self.start(verdict.delay_ms / 1e3)


class _Wire(asyncio.Protocol):
    """One connection, or one attempt."""

    def __init__(self, client: LeanClient, hello: bytes) -> None:
        self.answered = asyncio.Event()
        self.over = False
        self._client = client
        self._hello = hello
        self._head = b""
        self._reader = FrameReader()
        self._transport: asyncio.WriteTransport | None = None
        self._end: tuple[int | None, str] = (None, "")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport
        transport.write(self._hello)

    def data_received(self, data: bytes) -> None:
        if not self.answered.is_set():
            self._head += data
            head, found, data = self._head.partition(b"\r\n\r\n")
            if not found:
                return
            self.answered.set()
            status = int(head.split(None, 2)[1])
            if status != 101:
                self._refused(status, head.decode("latin-1"))
                return
            self._client.opened(self)
        for opcode, payload in self._reader.feed(data):
            self._on_frame(opcode, payload)

    def _refused(self, status: int, head: str) -> None:
        lines = [line.partition(":") for line in head.lower().splitlines()[1:]]
        retry_after_s = next((int(value) for name, _, value in lines if name == "retry-after"), 0)
        self._client.lost_it(self, None, "", status, retry_after_s)
        self.cut()

    def _on_frame(self, opcode: int, payload: bytes) -> None:
        if opcode == OP_BINARY:
            self._client.frame(payload)
        elif opcode == OP_PING:
            self.send(OP_PONG, payload)
        elif opcode == OP_CLOSE:
            self._end = int.from_bytes(payload[:2], "big"), payload[2:].decode()
            self.send(OP_CLOSE, payload[:2])
            if self._transport is not None:
                self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.answered.set()
        self._transport = None
        self._client.lost_it(self, self._end[0], self._end[1] or str(exc or ""))

    def send(self, opcode: int, payload: bytes) -> None:
        if self._transport is not None:
            self._transport.write(client_frame(opcode, payload))

    def cut(self) -> None:
        """End it without a word."""
        if self._transport is not None:
            self._transport.abort()
