"""Accepting connections, a few in each turn of the event loop.

The loops' own servers accept all that wait at once. When thousands come together, their handshakes are then one turn of
half a second, in which nobody else is served.
"""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable

AT_ONCE = 16
"""A handshake takes about half a millisecond."""
PAUSE_S = 0.5
"""After an accept that failed for lack of descriptors or memory: the connection waits, and trying again would spin."""

_log = logging.getLogger("depthcast.accepting")


class Acceptor:
    """Makes a protocol for each connection of one listening socket.

    Args:
        listener: A bound TCP socket.
        backlog: Connections that the kernel holds until they are accepted.
        tls: None for plain TCP.
    """

    def __init__(
        self,
        listener: socket.socket,
        protocol: Callable[[], asyncio.Protocol],
        backlog: int,
        tls: ssl.SSLContext | None,
    ) -> None:
        self._listener = listener
        self._protocol = protocol
        self._backlog = backlog
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._again: asyncio.TimerHandle | None = None
        self._connecting: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        self._listener.setblocking(False)
        self._listener.listen(self._backlog)
        self._loop.add_reader(self._listener, self._accept)

    def close(self) -> None:
        """Accept nothing more, and close the listening socket. Harmless when repeated."""
        if self._again is not None:
            self._again.cancel()
        if self._listener.fileno() >= 0:
            self._loop.remove_reader(self._listener)
            self._listener.close()
        for task in self._connecting:
            task.cancel()

    def _accept(self) -> None:
        for _ in range(AT_ONCE):
            try:
                sock, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                _log.warning("cannot accept connections, trying again: %s", error)
                self._loop.remove_reader(self._listener)
                self._again = self._loop.call_later(PAUSE_S, self._loop.add_reader, self._listener, self._accept)
                return
            sock.setblocking(False)
            task = self._loop.create_task(self._connect(sock), name="accepted")
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    async def _connect(self, sock: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._protocol, sock, ssl=self._tls)
        except OSError as error:  # it is gone, or does not speak our TLS
            _log.debug("a connection that did not come about: %s", error)
            sock.close()
        except asyncio.CancelledError:
            sock.close()
            raise
