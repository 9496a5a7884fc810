"""What the compiled build does in C (`native.c`) for the messages that are many: books, trades and quotes in protobuf.

It does what it is sure of, byte for byte as `codec_proto` does it, and leaves the rest to that: only `codec_proto` says
what is valid, and why not. Without the C module all is left. `tests/protos` has one contract for both.
"""

from collections.abc import Callable, Sequence

from protos.ladder import Ladder
from protos.messages import ServerMessage
from protos.ring import Ring

Advanced = tuple[int, int, int, int]
"""Of a delta: seq, flags, ts_event_ns, ts_received_ns."""

pack_record: Callable[[ServerMessage], bytes | None]
"""The message as a chunk, or None: left."""
pack_frame: Callable[[ServerMessage], bytes | None]
"""The message as a frame of one chunk, or None: left."""
unpack_record: Callable[[bytes], ServerMessage | None]
"""The message of a chunk, or None: left."""
unpack_frame: Callable[[bytes], Sequence[ServerMessage | bytes]]
"""The messages of a frame, in order; what is left is a frame of its own, as bytes."""
advance: Callable[[bytes, int, int, Ladder, Ladder, Ring, list[list[int]] | None], Advanced | None]
"""Sets the levels of a chunk with a delta of a book in its sides, if it is one with nothing but levels that continues
(epoch, seq), and adds their prices to the ring; to the list, if there is one, as those of the bids and of the asks.
None: left, and nothing has happened."""
restamp: Callable[[bytes, int, int, int], bytes]
"""A frame of that chunk, with another stream, flags and ts_published_ns."""


def leave(*_: object) -> None:
    """`pack_record`, `pack_frame`, `unpack_record` and `advance` without the C module."""


def leave_frame(frame: bytes) -> Sequence[ServerMessage | bytes]:
    """`unpack_frame` without the C module."""
    return (bytes(frame),)


def no_restamp(_record: bytes, _stream: int, _flags: int, _ts_published_ns: int) -> bytes:
    """`restamp` without the C module: nothing was advanced."""
    raise NotImplementedError


try:
    from protos.native import advance, pack_frame, pack_record, restamp, unpack_frame, unpack_record
except ImportError:
    pack_record = pack_frame = unpack_record = advance = leave
    unpack_frame = leave_frame
    restamp = no_restamp
