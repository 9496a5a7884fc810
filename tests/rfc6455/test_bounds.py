"""Limits (group 12) and performance (group 13): what is too large is refused early, what is much is served."""

import asyncio
import time

import pytest

from protos.codec import Codec
from protos.messages import BookUpdate, Channel, ServerMessage, Subscribe
from tests.rfc6455.peer import CONT, PING, Case, Say, frame, listen, opened, play, write
from tests.support.endpoint import BTC, Raw, Rig

pytestmark = [pytest.mark.rfc6455, pytest.mark.asyncio(loop_scope="module")]

LIMITS = [
    Case("10.4", "the largest message", lambda say: say.command(7, 4_096), replies=(7,)),
    Case("10.4", "one byte more", lambda say: frame(say.opcode, b" " * 4_097), close=1009),
    Case("10.4", "64 KiB", lambda say: frame(say.opcode, b" " * 65_536), close=1009),
    Case("10.4", "a header that claims 2^40 bytes", lambda say: frame(say.opcode, size=1 << 40, form=64), close=1009),
    Case(
        "5.2",
        "a length with its highest bit",
        lambda say: frame(say.opcode, size=1 << 63, form=64),
        close=1009,
        also=1002,
    ),
    Case(
        "5.2",
        "the largest length there is",
        lambda say: frame(say.opcode, size=(1 << 64) - 1, form=64),
        close=1009,
        also=1002,
    ),
    Case(
        "10.4",
        "the largest message in fragments",
        lambda say: say.fragments(say.payload(7, 4_096), *[128] * 31),
        replies=(7,),
    ),
    Case("10.4", "fragments that sum to more", lambda say: say.fragments(b" " * 4_097, 4_000), close=1009),
    Case(
        "10.4",
        "the second fragment claims too much",
        lambda say: frame(say.opcode, b" " * 4_000, fin=False) + frame(CONT, size=97),
        close=1009,
    ),
    Case("10.4", "a ping that claims 64 KiB", lambda _: frame(PING, size=65_535, form=16), close=1002, also=1009),
    Case("10.4", "a flood of pings", lambda _: frame(PING) * 121, pongs=(b"",) * 121, close=1008),
]


@pytest.mark.parametrize("case", LIMITS, ids=str)
async def test_limits(rig: Rig, codec: Codec, case: Case, octets: bool) -> None:
    await play(rig, codec, case, octets=octets)


@pytest.mark.parametrize("size", [0, 64, 256, 1_024])
async def test_5_6_a_thousand_messages_are_answered_in_order(rig: Rig, codec: Codec, size: int) -> None:
    say, raw = Say(codec), await opened(rig, codec)
    ids = range(200, 1_200)
    listening = asyncio.create_task(listen(raw, codec))
    await write(raw, b"".join(say.command(number, size) for number in ids) + say.command(4242), octets=False)
    assert (await listening).replies == list(ids)


async def test_5_2_the_length_of_what_we_send_is_in_its_shortest_form(rig: Rig, codec: Codec) -> None:
    """A pong, fifty levels of a book, and all of twenty thousand: frames of all three forms."""
    forms = set()
    rig.update(20_000)
    for depth in (50, 0):
        raw = await opened(rig, codec)
        raw.writer.write(frame(PING, b"x"))
        raw.writer.write(frame(Say(codec).opcode, codec.encode_command(Subscribe(1, BTC, Channel.BOOK, depth))))
        messages: list[ServerMessage] = []
        while not any(isinstance(message, BookUpdate) for message in messages):
            opcode, bits, payload = await shape(raw)
            assert bits == (7 if len(payload) < 126 else 16 if len(payload) < 65_536 else 64)
            forms.add(bits)
            messages += codec.decode(payload) if opcode == Say(codec).opcode else []
        raw.writer.transport.abort()
    assert forms == {7, 16, 64}


async def shape(raw: Raw) -> tuple[int, int, bytes]:
    """Opcode, bits of the length field, and payload of the next frame."""
    async with asyncio.timeout(10):
        first, size = await raw.reader.readexactly(2)
        assert first & 0x70 == 0
        assert size & 0x80 == 0, "5.1: a server masks nothing"
        bits = {126: 16, 127: 64}.get(size, 7)
        if bits > 7:
            size = int.from_bytes(await raw.reader.readexactly(bits // 8), "big")
        return first & 15, bits, await raw.reader.readexactly(size)


async def test_10_4_an_oversized_message_is_refused_before_it_has_arrived(rig: Rig, codec: Codec) -> None:
    raw = await opened(rig, codec)
    raw.writer.write(frame(Say(codec).opcode, size=1 << 20, form=64))
    began = time.monotonic()
    assert (await listen(raw, codec)).close == 1009
    assert time.monotonic() - began < 5, "nobody waits for a mebibyte that does not come"
