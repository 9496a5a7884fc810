"""Frames: what the library encoded is read back, however it is cut. What is in them: see test_receiver.py."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from loadtest.wire import OP_BINARY, FrameReader, WireError, client_frame

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
