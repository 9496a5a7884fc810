"""What the compiled build does in C (`native.c`) for the messages that are many: books, trades and quotes in protobuf.

It does what it is sure of, byte for byte as `codec_proto` does it, and leaves the rest to that: only `codec_proto` says
what is valid, and why not. Without the C module all is left. `tests/protos` has one contract for both.
"""

from collections.abc import Callable, Sequence

from protos.messages import ServerMessage

pack_record: Callable[[ServerMessage], bytes | None]
"""The message as a chunk, or None: left."""
pack_frame: Callable[[ServerMessage], bytes | None]
"""The message as a frame of one chunk, or None: left."""
unpack_record: Callable[[bytes], ServerMessage | None]
"""The message of a chunk, or None: left."""
unpack_frame: Callable[[bytes], Sequence[ServerMessage | bytes]]
"""The messages of a frame, in order; what is left is a frame of its own, as bytes."""


def leave(_: object) -> None:
    """`pack_record`, `pack_frame` and `unpack_record` without the C module."""


def leave_frame(frame: bytes) -> Sequence[ServerMessage | bytes]:
    """`unpack_frame` without the C module."""
    return (bytes(frame),)


try:
    from protos.native import pack_frame, pack_record, unpack_frame, unpack_record
except ImportError:
    pack_record = pack_frame = unpack_record = leave
    unpack_frame = leave_frame
