"""A TCP proxy that does to connections what networks do: delay, reset, swallow, half-close.

It runs on a thread of its own, so that it goes on while a test's event loop does not. Faults are set from any thread;
they hold for open connections and new ones.
"""

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

_CHUNK = 64 << 10


class Proxy:
    """One listening port before one address. Start, use ``port``, stop.

    Attributes:
        counts: Of ``connections``, ``refused``, ``resets``, ``half_closes`` and ``swallowed`` bytes: that a fault was.
    """

    def __init__(self, target: tuple[str, int], port: int = 0) -> None:
        self.target = target
        self.port = port
        self.counts: Counter[str] = Counter()
        self._delay_s = 0.0
        self._swallow = {"up": False, "down": False}
        self._refusing = False
        self._cut_answer = False
        self._pairs: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._server: asyncio.Server

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        self._thread.start()
        listener = socket.create_server(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        serving = asyncio.start_server(self._relay, sock=listener, limit=_CHUNK)
        self._server = asyncio.run_coroutine_threadsafe(serving, self._loop).result(10)

    def stop(self) -> None:
        async def end() -> None:
            self._server.close()
            self._abort_all()
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    # -- faults

    def delay(self, seconds: float) -> None:
        """Each piece of data waits for so long, in both directions."""
        self._delay_s = seconds

    def blackhole(self, *, up: bool = True, down: bool = True) -> None:
        """Take data and pass nothing on: towards the target, back from it. Nobody is told."""
        self._swallow = {"up": up, "down": down}

    def heal(self) -> None:
        """Pass data on, at once, and take connections. What was swallowed is gone: those connections are reset."""
        swallowed = any(self._swallow.values())
        self._delay_s, self._refusing, self._cut_answer = 0.0, False, False
        self._swallow = {"up": False, "down": False}
        if swallowed:
            self.reset()

    def reset(self) -> None:
        """RST to both sides of every connection."""
        self._do(self._abort_all)

    def refuse(self, *, on: bool = True) -> None:
        """Reset new connections as soon as they are there."""
        self._refusing = on

    def cut_next_answer(self) -> None:
        """Pass the next request on; reset its connection when the target answers, so that the answer is lost."""
        self._cut_answer = True

    def half_close(self) -> None:
        """FIN to the clients; what they send goes on to the target."""

        def close() -> None:
            for down, _ in self._pairs:
                with suppress(OSError, RuntimeError):
                    down.write_eof()
                    self.counts["half_closes"] += 1

        self._do(close)

    def _do(self, action: Callable[[], None]) -> None:
        async def run() -> None:
            action()

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(10)

    # -- relaying

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            self.counts["refused"] += 1
            _reset(writer)
            return
        try:
            down, up = await asyncio.open_connection(*self.target, limit=_CHUNK)
        except OSError:
            self.counts["refused"] += 1
            _reset(writer)
            return
        self.counts["connections"] += 1
        pair = (writer, up)
        self._pairs.add(pair)
        try:
            await asyncio.gather(self._pump(reader, up, "up", pair), self._pump(down, writer, "down", pair))
        finally:
            self._pairs.discard(pair)
            for side in pair:
                side.close()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        way: str,
        pair: tuple[asyncio.StreamWriter, asyncio.StreamWriter],
    ) -> None:
        try:
            while data := await reader.read(_CHUNK):
                if self._delay_s:
                    await asyncio.sleep(self._delay_s)
                if self._swallow[way]:
                    self.counts["swallowed"] += len(data)
                    continue
                if way == "down" and self._cut_answer:
                    self._cut_answer = False
                    self.counts["swallowed"] += len(data)
                    self._abort(pair)
                    return
                writer.write(data)
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()
        except (OSError, RuntimeError):  # one side was reset, or is half-closed: the other is to know
            for side in pair:
                _reset(side)

    def _abort_all(self) -> None:
        for pair in list(self._pairs):
            self._abort(pair)

    def _abort(self, pair: tuple[asyncio.StreamWriter, asyncio.StreamWriter]) -> None:
        self.counts["resets"] += 1
        for side in pair:
            _reset(side)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST: SO_LINGER of 0 s (socket(7))."""
    with suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    writer.transport.abort()
