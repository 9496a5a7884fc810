"""Frames to clients, read by another implementation of RFC 6455."""

from collections.abc import Callable, Generator

import pytest
from websockets.frames import Frame, Opcode
from websockets.streams import StreamReader

from streamer.frames import binary_frame, text_frame


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


@pytest.mark.parametrize(("make", "opcode"), [(text_frame, Opcode.TEXT), (binary_frame, Opcode.BINARY)])
@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 255, 256, 65_535, 65_536, 1 << 20])
def test_a_frame_is_one_message_of_the_chunks_joined(
    make: Callable[[list[bytes]], bytes], opcode: Opcode, size: int
) -> None:
    payload = bytes(i % 251 for i in range(size))
    chunks = [payload[: size // 3], payload[size // 3 : size // 2], payload[size // 2 :]]
    frame = parse(make(chunks))
    assert (frame.opcode, frame.fin, frame.rsv1, frame.rsv2, frame.rsv3) == (opcode, True, False, False, False)
    assert frame.data == payload
    assert make(chunks) == make([payload]), "and it has the shortest header"
