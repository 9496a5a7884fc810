"""Messages: fragmentation (group 8) and text that is UTF-8, or is not (group 9)."""

import pytest

from protos.codec import Codec
from protos.messages import Auth
from tests.rfc6455.peer import CONT, PING, PONG, TEXT, Case, Say, close, frame, play
from tests.support.endpoint import JSON, Rig

pytestmark = [pytest.mark.rfc6455, pytest.mark.asyncio(loop_scope="module")]


def first(say: Say, payload: bytes = b"x") -> bytes:
    """A message begins."""
    return frame(say.opcode, payload, fin=False)


FRAGMENTATION = [
    Case("5.4", "two fragments", lambda say: say.fragments(say.payload(7, 200), 100), replies=(7,)),
    Case("5.4", "many fragments", lambda say: say.fragments(say.payload(7, 300), *[10] * 29), replies=(7,)),
    Case("5.4", "the first is empty", lambda say: say.fragments(say.payload(7), 0), replies=(7,)),
    Case("5.4", "the last is empty", lambda say: say.fragments(say.payload(7, 100), 100), replies=(7,)),
    Case("5.4", "all are empty", lambda say: say.fragments(b"", 0, 0), errors=1),
    Case("5.4", "empty ones in the middle", lambda say: say.fragments(say.payload(7, 100), 1, 0, 0, 1), replies=(7,)),
    Case(
        "5.4",
        "a ping between them is answered at once",
        lambda say: say.fragments(say.payload(7, 200), 99, between=frame(PING, b"between")),
        pongs=(b"between",),
        replies=(7,),
    ),
    Case(
        "5.4",
        "pings and pongs between all of five",
        lambda say: say.fragments(say.payload(7, 200), 40, 40, 40, 40, between=frame(PING, b"!") + frame(PONG)),
        pongs=(b"!",) * 4,
        replies=(7,),
    ),
    Case(
        "5.4",
        "one fragmented message after another",
        lambda say: say.fragments(say.payload(1, 99), 9) + say.command(2) + say.fragments(say.payload(3, 99), 9, 9),
        replies=(1, 2, 3),
    ),
    Case("5.4", "a continuation of nothing", lambda _: frame(CONT, b"x"), close=1002),
    Case("5.4", "a continuation of nothing that goes on", lambda _: frame(CONT, b"x", fin=False), close=1002),
    Case("5.4", "a continuation after the end", lambda say: say.command(1) + frame(CONT), replies=(1,), close=1002),
    Case("5.4", "a second beginning", lambda say: first(say) + first(say), close=1002),
    Case("5.4", "a whole message amid another", lambda say: first(say) + say.command(1), close=1002),
    Case(
        "5.4",
        "text amid text in another opcode",
        lambda say: first(say) + frame(3 - say.opcode, b"x"),
        close=1002,
        also=1003,
    ),
    Case("5.5.1", "a close frame amid a message", lambda say: first(say) + close(1000), close=1000, also=1002),
    Case("10.4", "more than 64", lambda say: first(say, b"") + frame(CONT, fin=False) * 64, close=1008),
]


def with_text(text: bytes) -> bytes:
    """A JSON command, answered by Pong 7, that has ``text`` in it, whatever it is."""
    before, after = JSON.encode_command(Auth(7, "#")).split(b"#")
    return before + text + after


VALID = {
    "Greek": "κόσμε".encode(),
    "two octets, the lowest": b"\xc2\x80",
    "three octets, the lowest": b"\xe0\xa0\x80",
    "four octets, the lowest": b"\xf0\x90\x80\x80",
    "one octet, the highest": b"\x7e",
    "two octets, the highest": b"\xdf\xbf",
    "three octets, the highest": b"\xef\xbf\xbf",
    "four octets, the highest": b"\xf4\x8f\xbf\xbf",
    "before the surrogates": b"\xed\x9f\xbf",
    "after the surrogates": b"\xee\x80\x80",
    "the replacement character": b"\xef\xbf\xbd",
    "no character, but valid": b"\xef\xbf\xbe\xf0\x9f\xbf\xbe",
    "a byte order mark": b"\xef\xbb\xbf",
    "an emoji of several": "👩‍🚀".encode(),
}
INVALID = {
    "a continuation alone": b"\x80",
    "many continuations": b"\x80\xbf" * 4,
    "two octets, one missing": b"\xc2",
    "three octets, one missing": b"\xe0\xa0",
    "four octets, two missing": b"\xf0\x90",
    "a start after a start": b"\xc2\xc2",
    "0xFE": b"\xfe",
    "0xFF": b"\xff",
    "five octets": b"\xf8\x88\x80\x80\x80",
    "six octets": b"\xfc\x84\x80\x80\x80\x80",
    "a slash in two octets": b"\xc0\xaf",
    "a slash in three octets": b"\xe0\x80\xaf",
    "a slash in four octets": b"\xf0\x80\x80\xaf",
    "NUL in two octets": b"\xc0\x80",
    "the highest that is too long": b"\xf0\x8f\xbf\xbf",
    "a high surrogate": b"\xed\xa0\x80",
    "a low surrogate": b"\xed\xbf\xbf",
    "a pair of surrogates": b"\xed\xa0\x80\xed\xb0\x80",
    "beyond the last code point": b"\xf4\x90\x80\x80",
    "far beyond it": b"\xf7\xbf\xbf\xbf",
    "Greek, then not": "κόσμε".encode() + b"\xed\xa0\x80" + b"edited",
}
TEXTS = [
    *(
        Case("8.1", f"{name}: valid", lambda _, text=text: frame(TEXT, with_text(text)), replies=(7,))
        for name, text in VALID.items()
    ),
    *(
        Case(
            "5.6",
            f"{name}: valid, each octet in a frame of its own",
            lambda _, text=text: (
                b"%b%b%b"
                % (
                    frame(TEXT, with_text(text)[: with_text(text).index(text)], fin=False),
                    b"".join(frame(CONT, bytes((octet,)), fin=False) for octet in text),
                    frame(CONT, with_text(text)[with_text(text).index(text) + len(text) :]),
                )
            ),
            replies=(7,),
        )
        for name, text in VALID.items()
    ),
    *(
        Case("8.1", f"{name}: invalid", lambda _, text=text: frame(TEXT, with_text(text)), close=1007)
        for name, text in INVALID.items()
    ),
    *(
        Case(
            "8.1",
            f"{name}: invalid, over two fragments",
            lambda say, text=text: say.fragments(with_text(text), with_text(text).index(text) + 1),
            close=1007,
        )
        for name, text in INVALID.items()
    ),
    Case("8.1", "invalid at the end of the message", lambda _: frame(TEXT, b'"\xce'), close=1007),
    Case("8.1", "invalid, and nothing else", lambda _: frame(TEXT, b"\xff"), close=1007),
    Case(
        "8.1",
        "valid after a ping amid a code point",
        lambda say: say.fragments(
            with_text(b"\xce\xba"), len(with_text(b"\xce\xba")) - 4, 1, between=frame(PING, b"\xff")
        ),
        pongs=(b"\xff",) * 2,
        replies=(7,),
    ),
]


@pytest.mark.parametrize("case", FRAGMENTATION, ids=str)
async def test_fragmentation(rig: Rig, codec: Codec, case: Case, octets: bool) -> None:
    await play(rig, codec, case, octets=octets)


@pytest.mark.parametrize("case", TEXTS, ids=str)
async def test_text_is_utf_8(rig: Rig, case: Case, octets: bool) -> None:
    await play(rig, JSON, case, octets=octets)


@pytest.mark.parametrize("case", INVALID, ids=str)
async def test_binary_may_be_anything(rig: Rig, codec: Codec, case: str) -> None:
    """Section 5.6: only text is text. It is no command, so it gets the reply of one."""
    if codec.binary:
        said = Case("5.6", case, lambda say: frame(say.opcode, b"\xff\xfe" + INVALID[case]), errors=1)
        await play(rig, codec, said, octets=False)
