"""The receiving end of all connections: frames, how many updates they hold, and how late each was.

It is the hottest loop, so it is in C where there is a compiler, and reads the sockets there, too: asyncio takes 12 us
for a frame, and a burst of 1,000 frames would wait that long before the last is given its time. The same is in Python,
a tenth as quick, fed with what asyncio has read.
"""

import ctypes
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from loadtest.compiler import compile_c, has_compiler
from loadtest.errors import LoadTestError
from loadtest.histogram import Histogram
from loadtest.on_time import Timer
from loadtest.wire import ALL, BOOK, OP_BINARY, FrameReader, WireError, due_ns, updates

ENDED, BROKEN = -1, -2
"""In place of an opcode: the server closed the connection, or broke the protocol."""
UNLIMITED = (1 << 64) - 1
_CACHED_MAX = 20_000
POLL_S = 0.0005
"""Between two looks at the sockets. Who sleeps until something comes is woken by the sender, which can cost its core as
much as the send itself; over a network it would cost the receiver's. Half of this is added to latencies."""


class Counts(ctypes.Structure):
    """What came of one client; `Client` in receiver.c."""

    _fields_ = (
        ("updates", ctypes.c_uint64),
        ("frames", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
        ("limit", ctypes.c_uint64),
        ("latencies", ctypes.c_void_p),
        ("rest", ctypes.c_void_p),
        ("rest_length", ctypes.c_uint64),
        ("rest_capacity", ctypes.c_uint64),
        ("fd", ctypes.c_int32),
        ("watched", ctypes.c_int32),
        ("kept", ctypes.c_int32),
        ("unused", ctypes.c_int32),
    )
    updates: int
    frames: int
    bytes: int
    limit: int
    """Of ``bytes``: no more is read."""
    latencies: int | None
    fd: int
    kept: int
    """Whether its frames are handed over."""


_HAND = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64)


class _State(ctypes.Structure):
    """`Receiver` in receiver.c."""

    _fields_ = (
        ("clients", ctypes.POINTER(Counts)),
        ("updates", ctypes.c_uint64),
        ("last_ns", ctypes.c_int64),
        ("now_latencies", ctypes.c_void_p),
        ("tier_latencies", ctypes.c_void_p),
        ("tier_kinds", ctypes.c_int64),
        ("hand", _HAND),
        ("poller", ctypes.c_int32),
    )


Handler = Callable[[int, int, bytes], None]
"""Takes (client, opcode or ENDED or BROKEN, payload): of control frames, and of all frames of clients that are kept."""


class Receiver(Protocol):
    """Of so many clients."""

    counts: ctypes.Array[Counts]
    measured_max: int
    """Of how many clients the latencies can be taken, so that the generator is not what is measured."""

    @property
    def updates(self) -> int:
        """Of all clients."""
        ...

    @property
    def last_ns(self) -> int:
        """When the last update came."""
        ...

    def measure(self, index: int, latencies: Histogram) -> None:
        """Record how late its updates are, from their due time to their receipt."""
        ...

    def measure_now(self, latencies: Histogram | None) -> None:
        """Record there, too, from now on, what is recorded for any client; None ends it."""
        ...

    def measure_tiers(self, latencies: Histogram) -> None:
        """Record there how late books are, of all clients: they wait for the end of an interval."""
        ...

    def begin(self, index: int) -> None:
        """A new connection: what came of a frame is forgotten."""
        ...

    def feed(self, index: int, data: bytes) -> None:
        """Take what somebody else has read."""
        ...

    def attach(self, index: int, fd: int) -> bool:
        """Read from this socket from now on; False when somebody else must."""
        ...

    def detach(self, index: int) -> None:
        """Read no more from it; before it is closed."""
        ...

    def limit(self, index: int, size: int) -> None:
        """Read no more than ``size`` bytes in all; as long as somebody else reads, that is his to do."""
        ...

    def reset(self) -> None:
        """Count anew, without latencies until `measure`."""
        ...

    def close(self) -> None:
        """Before the event loop ends."""
        ...


class _Base:
    """What both have in common.

    Args:
        clients: How many.
        handler: Told, never within `feed`'s or the event loop's read of another client.
    """

    def __init__(self, clients: int, handler: Handler) -> None:
        self.counts = (Counts * clients)()
        for counts in self.counts:
            counts.limit, counts.fd = UNLIMITED, -1
        self._handler = handler
        self._state = _State()
        self._latencies: dict[int, Histogram] = {}
        self._tiers: Histogram | None = None
        self._now: Histogram | None = None

    @property
    def updates(self) -> int:
        updates: int = self._state.updates
        return updates

    @property
    def last_ns(self) -> int:
        last_ns: int = self._state.last_ns
        return last_ns

    def measure(self, index: int, latencies: Histogram) -> None:
        self._latencies[index] = latencies
        self.counts[index].latencies = latencies.address

    def measure_now(self, latencies: Histogram | None) -> None:
        self._now = latencies
        self._state.now_latencies = latencies.address if latencies else None

    def measure_tiers(self, latencies: Histogram) -> None:
        self._tiers = latencies
        self._state.tier_latencies, self._state.tier_kinds = latencies.address, BOOK

    def limit(self, index: int, size: int) -> None:
        self.counts[index].limit = size

    def reset(self) -> None:
        self._state.updates = 0
        for counts in self.counts:
            counts.updates = counts.frames = counts.bytes = 0
            counts.latencies = None
        self._latencies.clear()


class PythonReceiver(_Base):
    """Without a compiler."""

    measured_max = 100

    def __init__(self, clients: int, handler: Handler) -> None:
        super().__init__(clients, handler)
        self._readers = [FrameReader() for _ in range(clients)]
        self._due: dict[bytes, int] = {}

    def begin(self, index: int) -> None:
        self._readers[index] = FrameReader()

    def feed(self, index: int, data: bytes) -> None:
        counts, now_ns = self.counts[index], time.time_ns()
        counts.bytes += len(data)
        handed: list[tuple[int, bytes]] = []
        try:
            for opcode, payload in self._readers[index].feed(data):
                if opcode == OP_BINARY:
                    counts.frames += 1
                    self._count(index, counts, payload, now_ns)
                if opcode != OP_BINARY or counts.kept:
                    handed.append((opcode, payload))
        except WireError:
            handed.append((BROKEN, b""))
        for opcode, payload in handed:
            self._handler(index, opcode, payload)

    def _count(self, index: int, counts: Counts, frame: bytes, now_ns: int) -> None:
        count = sum(1 for _ in updates(frame))
        each = ALL if self._tiers is None else ALL & ~BOOK
        for latencies, kinds in ((self._latencies.get(index), each), (self._tiers, ALL & ~each)):
            if latencies is not None:
                late = [now_ns - self._due_ns(chunk) for chunk in updates(frame, kinds)]
                latencies.record(late)
                if self._now is not None and latencies is not self._tiers:
                    self._now.record(late)
        if count:
            self._state.last_ns = now_ns
            self._state.updates += count
            counts.updates += count

    def _due_ns(self, chunk: bytes) -> int:
        """Clients share streams, so most chunks were seen before."""
        due = self._due.get(chunk)
        if due is None:
            if len(self._due) > _CACHED_MAX:
                self._due.clear()
            due = self._due[chunk] = due_ns(chunk)
        return due

    def attach(self, index: int, fd: int) -> bool:  # noqa: ARG002
        return False

    def detach(self, index: int) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


class NativeReceiver(_Base):
    """`receiver.c`, as a shared library: one epoll instance for all sockets, looked at every POLL_S."""

    measured_max = 1_000

    def __init__(self, library: ctypes.PyDLL, clients: int, handler: Handler) -> None:
        super().__init__(clients, handler)
        self._library = library
        self._handed: list[tuple[int, int, bytes]] = []
        self._state.clients = ctypes.cast(self.counts, ctypes.POINTER(Counts))
        self._state.hand = _HAND(self._hand)
        self._at = ctypes.byref(self._state)
        library.start(self._at)
        self._timer: Timer | None = None

    def _hand(self, index: int, what: int, payload: int | None, size: int) -> None:
        """Called from C: there, nothing may change, nor an exception be raised."""
        self._handed.append((index, what, ctypes.string_at(payload, size) if payload else b""))

    def _hand_over(self) -> None:
        handed, self._handed = self._handed, []
        for one in handed:
            self._handler(*one)

    def begin(self, index: int) -> None:
        self._library.forget(self._at, index)

    def feed(self, index: int, data: bytes) -> None:
        self._library.feed(self._at, index, data, len(data))
        self._hand_over()

    def attach(self, index: int, fd: int) -> bool:
        if self._timer is None:
            self._timer = Timer(POLL_S, self._pump)
        self._library.attach(self._at, index, fd)
        return True

    def detach(self, index: int) -> None:
        self._library.attach(self._at, index, -1)

    def _pump(self) -> None:
        self._library.pump(self._at)
        if self._handed:
            self._hand_over()

    def limit(self, index: int, size: int) -> None:
        self._library.set_limit(self._at, index, size)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.stop()
        self._library.stop(self._at, len(self.counts))


def receiver(clients: int, handler: Handler) -> Receiver:
    """The fastest there is on this machine."""
    library = _library()
    return PythonReceiver(clients, handler) if library is None else NativeReceiver(library, clients, handler)


@cache
def _library() -> ctypes.PyDLL | None:
    """`receiver.c`, built; it keeps the interpreter's lock, for it is done in a moment."""
    if not has_compiler():
        return None
    with tempfile.TemporaryDirectory(prefix="depthcast-loadtest-") as directory:
        file = Path(directory, "receiver.so")
        try:
            compile_c(Path(__file__).with_name("receiver.c"), file, "-O3", "-shared", "-fPIC")
        except LoadTestError:  # a compiler without a C library; the tool works, it only measures fewer clients
            return None
        library = ctypes.PyDLL(str(file))
    state, index = ctypes.c_void_p, ctypes.c_int64
    arguments: dict[str, tuple[Any, ...]] = {
        "start": (state,),
        "feed": (state, index, ctypes.c_char_p, ctypes.c_int64),
        "attach": (state, index, ctypes.c_int32),
        "set_limit": (state, index, ctypes.c_uint64),
        "forget": (state, index),
        "pump": (state,),
        "stop": (state, ctypes.c_int64),
    }
    for name, types in arguments.items():
        getattr(library, name).argtypes = types
    return library
