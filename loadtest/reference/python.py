"""The floor in Python: the least CPU that a fan-out server can spend in CPython, which is what `floor.c` is for C.

One epoll loop, chunks shared by reference, one write per client and flush. It keeps no books, checks nothing and drops
clients that fall behind. There is no event loop of a library's between it and the kernel.

With ``books`` it also does with each update what the streamer in pure Python does: it is decoded, applied to a book and
encoded again.

python -m loadtest.reference.python PORT FEED_PORT FLUSH_INTERVAL_US [books]
"""

import gc
import os
import socket
import sys
from collections import defaultdict
from collections.abc import Callable
from select import EPOLLIN, EPOLLOUT, epoll

from websockets.utils import accept_key

from loadtest.on_time import kernel_timer
from loadtest.processes import raise_descriptor_limit
from loadtest.reference.feed import RECORD, wanted
from protos.book import Book
from protos.codec import CODECS
from protos.messages import BookUpdate

READ_MAX = 1 << 20


class Client:
    """A connection."""

    __slots__ = ("connection", "fd", "pending", "request", "rest", "streams")

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.fd = connection.fileno()
        self.request = b""
        self.streams: frozenset[int] = frozenset()
        self.pending: list[bytes] = []
        self.rest = b""
        """What a full socket did not take."""


class Books:
    """Books as they are published."""

    def __init__(self) -> None:
        self._books: defaultdict[int, Book] = defaultdict(Book)
        self._codec = next(iter(CODECS.values()))

    def work(self, stream: int, chunk: bytes) -> bytes:
        """The chunk, after its update has been applied."""
        (message,) = self._codec.decode(chunk)
        if isinstance(message, BookUpdate):
            self._books[stream].apply(message)
        return self._codec.encode(message)


class Fanout:
    """Clients, and what waits for them."""

    def __init__(self, poller: epoll, books: Books | None) -> None:
        self._poller = poller
        self._books = books
        self._clients: dict[int, Client] = {}
        self._offers: defaultdict[int, list[Callable[[bytes], None]]] = defaultdict(list)
        """By stream: `append` of what is pending, of each client."""
        self._unread = b""

    def add(self, connection: socket.socket) -> None:
        """A client has connected."""
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._clients[connection.fileno()] = Client(connection)
        self._poller.register(connection, EPOLLIN)

    def _drop(self, client: Client) -> None:
        del self._clients[client.fd]
        for stream in client.streams:
            self._offers[stream].remove(client.pending.append)
        client.connection.close()

    def ready(self, fd: int, events: int) -> None:
        """A client's socket has something, or has room again."""
        client = self._clients.get(fd)
        if client is None:  # dropped in this round
            return
        try:
            if events & EPOLLOUT:
                client.rest = client.rest[os.write(fd, client.rest) :]
                if not client.rest:
                    self._poller.modify(fd, EPOLLIN)
            if events & ~EPOLLOUT:
                self._read(client)
        except OSError:
            self._drop(client)

    def _read(self, client: Client) -> None:
        got = client.connection.recv(4096)
        if not got:
            self._drop(client)
        elif not client.streams:  # client frames carry nothing we need
            client.request += got
            if client.request.endswith(b"\r\n\r\n"):
                self._open(client)

    def _open(self, client: Client) -> None:
        lines = client.request.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        client.connection.send(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept_key(headers["sec-websocket-key"]).encode() + b"\r\n\r\n"
        )
        client.streams = wanted(lines[0].split()[1])
        for stream in client.streams:
            self._offers[stream].append(client.pending.append)

    def feed(self, data: bytes) -> None:
        """Offer the updates in what was read of the feed to all who listen."""
        data = self._unread + data
        at, end = 0, len(data)
        while end - at >= RECORD.size:
            length, stream = RECORD.unpack_from(data, at)
            start = at + RECORD.size
            if end - start < length:
                break
            at = start + length
            chunk = data[start:at]
            if self._books is not None:
                chunk = self._books.work(stream, chunk)
            for offer in self._offers[stream]:
                offer(chunk)
        self._unread = data[at:]

    def flush(self) -> None:
        """One frame to each client for whom something is pending."""
        for client in list(self._clients.values()):
            pending = client.pending
            if not pending:
                continue
            if client.rest:  # behind by a whole flush
                self._drop(client)
                continue
            payload = b"".join(pending)
            pending.clear()
            frame = _header(len(payload)) + payload
            try:
                sent = os.write(client.fd, frame)
            except BlockingIOError:
                sent = 0
            except OSError:
                self._drop(client)
                continue
            if sent < len(frame):
                client.rest = frame[sent:]
                self._poller.modify(client.fd, EPOLLIN | EPOLLOUT)


def _header(length: int) -> bytes:
    """Of a binary frame (RFC 6455 section 5.2)."""
    if length < 126:
        return bytes((0x82, length))
    return b"\x82\x7e" + length.to_bytes(2) if length < 1 << 16 else b"\x82\x7f" + length.to_bytes(8)


def main(port: int, feed_port: int, flush_interval_us: int, *, with_books: bool) -> None:
    """Serve until the feed ends."""
    raise_descriptor_limit()
    gc.disable()  # nothing here is a cycle
    listener = socket.create_server(("127.0.0.1", port), backlog=4096)
    feed_listener = socket.create_server(("127.0.0.1", feed_port))
    print("ready", flush=True)
    feed, _ = feed_listener.accept()
    timer = kernel_timer(flush_interval_us / 1e6, flush_interval_us / 1e6)
    poller = epoll()
    for fd in (listener.fileno(), feed.fileno(), timer):
        poller.register(fd, EPOLLIN)
    fanout = Fanout(poller, Books() if with_books else None)
    while True:
        for fd, events in poller.poll():
            if fd == timer:
                os.read(timer, 8)
                fanout.flush()
            elif fd == feed.fileno():
                data = feed.recv(READ_MAX)
                if not data:
                    return
                fanout.feed(data)
            elif fd == listener.fileno():
                fanout.add(listener.accept()[0])
            else:
                fanout.ready(fd, events)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), with_books=sys.argv[4:] == ["books"])
