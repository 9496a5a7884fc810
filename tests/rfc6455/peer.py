"""A peer that says exactly what a case wants, in bytes, and what the endpoint must make of it.

Every case runs whole and octet by octet (RFC 6455 section 5.4: nothing may depend on how the network cuts the stream),
and in all three subprotocols. An open connection must still answer a command at the end of its case; a closed one must
stay silent.
"""

import asyncio
import struct
from collections.abc import Callable
from dataclasses import dataclass

from websockets.frames import Opcode

from protos.codec import Codec
from protos.messages import Auth, Error, Ping, Pong
from tests.support.endpoint import Raw, Rig, request

TEXT, BINARY, CONT, CLOSE, PING, PONG = Opcode.TEXT, Opcode.BINARY, Opcode.CONT, Opcode.CLOSE, Opcode.PING, Opcode.PONG
LAST = 4242
NONE = 1005
"""Stands for a close frame without a code."""
KEY = b"\x37\xfa\x21\x3d"
"""Of the example in section 5.7."""
WAIT_S = 10
OCTETS_MAX = 300
"""A longer case is cut in larger pieces."""


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    key: bytes | None = KEY,
    size: int = 0,
    form: int = 0,
) -> bytes:
    """A frame as section 5.2 draws it, wrong where the caller wants it.

    Args:
        key: The mask; None: not masked.
        size: What the header claims; 0: the truth.
        form: Bits of the length field: 7, 16 or 64; 0: the shortest that fits.
    """
    size = size or len(payload)
    form = form or (7 if size < 126 else 16 if size < 65_536 else 64)
    mask_bit = 0 if key is None else 0x80
    head = bytes((fin << 7 | rsv << 4 | opcode,))
    head += {
        7: lambda: bytes((mask_bit | size,)),
        16: lambda: struct.pack("!BH", mask_bit | 126, size),
        64: lambda: struct.pack("!BQ", mask_bit | 127, size),
    }[form]()
    if key is None:
        return head + payload
    return head + key + bytes(byte ^ key[i % 4] for i, byte in enumerate(payload))


def close(code: int, reason: bytes = b"") -> bytes:
    return frame(CLOSE, struct.pack("!H", code) + reason)


@dataclass(frozen=True)
class Say:
    """What is different in each subprotocol."""

    codec: Codec

    @property
    def opcode(self) -> Opcode:
        """Of data frames."""
        return BINARY if self.codec.binary else TEXT

    def payload(self, number: int, size: int = 0) -> bytes:
        """A command that is answered by Pong ``number``, of ``size`` bytes."""
        if not size:
            return self.codec.encode_command(Ping(number))
        token = ""
        while (short := size - len(self.codec.encode_command(Auth(number, token)))) > 0:
            token += "x" * short
        while len(data := self.codec.encode_command(Auth(number, token))) > size:
            token = token[:-1]
        assert len(data) == size, "lengths of lengths leave a gap here; choose another size"
        return data

    def command(self, number: int, size: int = 0) -> bytes:
        return frame(self.opcode, self.payload(number, size))

    def fragments(self, data: bytes, *sizes: int, between: bytes = b"") -> bytes:
        """``data`` in frames of these sizes and a last one with the rest."""
        parts, opcode = [], self.opcode
        for size in sizes:
            parts.append(frame(opcode, data[:size], fin=False))
            data, opcode = data[size:], CONT
        return between.join((*parts, frame(CONT, data)))


@dataclass(frozen=True)
class Case:
    """
    Args:
        section: Of RFC 6455.
        send: Builds the bytes.
        pongs: Payloads of the pong frames that must come, in order.
        replies: Ids of the commands that must be answered, in order.
        errors: How many messages must be answered by a typed error.
        close: Code of the close frame that must come; None: the connection stays open.
        also: Another code that the RFC allows.
    """

    section: str
    name: str
    send: Callable[[Say], bytes]
    pongs: tuple[bytes, ...] = ()
    replies: tuple[int, ...] = ()
    errors: int = 0
    close: int | None = None
    also: int | None = None

    def __str__(self) -> str:
        return f"{self.section} {self.name}"


@dataclass
class Seen:
    pongs: list[bytes]
    replies: list[int]
    errors: int = 0
    close: int | None = None
    reason: bytes = b""


async def opened(rig: Rig, codec: Codec, **headers: str) -> Raw:
    """A connection after its handshake and Welcome."""
    raw = await Raw.connect(rig)
    raw.writer.write(request(sec_websocket_protocol=codec.name, **headers))
    status, head = await raw.head()
    assert status == 101, head
    await raw.frame()
    return raw


async def listen(raw: Raw, codec: Codec) -> Seen:
    """Until the reply to `LAST`, or a close frame."""
    seen = Seen([], [])
    async with asyncio.timeout(WAIT_S):
        while True:
            first, payload = await raw.frame()
            assert first & 0xF0 == 0x80, "whole, and no reserved bit"
            opcode = Opcode(first & 15)
            if opcode is PONG:
                seen.pongs.append(payload)
            elif opcode is CLOSE:
                seen.close = int.from_bytes(payload[:2], "big") if payload else NONE
                seen.reason = payload[2:]
                return seen
            else:
                assert opcode is Say(codec).opcode
                for message in codec.decode(payload):
                    if isinstance(message, Pong) and message.id == LAST:
                        return seen
                    if isinstance(message, Pong):
                        seen.replies.append(message.id)
                    else:
                        assert isinstance(message, Error)
                        seen.errors += 1


async def write(raw: Raw, data: bytes, octets: bool) -> None:
    piece = len(data) if not octets else 1 if len(data) <= OCTETS_MAX else 97
    for start in range(0, len(data), max(piece, 1)):
        raw.writer.write(data[start : start + piece])
        if octets:
            await asyncio.sleep(0)


async def play(rig: Rig, codec: Codec, case: Case, *, octets: bool) -> None:
    say = Say(codec)
    raw = await opened(rig, codec)
    data = case.send(say)
    try:
        await write(raw, data if case.close is not None else data + say.command(LAST), octets)
        seen = await listen(raw, codec)
        assert (tuple(seen.pongs), tuple(seen.replies), seen.errors) == (case.pongs, case.replies, case.errors)
        assert seen.close == case.close or seen.close == case.also is not None, seen.reason
        if seen.close is not None:
            raw.writer.write(close(1000) + say.command(1) + frame(PING))
            assert await raw.end() == b"", "nothing after the close frame"
    finally:
        raw.writer.transport.abort()
