"""The asyncio driver of the client core, over the `websockets` library.

    async with connect("ws://127.0.0.1:8080/v1/stream") as client:
        book = await client.subscribe("binance:spot:BTCUSDT", depth=50)
        async for event in client:
            if isinstance(event, Updated) and book.live:
                print(book.book.top(1))

The iteration drives everything: it reads, applies, reconnects. Whoever stops iterating stops reading, so the server
sees a slow client and conflates. No task and no queue stands between the socket and the core.
"""

import asyncio
import time
from collections.abc import Iterator
from random import Random
from types import TracebackType
from typing import Self, cast

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as ws_connect
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.typing import Subprotocol

from protos.codec import CODECS, Codec
from protos.messages import Channel, CloseCode, NoticeCode, SlowPolicy
from services.client.core import ClientCore
from services.client.events import ClientError, Disconnected, Event, FrameError, Noticed, TerminalError
from services.client.reconnect import Terminal
from services.client.subscription import Subscription
from services.client.tokens import TokenSource

DEFAULT_CODEC = "depthcast.v1.proto"
FRAME_BYTES_MAX = 64 * 1024 * 1024
"""A full book of 100,000 levels a side in JSON is 5 MB; more than this is not a book."""
OPEN_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 1.0
TOKEN_TIMEOUT_S = 10.0
_GRACE_S = 1.0
"""After our own pause (a debugger, a suspended laptop) bytes may wait in the kernel; look there before giving up."""


def _steady_ns() -> int:
    """Goes on while a laptop sleeps, where the system has such a clock."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic_ns()


_EPOCH_NS = time.time_ns() - _steady_ns()


def now_ns() -> int:
    """Nanoseconds since 1970 as this machine knew them when the program began. It never steps: else a clock set back by
    five minutes would have a client wait for five minutes before it reconnects."""
    return _steady_ns() + _EPOCH_NS


class _Connection(ClientConnection):
    """Knows when bytes last arrived: pings count as a sign of life, and the library answers those by itself."""

    heard_ns = 0

    def data_received(self, data: bytes) -> None:
        self.heard_ns = now_ns()
        super().data_received(data)


def connect(
    url: str, *, codec: str | Codec = DEFAULT_CODEC, token: str | TokenSource = "", rng: Random | None = None
) -> "Client":
    """A client for ``async with``.

    Args:
        url: Of the stream endpoint, as in ``ws://127.0.0.1:8080/v1/stream``.
        codec: Name of a subprotocol, or the codec itself.
        token: Bearer token for the handshake; or a function that fetches one, which is called for each connection and
            when the server says that the last one expires (`services.client.tokens`).
        rng: For the jitter of reconnects.

    Raises:
        TerminalError: On entering, when the first attempt fails. Later failures are events.
    """
    return Client(url, CODECS[codec] if isinstance(codec, str) else codec, token, rng or Random())  # noqa: S311


class Client:
    """An async iterator of events that reconnects by itself. Made by `connect`."""

    def __init__(self, url: str, codec: Codec, token: str | TokenSource, rng: Random) -> None:
        self.url = url
        self.core = ClientCore(codec)
        self._token = token
        self._rng = rng
        self._socket: _Connection | None = None
        self._events: Iterator[Event] = iter(())
        self._attempt_at_ns = 0
        self._ended = ""

    async def __aenter__(self) -> Self:
        failure = await self._attempt()
        if failure is not None:
            raise TerminalError(failure.why) from None
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; the iteration ends. Idempotent."""
        self._ended = self._ended or "closed"
        socket, self._socket = self._socket, None
        if socket is not None:
            await socket.close()

    async def subscribe(
        self,
        instrument: str,
        channel: Channel | str = Channel.BOOK,
        depth: int = 0,
        interval_ms: int = 0,
        slow_policy: SlowPolicy = SlowPolicy.CLOSE,
    ) -> Subscription:
        """Want a stream. Returns at once; `Started` or `Refused` follows among the events.

        Args:
            instrument: As in ``binance:spot:BTCUSDT``.
            channel: book, bbo, trades, raw or status.
            depth: Of a book, per side: 1, 10, 50, 200, or 0 for all of it.
            interval_ms: Of a book: 50, 100, 250, 1000, or 0 for every update.
            slow_policy: What happens to trades when we cannot keep up.
        """
        if isinstance(channel, str):
            channel = Channel[channel.upper()]
        subscription = self.core.subscribe(instrument, channel, depth, interval_ms, slow_policy)
        await self._send()
        return subscription

    async def unsubscribe(self, subscription: Subscription) -> None:
        """No longer want it. Its updates stop at once."""
        self.core.unsubscribe(subscription)
        await self._send()

    async def ping(self) -> None:
        """Measure the round trip and the clocks' offset; `Ponged` follows among the events."""
        self.core.ping(now_ns())
        await self._send()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """The next event.

        Raises:
            TerminalError: The server's close code or status says that reconnecting would not help.
            StopAsyncIteration: `close` was called.
        """
        while True:
            try:
                event = next(self._events, None)
            except FrameError as error:
                event = await self._abandon(CloseCode.PROTOCOL_ERROR, str(error))
            if event is not None:
                if isinstance(event, Noticed) and event.notice.code is NoticeCode.AUTH_EXPIRING:
                    await self._renew()
                return event
            if self._ended:
                raise StopAsyncIteration
            failure = await (self._attempt() if self._socket is None else self._read(self._socket))
            if failure is not None:
                return failure

    async def _read(self, socket: _Connection) -> Disconnected | None:
        """Wait for the next frame, or for the end of the connection."""
        await self._send()
        try:
            async with asyncio.timeout(max(_GRACE_S, (self.core.dead_at_ns - now_ns()) / 1e9)):
                frame = await socket.recv(decode=False)
        except TimeoutError:
            self.core.heard(max(socket.heard_ns, self.core.heard_ns))
            if now_ns() < self.core.dead_at_ns:
                return None
            return await self._abandon(CloseCode.HEARTBEAT_TIMEOUT, "nothing heard for 2.5 heartbeats")
        except ConnectionClosed as error:
            if self._ended:  # our own close(), called beside the iteration
                return None
            self._socket = None
            return self._lost(error.rcvd.code if error.rcvd else None, error.rcvd.reason if error.rcvd else "")
        self._events = self.core.receive(frame, now_ns())
        return None

    async def _send(self) -> None:
        socket = self._socket
        if socket is None:
            return
        try:
            for command in self.core.commands():
                await socket.send(command, text=not self.core.codec.binary)
        except ConnectionClosed:
            return  # the next read says why

    async def _fetch_token(self) -> str:
        if isinstance(self._token, str):
            return self._token
        async with asyncio.timeout(TOKEN_TIMEOUT_S):
            return await self._token()

    async def _renew(self) -> None:
        """Show another token. Without one the server closes when the old one has expired, and we come back."""
        if isinstance(self._token, str):
            return
        try:
            self.core.auth(await self._fetch_token())
        except (ClientError, OSError, TimeoutError):
            return
        await self._send()

    async def _abandon(self, code: CloseCode, why: str) -> Disconnected:
        """The connection is of no use: leave it without waiting for the other side's word."""
        socket, self._socket = self._socket, None
        if socket is not None:
            await socket.close(code, why[:120])
        return self._lost(None, why)

    async def _attempt(self) -> Disconnected | None:
        """Wait for the time of the next attempt, then connect."""
        await asyncio.sleep((self._attempt_at_ns - now_ns()) / 1e9)
        try:
            token = await self._fetch_token()
        except TerminalError as error:
            self._ended = str(error)
            raise
        except (ClientError, OSError, TimeoutError) as error:
            return self._lost(None, _reason(error))
        try:
            socket = await ws_connect(
                self.url,
                subprotocols=[Subprotocol(self.core.codec.name)],
                additional_headers={"Authorization": f"Bearer {token}"} if token else {},
                compression=None,
                create_connection=_Connection,
                open_timeout=OPEN_TIMEOUT_S,
                close_timeout=CLOSE_TIMEOUT_S,
                ping_interval=None,
                max_size=FRAME_BYTES_MAX,
            )
        except InvalidStatus as error:
            headers = error.response.headers
            return self._lost(None, "", status=error.response.status_code, retry_after_ms=_retry_after_ms(headers))
        except InvalidURI as error:
            raise TerminalError(f"{self.url} is no WebSocket address: {error}") from None
        except (OSError, InvalidHandshake, TimeoutError) as error:
            return self._lost(None, f"cannot connect to {self.url}: {_reason(error)}")
        self._socket = cast("_Connection", socket)
        if socket.subprotocol != self.core.codec.name:
            return await self._abandon(CloseCode.PROTOCOL_ERROR, f"{self.url} does not speak {self.core.codec.name}")
        self.core.connected(now_ns())
        return None

    def _lost(self, code: int | None, why: str, *, status: int = 0, retry_after_ms: int = 0) -> Disconnected:
        if code == CloseCode.UNAUTHORIZED and not isinstance(self._token, str):  # expired while nobody could renew it
            code = None
        at_ns = now_ns()
        verdict = self.core.closed(code, at_ns, self._rng, status=status, retry_after_ms=retry_after_ms)
        if isinstance(verdict, Terminal):
            self._ended = verdict.reason
            raise TerminalError(verdict.reason + (f": {why}" if why else ""))
        self._attempt_at_ns = at_ns + verdict.delay_ms * 1_000_000
        self._events = self.core.stale()
        return Disconnected(why or verdict.why, verdict.delay_ms)


def _reason(error: Exception) -> str:
    """One line, in words."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _retry_after_ms(headers: Headers) -> int:
    """Retry-After in seconds (RFC 9110 section 10.2.3); the form with a date is not used by our server."""
    text = headers.get("Retry-After", "")
    return int(text) * 1000 if text.isdecimal() and len(text) < 7 else 0
