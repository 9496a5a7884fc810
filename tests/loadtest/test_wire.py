"""Frames, chunks and due times: what was encoded by the library or the codecs is read back, however it is cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from loadtest.wire import OP_BINARY, FrameReader, WireError, books, client_frame, count_books, due_ns
from protos.codec import CODECS
from protos.messages import BookUpdate, Digest

CODEC = CODECS["depthcast.v1.proto"]
PAYLOADS = st.lists(st.binary(max_size=300) | st.integers(0, 70_000).map(bytes), max_size=5)


@given(PAYLOADS, st.lists(st.integers(1, 400), max_size=20))
def test_frames_come_out_whole_however_they_are_cut(payloads: list[bytes], cuts: list[int]) -> None:
    data = b"".join(Frame(Opcode.BINARY, payload).serialize(mask=False) for payload in payloads)
    found: list[tuple[int, bytes]] = []
    reader, at = FrameReader(), 0
    for cut in [*cuts, len(data)]:
        found += reader.feed(data[at : at + cut])
        at += cut
    assert found == [(OP_BINARY, payload) for payload in payloads]


@given(st.binary(max_size=70_000))
def test_a_client_frame_is_what_the_library_reads(payload: bytes) -> None:
    head = client_frame(OP_BINARY, payload)
    assert head[1] & 0x80
    assert head.endswith(payload)
    assert len(head) == len(Frame(Opcode.BINARY, payload).serialize(mask=True))


def test_a_masked_or_fragmented_frame_is_an_error() -> None:
    for data in (b"\x82\x80", b"\x02\x00", b"\xc2\x00"):
        with pytest.raises(WireError):
            list(FrameReader().feed(data))


@given(st.lists(st.tuples(st.integers(0, 2**62), st.integers(0, 80)), max_size=20))
def test_books_are_counted_and_their_due_times_read(updates: list[tuple[int, int]]) -> None:
    frame = b""
    for ts, levels in updates:
        bids = [(price, 1 + price) for price in range(levels)]
        update = BookUpdate(
            stream=300, epoch=1, seq=2, prev_seq=1, ts_event_ns=ts, ts_received_ns=ts, bids=bids, asks=[(1_000, 1)]
        )
        frame += CODEC.encode(update) + CODEC.encode(Digest(300, 1, 2, 0xFFFFFFFF))
    assert count_books(frame) == len(updates)
    assert [due_ns(chunk) for chunk in books(frame)] == [ts for ts, _ in updates]


@given(st.binary(min_size=1, max_size=200))
def test_garbage_is_a_wire_error_at_most(data: bytes) -> None:
    for read in (count_books, lambda frame: [due_ns(chunk) for chunk in books(frame)]):
        try:
            read(data)
        except WireError:
            continue
