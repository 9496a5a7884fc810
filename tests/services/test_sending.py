"""Both senders under one contract, on real sockets: `send_each` in Python and `native.c`."""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from enum import Enum

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protos.codec import CODECS
from protos.messages import Channel
from streamer.counters import Counters, count, tally
from streamer.frames import BINARY, TEXT, header
from streamer.limits import Limits
from streamer.line import Line, PlainLine, Queue
from streamer.outbox import Outbox, Segment
from tests.support.lines import KINDS, Lines, lines

MAX = 65_536
NOBODYS = 1_000_000
"""A descriptor that is not open, and will not be."""


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Lines:
    return lines(request.param)


OWNER = Outbox(CODECS["depthcast.v1.proto"], Limits(), Counters(), PlainLine())
"""Of all queues here: nobody asks it."""


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


def queue(line: Line, socket: int, segments: list[Segment], first: int = BINARY) -> Queue:
    made = line.queue(OWNER, first)
    made.socket = socket
    for one in segments:
        made.append(one)
    return made


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536])
def test_a_queue_becomes_one_frame_and_is_empty(kind: Lines, pairs: Pairs, size: int) -> None:
    fd, peer = pairs.pair()
    data = os.urandom(size)
    queues = [one := queue(kind.new(), fd, [segment(data[: size // 3]), segment(data[size // 3 :])])]
    frame = header(BINARY, size) + data
    assert kind.send(queues, MAX) == (len(frame), tally(Channel.BOOK, 2), [])
    assert received(peer, len(frame)) == frame
    assert (queues, len(one)) == ([], 0)


def test_each_client_gets_its_own(kind: Lines, pairs: Pairs) -> None:
    """More segments than the native table has places, shared by many queues in many ways."""
    segments = [segment(f"<{i}>".encode(), Channel(1 + i % 4), 1 + i % 3) for i in range(9_000)]
    wanted = [segments[i : i + 90] + segments[i::1_000] for i in range(0, 9_000, 90)]
    opened = [pairs.pair() for _ in wanted]
    firsts = [BINARY if i % 2 else TEXT for i in range(len(wanted))]
    line = kind.new()
    queues = [queue(line, fd, mine, first) for (fd, _), mine, first in zip(opened, wanted, firsts, strict=True)]
    payloads = [b"".join(s.data for s in mine) for mine in wanted]
    sent_bytes, total, left = kind.send(queues, MAX)
    frames = [header(first, len(payload)) + payload for first, payload in zip(firsts, payloads, strict=True)]
    assert [received(peer, len(frame)) for (_, peer), frame in zip(opened, frames, strict=True)] == frames
    assert (sent_bytes, left, queues) == (sum(map(len, frames)), [], [])
    assert total == sum(s.tally for mine in wanted for s in mine)
    assert all(count(total, Channel(channel)) for channel in range(1, 5))


def test_equal_queues_of_different_codecs_get_different_frames(kind: Lines, pairs: Pairs) -> None:
    one, two = pairs.pair(), pairs.pair()
    shared, line = segment(b"same"), kind.new()
    kind.send([queue(line, one[0], [shared]), queue(line, two[0], [shared], TEXT)], MAX)
    assert received(one[1], 6) == b"\x82\x04same"
    assert received(two[1], 6) == b"\x81\x04same"


def test_what_a_full_socket_does_not_take_is_returned(kind: Lines, pairs: Pairs) -> None:
    fd, peer = pairs.pair()
    with socket.socket(fileno=os.dup(fd)) as ours:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
    data = os.urandom(MAX)
    frame = header(BINARY, MAX) + data
    one = queue(kind.new(), fd, [segment(data)])
    queues = [one]
    sent_bytes, total, left = kind.send(queues, MAX)
    assert (sent_bytes, total, queues, len(one)) == (len(frame), tally(Channel.BOOK, 1), [], 0)
    ((whose, rest),) = left
    assert whose is one
    assert 0 < len(rest) < len(frame)
    assert received(peer, len(frame) - len(rest)) + rest == frame


def test_a_broken_socket_takes_nothing_and_stops_nobody(kind: Lines, pairs: Pairs) -> None:
    gone, fine = pairs.pair(), pairs.pair()
    gone[1].close()
    line = kind.new()
    broken = queue(line, gone[0], [segment(b"a")])
    _, _, left = kind.send([broken, queue(line, fine[0], [segment(b"b")])], MAX)
    assert left == [(broken, b"\x82\x01a")]
    assert received(fine[1], 3) == b"\x82\x01b"
    with pytest.raises(OSError) as raised:  # noqa: PT011 (any of them)
        os.write(gone[0], b"x")
    assert raised.value.errno in (errno.EPIPE, errno.ECONNRESET)


def test_who_is_to_be_asked_is_left_in_the_list(kind: Lines, pairs: Pairs) -> None:
    """Too much for a frame, not plain, without a socket, or with nothing to send."""
    line, small = kind.new(), pairs.pair()
    segments = [segment(b"12345"), segment(b"67890")]
    asked = [queue(line, pairs.pair()[0], segments), *(queue(line, pairs.pair()[0], segments[:1]) for _ in "ab")]
    asked.append(queue(line, pairs.pair()[0], []))
    asked[1].plain = False
    asked[2].socket = -1
    queues = [asked[0], queue(line, small[0], [segment(b"x" * 9)]), *asked[1:]]
    assert kind.send(queues, 9) == (11, tally(Channel.BOOK, 1), [])
    assert queues == asked
    assert [one.segments() for one in asked] == [segments, segments[:1], segments[:1], []]
    assert received(small[1], 11) == b"\x82\x09" + b"x" * 9


def test_a_queue_of_another_kind_is_to_be_asked() -> None:
    for mine, other in (KINDS, KINDS[::-1]):
        queues = [one := queue(lines(other).new(), 0, [segment(b"a")])]
        assert lines(mine).send(queues, MAX) == (0, 0, [])
        assert queues == [one]
        with pytest.raises(TypeError):
            lines(mine).new().listeners().add(one)


def test_equal_queues_share_one_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of `send_each`; joining anew in C is as cheap as to compare."""
    written: list[bytes] = []
    monkeypatch.setattr(os, "write", lambda _, frame: written.append(frame) or len(frame))
    shared, own, line = [segment(b"a"), segment(b"b")], segment(b"c"), PlainLine()
    lines("python").send([queue(line, 1, mine) for mine in (shared, [shared[0], own], shared)], MAX)
    assert written[0] is written[2]
    assert [frame[2:] for frame in written] == [b"ab", b"ac", b"ab"]


class Outlet(Enum):
    """What is at the other end."""

    READS = 0
    FULL = 1
    SMALL = 2
    GONE = 3
    CLOSED = 4


SIZES = st.sampled_from([0, 1, 2, 124, 125, 126, 127, 4_096, 65_534, 65_535, 65_536]) | st.integers(0, 70_000)
CLIENTS = st.tuples(
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
    return ours, NOBODYS if kind is Outlet.CLOSED else ours.fileno(), theirs, before


@pytest.mark.parametrize("name", KINDS)
@given(
    sizes=st.lists(SIZES, min_size=8, max_size=8),
    clients=st.lists(CLIENTS, max_size=12),
    bytes_max=st.sampled_from([1, 125, 126, 65_535, 65_536, 150_000]),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_on_the_wire_are_exactly_the_frames(
    name: str, sizes: list[int], clients: list[tuple[Outlet, int, list[int]]], bytes_max: int
) -> None:
    """Whatever waits, for whomever: each frame once and in order, on the wire or as what is left of it."""
    kind = lines(name)
    line = kind.new()
    pool = [segment(bytes([65 + i]) * size, Channel(1 + i % 4), 1 + i) for i, size in enumerate(sizes)]
    with ExitStack() as opened:
        outlets = [outlet(opened, end) for end, _, _ in clients]
        waiting = [[pool[i] for i in chosen] for _, _, chosen in clients]
        payloads = [b"".join(segment.data for segment in mine) for mine in waiting]
        fits = [len(payload) <= bytes_max for payload in payloads]
        frames = [header(first, len(data)) + data for (_, first, _), data in zip(clients, payloads, strict=True)]
        tallies = [sum(segment.tally for segment in mine) for mine in waiting]
        queues = [
            queue(line, fd, mine, first)
            for (_, fd, _, _), mine, (_, first, _) in zip(outlets, waiting, clients, strict=True)
        ]
        asked = queues.copy()
        sent_bytes, total, left = kind.send(asked, bytes_max)
        rests = dict(left)
        assert len(rests) == len(left)
        assert asked == [one for one, fit in zip(queues, fits, strict=True) if not fit]
        assert [one.segments() for one in queues] == [[] if f else w for f, w in zip(fits, waiting, strict=True)]
        assert sent_bytes == sum(len(frame) for fit, frame in zip(fits, frames, strict=True) if fit)
        assert total == sum(counted for fit, counted in zip(fits, tallies, strict=True) if fit)
        for i, ((end, _, _), (ours, _, theirs, before)) in enumerate(zip(clients, outlets, strict=True)):
            ours.close()
            rest = rests.get(queues[i], b"")
            wire = (
                b"" if end in (Outlet.GONE, Outlet.CLOSED) else b"".join(iter(lambda it=theirs: it.recv(1 << 16), b""))
            )  # type: ignore[misc]
            assert wire + rest == before + (frames[i] if fits[i] else b"")
            if end is Outlet.READS:
                assert rest == b"", "what the kernel could take is not left"
