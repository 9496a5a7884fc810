"""The client's end of the wire, as little of it as a load generator needs: handshake, frames, chunks, due times.

Written against RFC 6455 and docs/protocol.md, on its own, so that it shares no fault with the server.
"""

import os
from base64 import b64encode
from collections.abc import Iterator

SUBPROTOCOL = "depthcast.v1.proto"

OP_TEXT, OP_BINARY, OP_CLOSE, OP_PING, OP_PONG = 1, 2, 8, 9, 10
BOOK, TRADES, BBO = 1, 2, 4
"""Kinds of updates, as bits."""
ALL = BOOK | TRADES | BBO
_KINDS = {0x0A: BOOK, 0x12: TRADES, 0x1A: BBO}  # by their tag in a chunk
_TS_EVENT, _TS_RECEIVED_AFTER = 0x31, 0x38  # tags in each of them
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class WireError(Exception):
    """The server broke the protocol; the message says where."""


def handshake(host: str, port: int, path: str, subprotocol: str | None = SUBPROTOCOL) -> bytes:
    """Opening handshake of a client (RFC 6455 section 4.1)."""
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: {host}:{port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {b64encode(os.urandom(16)).decode()}",
        "Sec-WebSocket-Version: 13",
    ]
    if subprotocol:
        lines.append(f"Sec-WebSocket-Protocol: {subprotocol}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def client_frame(opcode: int, payload: bytes) -> bytes:
    """A masked frame (RFC 6455 section 5.2). The mask is zero: allowed, and the payload stays readable in captures."""
    length = len(payload)
    if length < 126:
        head = bytes((0x80 | opcode, 0x80 | length))
    elif length < 1 << 16:
        head = bytes((0x80 | opcode, 0xFE)) + length.to_bytes(2, "big")
    else:
        head = bytes((0x80 | opcode, 0xFF)) + length.to_bytes(8, "big")
    return head + bytes(4) + payload


class FrameReader:
    """Cuts the bytes of one connection into server frames."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield ``(opcode, payload)`` of each frame that is complete.

        Raises:
            WireError: A masked or fragmented frame, or a reserved bit: this server sends none of those.
        """
        if self._rest:
            data = self._rest + data
        at, end = 0, len(data)
        while end - at >= 2:
            first, length, start = data[at], data[at + 1], at + 2
            if first & 0xF0 != 0x80 or length & 0x80:
                self._rest = b""
                raise WireError(f"frame begins with {data[at : at + 2].hex()}")
            if length >= 126:
                width = 2 if length == 126 else 8
                start += width
                if end < start:
                    break
                length = int.from_bytes(data[at + 2 : start], "big")
            if end < start + length:
                break
            yield first & 0x0F, data[start : start + length]
            at = start + length
        self._rest = data[at:]


def varint(data: bytes, at: int) -> tuple[int, int]:
    """(value, index after it) of a base-128 varint.

    Raises:
        WireError: It does not end.
    """
    value = shift = 0
    try:
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
            shift += 7
    except IndexError:
        raise WireError("a varint does not end") from None


def updates(frame: bytes, kinds: int = ALL) -> Iterator[bytes]:
    """The chunks of a frame that are updates of these kinds, each without its tag and length.

    Raises:
        WireError: The frame is not a sequence of chunks.
    """
    at, end = 0, len(frame)
    while at < end:
        length, start = varint(frame, at + 1)
        at = start + length
        if at > end or not length:
            raise WireError("a frame ends within a chunk")
        if _KINDS.get(frame[start], 0) & kinds:
            yield frame[start:at]


def due_ns(chunk: bytes) -> int:
    """``ts_received_ns`` of an update; the publisher writes there when it was due. 0 without one.

    Raises:
        WireError: The chunk is not protobuf.
    """
    _, at = varint(chunk, 1)
    end = len(chunk)
    event_ns = 0
    while at < end:
        tag, at = varint(chunk, at)
        if tag == _TS_EVENT:
            event_ns = int.from_bytes(chunk[at : at + 8], "little")
            at += 8
            continue
        if tag == _TS_RECEIVED_AFTER:
            after, _ = varint(chunk, at)
            return event_ns + (after >> 1 ^ -(after & 1))
        if event_ns and tag > _TS_RECEIVED_AFTER:
            return event_ns  # servers write fields in their order
        kind = tag & 7
        if kind == _VARINT:
            _, at = varint(chunk, at)
        elif kind == _BYTES:
            length, at = varint(chunk, at)
            at += length
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:
            raise WireError(f"a field of unknown kind {kind}")
    return event_ns
