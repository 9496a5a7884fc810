"""One frame at a time for a slow client: the next is sent when the client has read the one before.

Behind our own buffers there are the client's: its kernel takes 64 KiB and more, which at half of a usual 50 KB/s are
several seconds of the past. TCP tells when the client's machine has the bytes, a pong tells when its program has read
up to the ping. So a frame to a slow client is followed by a ping, and what comes meanwhile waits in the outbox, where
it is conflated: 0.7 s behind instead of 7 s (tests/slow/test_slow_reader.py).
"""

PING = b"\x89\x04gate"
PONG = b"gate"
FRAME_BYTES_MAX = 16 << 10
"""Of a frame to a slow client, so that it is read in a fraction of a second."""
WINDOW_NS = 10_000_000_000
"""So long a client must be steady before it counts as fast again."""
STEADY_NS = 100_000_000
"""Pongs that differ by less: the time is the network's, not the reading's."""


class Gate:
    """Of one client, from when it became slow. Times are of any clock that does not go back."""

    __slots__ = ("_longest_ns", "_sent_ns", "_shortest_ns", "_until_ns")

    def __init__(self, now_ns: int) -> None:
        self._sent_ns = 0
        self._begin(now_ns)

    def _begin(self, now_ns: int) -> None:
        self._until_ns = now_ns + WINDOW_NS
        self._shortest_ns = WINDOW_NS
        self._longest_ns = 0

    @property
    def shut(self) -> bool:
        """A frame is on its way."""
        return self._sent_ns != 0

    def sent(self, now_ns: int) -> None:
        """A frame was written, and `PING` after it."""
        self._sent_ns = now_ns

    def pong(self, now_ns: int) -> bool:
        """The client has read it. True: it keeps up, the gate is no longer needed."""
        if not self._sent_ns:
            return False
        took_ns = now_ns - self._sent_ns
        self._sent_ns = 0
        self._shortest_ns = min(self._shortest_ns, took_ns)
        self._longest_ns = max(self._longest_ns, took_ns)
        if now_ns < self._until_ns:
            return False
        steady = self._longest_ns - self._shortest_ns < STEADY_NS
        self._begin(now_ns)
        return steady
