"""The closing handshake (group 10), its codes and reasons (group 11)."""

import asyncio

import pytest

from protos.codec import Codec
from protos.messages import CloseCode
from tests.rfc6455.peer import CLOSE, NONE, PING, Case, Say, close, frame, listen, opened, play
from tests.support.endpoint import Rig

pytestmark = [pytest.mark.rfc6455, pytest.mark.asyncio(loop_scope="module")]

HANDSHAKE = [
    Case("5.5.1", "what came before is answered", lambda say: say.command(1) + close(1000), replies=(1,), close=1000),
    Case("5.5.1", "a ping before is answered", lambda _: frame(PING, b"?") + close(1000), pongs=(b"?",), close=1000),
    Case("5.5.1", "a command after is not", lambda say: close(1000) + say.command(1), close=1000),
    Case("5.5.1", "a ping after is not", lambda _: close(1000) + frame(PING), close=1000),
    Case("5.5.1", "a second close frame is not", lambda _: close(1000) + close(1001), close=1000),
    Case("5.5.1", "nor a broken one", lambda _: close(1000) + frame(CLOSE, b"x"), close=1000),
    Case("1.4", "nor noise", lambda _: close(1000) + b"\xff\x00" * 100, close=1000),
    Case("7.1.5", "no code", lambda _: frame(CLOSE), close=NONE),
    Case("5.5.1", "half a code", lambda _: frame(CLOSE, b"\x03"), close=1002),
    Case("5.5.1", "a reason", lambda _: close(1000, b"done for today"), close=1000),
    Case("5.5", "the longest reason", lambda _: close(1000, b"x" * 123), close=1000),
    Case("5.5", "a longer reason", lambda _: close(1000, b"x" * 124), close=1002),
    Case("5.5.1", "a reason in UTF-8", lambda _: close(1000, "κόσμε".encode()), close=1000),
    Case("8.1", "a reason that is not UTF-8", lambda _: close(1000, b"\xed\xa0\x80"), close=1007),
    Case("8.1", "a reason cut amid a code point", lambda _: close(1000, b"\xce"), close=1007),
]
VALID = (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4008, 4999)
"""Sections 7.4.1 and 7.4.2, and what was registered since."""
INVALID = (0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535)
CODES = [
    *(Case("7.4", f"{code} may be sent", lambda _, code=code: close(code, b"bye"), close=code) for code in VALID),
    *(Case("7.4", f"{code} may not", lambda _, code=code: close(code, b"bye"), close=1002) for code in INVALID),
]


@pytest.mark.parametrize("case", HANDSHAKE, ids=str)
async def test_closing_handshake(rig: Rig, codec: Codec, case: Case, octets: bool) -> None:
    await play(rig, codec, case, octets=octets)


@pytest.mark.parametrize("case", CODES, ids=str)
async def test_close_codes(rig: Rig, codec: Codec, case: Case, octets: bool) -> None:
    await play(rig, codec, case, octets=octets)


async def test_5_5_1_the_code_and_the_reason_are_echoed(rig: Rig, codec: Codec) -> None:
    raw = await opened(rig, codec)
    raw.writer.write(close(3456, b"as agreed"))
    seen = await listen(raw, codec)
    assert (seen.close, seen.reason) == (3456, b"as agreed")
    assert await raw.end() == b"", "7.1.1: the server closes the TCP connection"


async def test_7_1_6_our_reasons_are_short_utf_8_text(rig: Rig, codec: Codec) -> None:
    for data in (frame(Say(codec).opcode, size=1 << 40, form=64), frame(3), close(1), frame(3 - Say(codec).opcode)):
        raw = await opened(rig, codec)
        raw.writer.write(data)
        reason = (await listen(raw, codec)).reason
        assert 0 < len(reason.decode()) <= 123


async def test_7_1_2_after_our_close_frame_no_command_is_obeyed_and_the_peers_ends_it(rig: Rig, codec: Codec) -> None:
    raw = await opened(rig, codec)
    *_, member = rig.endpoint.clients.members.values()
    member.close(CloseCode.GOING_AWAY, "a test")
    assert (await listen(raw, codec)).close == 1001
    raw.writer.write(Say(codec).command(1) + frame(PING))
    await asyncio.sleep(0.05)
    raw.writer.write(close(1001))
    assert await raw.end() == b"\x8a\x00", "5.5.2: a ping is answered until a close frame has come"


async def test_7_1_7_a_broken_frame_after_our_close_frame_ends_it_too(rig: Rig, codec: Codec) -> None:
    raw = await opened(rig, codec)
    *_, member = rig.endpoint.clients.members.values()
    member.close(CloseCode.GOING_AWAY, "a test")
    assert (await listen(raw, codec)).close == 1001
    raw.writer.write(frame(3))
    assert await raw.end() == b""


@pytest.mark.parametrize("cut", [0, 1, 5, 9])
async def test_7_1_5_a_connection_that_breaks_off_counts_as_1006(rig: Rig, codec: Codec, cut: int) -> None:
    before = rig.sample("disconnects_total", code="1006")
    raw = await opened(rig, codec)
    raw.writer.write(Say(codec).command(1, 100)[:cut])
    raw.writer.write_eof()
    await raw.end()
    raw.writer.close()
    async with asyncio.timeout(10):
        while rig.sample("disconnects_total", code="1006") <= before:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
