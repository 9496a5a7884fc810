"""WebSocket frames from server to client: unmasked, a whole message each (RFC 6455 section 5.2)."""

from struct import Struct

TEXT, BINARY = 0x81, 0x82
"""First bytes of a frame: the whole of a message."""
_MEDIUM = Struct("!BBH").pack
_LARGE = Struct("!BBQ").pack


def header(first: int, size: int) -> bytes:
    """What comes before a payload of ``size`` bytes."""
    if size < 126:
        return bytes((first, size))
    if size < 65_536:
        return _MEDIUM(first, 126, size)
    return _LARGE(first, 127, size)
