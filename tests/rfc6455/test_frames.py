"""Frames: framing of text and binary (groups 1 and 2), masking (3), pings and pongs (4), reserved bits (5), opcodes of
data (6) and of control frames (7)."""

import pytest

from protos.codec import Codec
from tests.rfc6455.peer import BINARY, CLOSE, CONT, NONE, PING, PONG, TEXT, Case, frame, play
from tests.support.endpoint import Rig

pytestmark = [pytest.mark.rfc6455, pytest.mark.asyncio(loop_scope="module")]

ODD = bytes(range(0xF0, 0x100)) + b"\x00\xff" * 8
"""Not UTF-8: only the application's text has to be."""

FRAMING = [
    Case("5.2", "an empty message is a message", lambda say: frame(say.opcode), errors=1),
    *(
        Case("5.2", f"a message of {size} bytes", lambda say, size=size: say.command(7, size), replies=(7,))
        for size in (100, 125, 126, 127, 131, 1_000, 4_095, 4_096)
    ),
    Case(
        "5.2", "a length in 16 bits that fits 7", lambda say: frame(say.opcode, say.payload(7), form=16), replies=(7,)
    ),
    Case(
        "5.2", "a length in 64 bits that fits 7", lambda say: frame(say.opcode, say.payload(7), form=64), replies=(7,)
    ),
    Case(
        "5.6",
        "several messages in one segment",
        lambda say: say.command(1) + say.command(2) + say.command(3),
        replies=(1, 2, 3),
    ),
    Case(
        "5.6",
        "text for a binary subprotocol, and the reverse",
        lambda say: frame(TEXT if say.codec.binary else BINARY, say.payload(7)),
        close=1003,
    ),
]

MASKING = [
    Case("5.1", "a data frame that is not masked", lambda say: frame(say.opcode, say.payload(7), key=None), close=1002),
    Case("5.1", "a ping that is not masked", lambda _: frame(PING, key=None), close=1002),
    Case("5.1", "a close frame that is not masked", lambda _: frame(CLOSE, b"\x03\xe8", key=None), close=1002),
    Case("5.3", "a key of zeros", lambda say: frame(say.opcode, say.payload(7), key=b"\0\0\0\0"), replies=(7,)),
    Case(
        "5.3",
        "another key for each frame",
        lambda say: b"".join(frame(say.opcode, say.payload(n), key=bytes((n, 255 - n, n, 0))) for n in (1, 2, 3)),
        replies=(1, 2, 3),
    ),
]

PINGS = [
    Case("5.5.2", "without payload", lambda _: frame(PING), pongs=(b"",)),
    Case("5.5.2", "with text", lambda _: frame(PING, b"Hello, world!"), pongs=(b"Hello, world!",)),
    Case("5.5.2", "with binary that is not UTF-8", lambda _: frame(PING, ODD), pongs=(ODD,)),
    Case("5.5", "with 125 bytes", lambda _: frame(PING, b"\xfe" * 125), pongs=(b"\xfe" * 125,)),
    Case("5.5", "with 126 bytes", lambda _: frame(PING, b"\xfe" * 126), close=1002),
    Case("5.5.3", "a pong that nobody asked for", lambda _: frame(PONG)),
    Case("5.5.3", "such a pong with payload", lambda _: frame(PONG, b"unasked")),
    Case(
        "5.5.3",
        "such a pong, then a ping",
        lambda _: frame(PONG, b"unasked") + frame(PING, b"asked"),
        pongs=(b"asked",),
    ),
    Case(
        "5.5.2",
        "ten at once, in order",
        lambda _: b"".join(frame(PING, b"%d" % n) for n in range(10)),
        pongs=tuple(b"%d" % n for n in range(10)),
    ),
    Case(
        "5.5.2",
        "between two commands",
        lambda say: say.command(1) + frame(PING, b"?") + say.command(2),
        (b"?",),
        (1, 2),
    ),
]

RESERVED_BITS = [
    *(
        Case(
            "5.2",
            f"{rsv:03b} in a data frame",
            lambda say, rsv=rsv: frame(say.opcode, say.payload(7), rsv=rsv),
            close=1002,
        )
        for rsv in range(1, 8)
    ),
    *(Case("5.2", f"{rsv:03b} in a ping", lambda _, rsv=rsv: frame(PING, rsv=rsv), close=1002) for rsv in (1, 2, 4)),
    Case("5.2", "100 in a close frame", lambda _: frame(CLOSE, b"\x03\xe8", rsv=4), close=1002),
    Case(
        "5.2",
        "what came before is answered",
        lambda say: say.command(1) + frame(say.opcode, rsv=1),
        replies=(1,),
        close=1002,
    ),
    Case(
        "7.1.7",
        "what comes after is not",
        lambda say: frame(say.opcode, rsv=1) + frame(PING) + say.command(1),
        close=1002,
    ),
    Case(
        "5.4",
        "010 in a continuation",
        lambda say: frame(say.opcode, b"x", fin=False) + frame(CONT, b"x", rsv=2),
        close=1002,
    ),
]

OPCODES = [
    *(
        Case("5.2", f"{opcode:#x} is reserved for data", lambda _, n=opcode: frame(n), close=1002)
        for opcode in range(3, 8)
    ),
    Case("5.2", "reserved for data, with payload", lambda _: frame(3, b"reserved"), close=1002),
    Case("7.1.7", "reserved for data, before a command", lambda say: frame(4) + say.command(1), close=1002),
    *(
        Case("5.2", f"{opcode:#x} is reserved for control", lambda _, n=opcode: frame(n), close=1002)
        for opcode in range(11, 16)
    ),
    Case("5.2", "reserved for control, with payload", lambda _: frame(11, b"reserved"), close=1002),
    Case("7.1.7", "reserved for control, before a ping", lambda _: frame(12) + frame(PING), close=1002),
    Case("5.5", "a ping may not be fragmented", lambda _: frame(PING, b"x", fin=False), close=1002),
    Case("5.5", "a pong may not be fragmented", lambda _: frame(PONG, b"x", fin=False), close=1002),
    Case("5.5", "a close frame may not be fragmented", lambda _: frame(CLOSE, b"\x03\xe8", fin=False), close=1002),
    Case("5.5.1", "a close frame may be empty", lambda _: frame(CLOSE), close=NONE),
]


@pytest.mark.parametrize("case", FRAMING, ids=str)
async def test_framing(rig: Rig, codec: Codec, case: Case, octets: bool) -> None:
    await play(rig, codec, case, octets=octets)


@pytest.mark.parametrize("case", MASKING, ids=str)
async def test_masking(rig: Rig, codec: Codec, case: Case, octets: bool) -> None:
    await play(rig, codec, case, octets=octets)


@pytest.mark.parametrize("case", PINGS, ids=str)
async def test_pings_and_pongs(rig: Rig, codec: Codec, case: Case, octets: bool) -> None:
    await play(rig, codec, case, octets=octets)


@pytest.mark.parametrize("case", RESERVED_BITS, ids=str)
async def test_reserved_bits(rig: Rig, codec: Codec, case: Case, octets: bool) -> None:
    await play(rig, codec, case, octets=octets)


@pytest.mark.parametrize("case", OPCODES, ids=str)
async def test_opcodes(rig: Rig, codec: Codec, case: Case, octets: bool) -> None:
    await play(rig, codec, case, octets=octets)
