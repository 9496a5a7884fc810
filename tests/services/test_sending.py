"""Both senders under one contract, on real sockets: `send_each` in Python and `native.c`."""

import errno
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from enum import Enum

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protos.messages import Channel
from services.streamer.sending import Left, send_each
from streamer.counters import count, tally
from streamer.frames import BINARY, TEXT, header
from streamer.outbox import Segment
from tests.support.native import native

Send = Callable[[list[int], bytearray, list[list[Segment]], int], tuple[int, int, Left]]
MAX = 65_536


@pytest.fixture(scope="module")
def native_send() -> Send:
    """Compiled from the sources."""
    send: Send = native("services.streamer.native").send_all
    return send


@pytest.fixture(params=["python", "native"])
def send(request: pytest.FixtureRequest) -> Send:
    chosen: Send = send_each if request.param == "python" else request.getfixturevalue("native_send")
    return chosen


class Pairs:
    """Connected sockets: the server's non-blocking ends, and the clients'."""

    def __init__(self) -> None:
        self._open = ExitStack()

    def pair(self) -> tuple[int, socket.socket]:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.settimeout(5)
        self._open.enter_context(ours)
        self._open.enter_context(theirs)
        return ours.fileno(), theirs

    def close(self) -> None:
        self._open.close()


@pytest.fixture
def pairs() -> Iterator[Pairs]:
    pairs = Pairs()
    yield pairs
    pairs.close()


def segment(data: bytes, channel: Channel = Channel.BOOK, updates: int = 1) -> Segment:
    return Segment(data, None, 1, 1, 2, tally(channel, updates))


def received(peer: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = peer.recv(1 << 16)
        assert more, "closed"
        data += more
    return data


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536])
def test_a_queue_becomes_one_frame_and_is_empty(send: Send, pairs: Pairs, size: int) -> None:
    fd, peer = pairs.pair()
    data = os.urandom(size)
    queue = [segment(data[: size // 3]), segment(data[size // 3 :])]
    frame = header(BINARY, size) + data
    assert send([fd], bytearray((BINARY,)), [queue], MAX) == (len(frame), tally(Channel.BOOK, 2), [])
    assert received(peer, len(frame)) == frame
    assert queue == []


def test_each_client_gets_its_own(send: Send, pairs: Pairs) -> None:
    """More segments than the native table has places, shared by many queues in many ways."""
    segments = [segment(f"<{i}>".encode(), Channel(1 + i % 4), 1 + i % 3) for i in range(9_000)]
    queues = [segments[i : i + 90] + segments[i::1_000] for i in range(0, 9_000, 90)]
    opened = [pairs.pair() for _ in queues]
    firsts = bytearray(BINARY if i % 2 else TEXT for i in range(len(queues)))
    payloads = [b"".join(s.data for s in queue) for queue in queues]
    expected = sum(s.tally for queue in queues for s in queue)
    sent_bytes, total, left = send([fd for fd, _ in opened], firsts, queues, MAX)
    frames = [header(first, len(payload)) + payload for first, payload in zip(firsts, payloads, strict=True)]
    assert [received(peer, len(frame)) for (_, peer), frame in zip(opened, frames, strict=True)] == frames
    assert (sent_bytes, left, queues) == (sum(map(len, frames)), [], [[]] * len(queues))
    assert total == expected
    assert all(count(total, Channel(channel)) for channel in range(1, 5))


def test_equal_queues_of_different_codecs_get_different_frames(send: Send, pairs: Pairs) -> None:
    one, two = pairs.pair(), pairs.pair()
    shared = segment(b"same")
    send([one[0], two[0]], bytearray((BINARY, TEXT)), [[shared], [shared]], MAX)
    assert received(one[1], 6) == b"\x82\x04same"
    assert received(two[1], 6) == b"\x81\x04same"


def test_what_a_full_socket_does_not_take_is_returned(send: Send, pairs: Pairs) -> None:
    fd, peer = pairs.pair()
    with socket.socket(fileno=os.dup(fd)) as ours:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
    data = os.urandom(MAX)
    frame = header(BINARY, MAX) + data
    queue = [segment(data)]
    sent_bytes, total, left = send([fd], bytearray((BINARY,)), [queue], MAX)
    assert (sent_bytes, total, queue) == (len(frame), tally(Channel.BOOK, 1), [])
    ((index, rest),) = left
    assert index == 0
    assert rest is not None
    assert 0 < len(rest) < len(frame)
    assert received(peer, len(frame) - len(rest)) + rest == frame


def test_a_broken_socket_takes_nothing_and_stops_nobody(send: Send, pairs: Pairs) -> None:
    gone, fine = pairs.pair(), pairs.pair()
    gone[1].close()
    _, _, left = send([gone[0], fine[0]], bytearray((BINARY, BINARY)), [[segment(b"a")], [segment(b"b")]], MAX)
    assert left == [(0, b"\x82\x01a")]
    assert received(fine[1], 3) == b"\x82\x01b"
    with pytest.raises(OSError) as raised:  # noqa: PT011 (any of them)
        os.write(gone[0], b"x")
    assert raised.value.errno in (errno.EPIPE, errno.ECONNRESET)


def test_what_does_not_fit_a_frame_is_left_alone(send: Send, pairs: Pairs) -> None:
    large, small = pairs.pair(), pairs.pair()
    queue = [segment(b"12345"), segment(b"67890")]
    kept = queue.copy()
    sent = send([large[0], small[0]], bytearray((BINARY, BINARY)), [queue, [segment(b"x" * 9)]], 9)
    assert sent == (11, tally(Channel.BOOK, 1), [(0, None)])
    assert queue == kept
    assert received(small[1], 11) == b"\x82\x09" + b"x" * 9
    large[1].settimeout(0.01)
    with pytest.raises(TimeoutError):
        large[1].recv(1)


def test_equal_queues_share_one_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of `send_each`; joining anew in C is as cheap as to compare."""
    written: list[bytes] = []
    monkeypatch.setattr(os, "write", lambda _, frame: written.append(frame) or len(frame))
    shared, own = [segment(b"a"), segment(b"b")], segment(b"c")
    send_each([1, 2, 3], bytearray((BINARY,) * 3), [shared.copy(), [shared[0], own], shared.copy()], MAX)
    assert written[0] is written[2]
    assert [frame[2:] for frame in written] == [b"ab", b"ac", b"ab"]


def test_the_native_sender_refuses_lists_of_different_lengths(native_send: Send) -> None:
    with pytest.raises(ValueError, match="differ in length"):
        native_send([1], bytearray(), [[]], MAX)
    with pytest.raises(AttributeError):
        native_send([1], bytearray((BINARY,)), [[object()]], MAX)  # type: ignore[list-item]


class Outlet(Enum):
    """What is at the other end."""

    READS = 0
    FULL = 1
    SMALL = 2
    GONE = 3
    CLOSED = 4


SIZES = st.sampled_from([0, 1, 2, 124, 125, 126, 127, 4_096, 65_534, 65_535, 65_536]) | st.integers(0, 70_000)
LINES = st.tuples(
    st.sampled_from(Outlet), st.sampled_from([BINARY, TEXT]), st.lists(st.integers(0, 7), min_size=1, max_size=12)
)


def outlet(opened: ExitStack, kind: Outlet) -> tuple[socket.socket, int, socket.socket, bytes]:
    """Our end, its descriptor, theirs, and what theirs gets before all that is sent from now on."""
    ours, theirs = socket.socketpair()
    opened.enter_context(ours)
    opened.enter_context(theirs)
    ours.setblocking(False)
    theirs.settimeout(5)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096 if kind in (Outlet.FULL, Outlet.SMALL) else 1 << 20)
    before = b""
    if kind is Outlet.FULL:
        with suppress(BlockingIOError):
            while True:
                before += b"-" * ours.send(b"-" * 1_024)
    elif kind is Outlet.GONE:
        theirs.close()
    elif kind is Outlet.CLOSED:
        ours.close()
    return ours, ours.fileno(), theirs, before


@pytest.mark.parametrize("name", ["python", "native"])
@given(
    sizes=st.lists(SIZES, min_size=8, max_size=8),
    lines=st.lists(LINES, max_size=12),
    bytes_max=st.sampled_from([1, 125, 126, 65_535, 65_536, 150_000]),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_on_the_wire_are_exactly_the_frames(
    request: pytest.FixtureRequest,
    name: str,
    sizes: list[int],
    lines: list[tuple[Outlet, int, list[int]]],
    bytes_max: int,
) -> None:
    """Whatever waits, for whomever: each frame once and in order, on the wire or as what is left of it."""
    send = send_each if name == "python" else request.getfixturevalue("native_send")
    pool = [segment(bytes([65 + i]) * size, Channel(1 + i % 4), 1 + i) for i, size in enumerate(sizes)]
    with ExitStack() as opened:
        outlets = [outlet(opened, kind) for kind, _, _ in lines]
        queues = [[pool[i] for i in chosen] for _, _, chosen in lines]
        payloads = [b"".join(segment.data for segment in queue) for queue in queues]
        fits = [len(payload) <= bytes_max for payload in payloads]
        frames = [header(first, len(payload)) + payload for (_, first, _), payload in zip(lines, payloads, strict=True)]
        tallies = [sum(segment.tally for segment in queue) for queue in queues]
        waiting = [queue.copy() for queue in queues]
        sent_bytes, total, left = send(
            [fd for _, fd, _, _ in outlets], bytearray(first for _, first, _ in lines), queues, bytes_max
        )
        rests = dict(left)
        assert len(rests) == len(left)
        assert queues == [[] if fit else queue for fit, queue in zip(fits, waiting, strict=True)]
        assert sent_bytes == sum(len(frame) for fit, frame in zip(fits, frames, strict=True) if fit)
        assert total == sum(counted for fit, counted in zip(fits, tallies, strict=True) if fit)
        for i, ((kind, _, _), (ours, _, theirs, before)) in enumerate(zip(lines, outlets, strict=True)):
            if not fits[i]:
                assert rests[i] is None
            ours.close()
            rest = rests.get(i) or b""
            wire = (
                b"" if kind in (Outlet.GONE, Outlet.CLOSED) else b"".join(iter(lambda it=theirs: it.recv(1 << 16), b""))
            )  # type: ignore[misc]
            assert wire + rest == before + (frames[i] if fits[i] else b"")
            if kind is Outlet.READS:
                assert rest == b"", "what the kernel could take is not left"
