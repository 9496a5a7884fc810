"""WebSocket frames from server to client: unmasked, a whole message each (RFC 6455 section 5.2)."""

from struct import Struct

_MEDIUM = Struct("!BBH")
_LARGE = Struct("!BBQ")


def text_frame(chunks: list[bytes]) -> bytes:
    return _frame(0x81, chunks)


def binary_frame(chunks: list[bytes]) -> bytes:
    return _frame(0x82, chunks)


def _frame(first: int, chunks: list[bytes]) -> bytes:
    size = 0
    for chunk in chunks:
        size += len(chunk)
    if size < 126:
        header = bytes((first, size))
    elif size < 65_536:
        header = _MEDIUM.pack(first, 126, size)
    else:
        header = _LARGE.pack(first, 127, size)
    return b"".join([header, *chunks])
