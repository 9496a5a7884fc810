"""A client on a plain socket that reads as much as a test wants, and keeps its own accounts with the SDK's core."""

import asyncio
import socket
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from types import TracebackType
from typing import Self

from loadtest.wire import OP_BINARY, OP_CLOSE, OP_PING, OP_PONG, FrameReader, client_frame, handshake
from protos.codec import CODECS
from protos.messages import Channel, Flag, NoticeCode, Resume, SlowPolicy
from services.client.core import ClientCore
from services.client.events import BrokenChain, DigestChecked, Event, Noticed, Refused, Started, Updated
from services.client.reconnect import Reconnect, Terminal
from tests.support.slow_market import Market

TURN_S = 0.02
"""A throttled client reads its share of the bytes once in each."""
READ_BYTES = 1 << 16


@dataclass(frozen=True)
class Want:
    """One subscription."""

    instrument: str
    channel: Channel = Channel.BOOK
    depth: int = 0
    interval_ms: int = 0
    slow_policy: SlowPolicy = SlowPolicy.CLOSE


@dataclass
class Accounts:
    """Where every update went, by what one client saw; by channel."""

    delivered: Counter[Channel] = field(default_factory=Counter)
    conflated: Counter[Channel] = field(default_factory=Counter)
    skipped: Counter[Channel] = field(default_factory=Counter)
    digests: int = 0
    told_slow: int = 0
    resumed: list[bool] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    """Whatever no client may see: a silent hole, a wrong digest, a refusal."""


class Reader:
    """An async context manager: connected and subscribed, but nothing is read before `read` or `flow`.

    Args:
        receive_buffer: SO_RCVBUF; 0 leaves it to the kernel.
    """

    def __init__(self, port: int, wants: Sequence[Want], receive_buffer: int = 0) -> None:
        self.core = ClientCore(CODECS["depthcast.v1.proto"])
        self.accounts = Accounts()
        self.subscriptions = [
            self.core.subscribe(want.instrument, want.channel, want.depth, want.interval_ms, want.slow_policy)
            for want in wants
        ]
        self.close_code = 0
        self.ended = ""
        """Why there is no connection; "" while there is one."""
        self.bytes = 0
        self.latencies: list[tuple[float, float]] = []
        """When each update came (monotonic clock), and seconds since it was published."""
        self.local_port = 0
        self._port = port
        self._receive_buffer = receive_buffer
        self._socket: socket.socket | None = None
        self._frames = FrameReader()
        self._positions: dict[int, Resume] = {}
        self._newest_ns: dict[int, int] = {}
        self._flow: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flow(0)
        self._close("")

    async def connect(self) -> None:
        """Also again, after the connection ended: the core resumes."""
        self._close("")
        loop = asyncio.get_running_loop()
        sock = socket.socket()
        sock.setblocking(False)
        if self._receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer)
        await loop.sock_connect(sock, ("127.0.0.1", self._port))
        await loop.sock_sendall(sock, handshake("127.0.0.1", self._port, "/v1/stream"))
        head = b""
        while b"\r\n\r\n" not in head:
            head += await loop.sock_recv(sock, 1)  # not a byte of what follows
        assert head.startswith(b"HTTP/1.1 101"), head
        self._socket, self._frames = sock, FrameReader()
        self.ended, self.close_code = "", 0
        self.local_port = sock.getsockname()[1]
        self.core.connected(time.time_ns())
        await self._send()

    def _close(self, why: str) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self.ended = self.ended or why

    async def _send(self) -> None:
        for command in self.core.commands():
            await self._frame(OP_BINARY, command)

    async def _frame(self, opcode: int, payload: bytes) -> None:
        if self._socket is not None:
            await asyncio.get_running_loop().sock_sendall(self._socket, client_frame(opcode, payload))

    # ---- reading

    async def read(self, bytes_max: int = READ_BYTES) -> int:
        """Read once, and act on it; returns the bytes, 0 when the connection ended."""
        if self._socket is None:
            return 0
        try:
            data = await asyncio.get_running_loop().sock_recv(self._socket, bytes_max)
        except OSError as error:
            self._close(type(error).__name__)
            return 0
        if not data:
            self._close("end of stream")
            return 0
        self.bytes += len(data)
        for opcode, payload in self._frames.feed(data):
            if opcode == OP_BINARY:
                for event in self.core.receive(payload, time.time_ns()):
                    self._account(event)
                await self._send()
            elif opcode == OP_PING:
                await self._frame(OP_PONG, payload)
            elif opcode == OP_CLOSE:
                self.close_code = int.from_bytes(payload[:2], "big")
                await self._frame(OP_CLOSE, payload[:2])
        return len(data)

    def flow(self, bytes_per_s: float) -> None:
        """From now on read so many bytes a second in the background; 0 stops."""
        if self._flow is not None:
            self._flow.cancel()
        self._flow = asyncio.create_task(self._read(bytes_per_s), name="reader") if bytes_per_s else None

    async def _read(self, bytes_per_s: float) -> None:
        loop = asyncio.get_running_loop()
        started, taken = loop.time(), 0
        while not self.ended:
            due = int((loop.time() - started) * bytes_per_s) - taken
            if due > 0:
                taken += await self.read(min(due, READ_BYTES))
            if due < READ_BYTES:
                await asyncio.sleep(TURN_S)

    async def read_to_the_end(self, seconds: float = 20) -> None:
        """Until the server closes."""
        async with asyncio.timeout(seconds):
            while await self.read():
                pass

    async def start(self) -> None:
        """Read until every subscription has its first state."""
        async with asyncio.timeout(20):
            while not all(it.position for it in self.subscriptions):
                assert await self.read(), self.ended

    def disconnected(self) -> Reconnect | Terminal:
        """Tell the core; returns what it says about coming back."""
        verdict = self.core.closed(self.close_code or None, time.time_ns(), Random(1))
        for _ in self.core.stale():
            pass
        return verdict

    # ---- accounting

    def _account(self, event: Event) -> None:
        accounts = self.accounts
        if isinstance(event, Updated):
            self._updated(event)
        elif isinstance(event, Started):
            accounts.resumed.append(event.resumed)
        elif isinstance(event, DigestChecked):
            accounts.digests += event.passed
            if not event.passed:
                accounts.faults.append(f"the digest of {event.seq} differs")
        elif isinstance(event, Noticed):
            self._noticed(event)
        elif isinstance(event, BrokenChain):
            accounts.faults.append(
                f"{event.subscription.channel.name}: a hole between {event.have} and {event.message}"
            )
        elif isinstance(event, Refused):
            accounts.faults.append(event.error.message)

    def _updated(self, event: Updated) -> None:
        it, message, accounts = event.subscription, event.message, self.accounts
        have = self._positions.get(id(it))
        self._positions[id(it)] = Resume(message.epoch, message.seq)
        self._newest_ns[id(it)] = message.ts_received_ns
        if have is None:
            return
        self.latencies.append((time.monotonic(), (time.time_ns() - message.ts_received_ns) / 1e9))
        if message.epoch != have.epoch:
            accounts.faults.append(f"epoch {message.epoch} after {have.epoch}: this market has one")
        elif message.flags & Flag.CONFLATED:
            accounts.conflated[it.channel] += message.seq - have.seq
        elif message.seq == have.seq + 1:
            accounts.delivered[it.channel] += 1
        elif message.seq != have.seq:  # equal: the last trades again, after SKIPPED
            accounts.faults.append(f"{it.channel.name}: {message.seq} after {have.seq}, and nobody said why")

    def _noticed(self, event: Noticed) -> None:
        notice, it = event.notice, event.subscription
        self.accounts.told_slow += notice.code is NoticeCode.SLOW
        if notice.code is NoticeCode.SKIPPED and it is not None:
            have = self._positions.get(id(it), Resume(notice.epoch, 0))
            if have.seq != notice.from_seq:
                self.accounts.faults.append(f"SKIPPED from {notice.from_seq} at {have.seq}")
            self.accounts.skipped[it.channel] += notice.to_seq - notice.from_seq
            self._positions[id(it)] = Resume(notice.epoch, notice.to_seq)

    def newest_ns(self) -> int:
        """Of the book that is furthest behind: when its last update was published."""
        return min(self._newest_ns.get(id(it), 0) for it in self.subscriptions if it.has_book)

    def at(self, market: Market) -> bool:
        """Whether every subscription is at the newest update of the market."""
        return all(
            it.position is not None and it.position.seq == market.seq(market.names.index(it.instrument), it.channel)
            for it in self.subscriptions
        )
