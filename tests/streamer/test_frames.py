"""Frames to clients, read by another implementation of RFC 6455."""

from collections.abc import Generator

import pytest
from websockets.frames import Frame, Opcode
from websockets.streams import StreamReader

from streamer.frames import BINARY, TEXT, header


def parse(data: bytes) -> Frame:
    """The one frame there is, and nothing after it."""

    def whole() -> Generator[None, None, Frame]:
        frame = yield from Frame.parse(reader.read_exact, mask=False)
        assert (yield from reader.at_eof()), "something follows"
        return frame

    reader = StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    with pytest.raises(StopIteration) as parsed:
        next(whole())
    frame = parsed.value.value
    assert isinstance(frame, Frame)
    return frame


@pytest.mark.parametrize(("first", "opcode"), [(TEXT, Opcode.TEXT), (BINARY, Opcode.BINARY)])
@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 255, 256, 65_535, 65_536, 1 << 20])
def test_a_header_and_its_payload_are_one_whole_message(first: int, opcode: Opcode, size: int) -> None:
    payload = bytes(i % 251 for i in range(size))
    frame = parse(header(first, size) + payload)
    assert (frame.opcode, frame.fin, frame.rsv1, frame.rsv2, frame.rsv3) == (opcode, True, False, False, False)
    assert frame.data == payload
    assert len(header(first, size)) == (2 if size < 126 else 4 if size < 65_536 else 10), "the shortest"
