"""What fuzzing starts from: the golden vectors, the beginning of the captures, and handshakes."""

import json
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

from websockets.frames import Opcode

from ingest.mappers import FEEDS, mapper_for
from protos.codec import CODECS
from services.errors import UserError
from services.feed.files import read_capture
from tests.fuzz.targets import CONTENTS, NEXT
from tests.support.captures import CAPTURES, FILES
from tests.support.endpoint import masked, request

VECTORS = Path(__file__).parents[2] / "protos" / "vectors"
FORMS = ("proto", "msgpack", "json")


def vectors(kind: str) -> Iterator[tuple[int, bytes]]:
    """(number of the form, bytes) of all vectors of this kind."""
    for path in sorted(VECTORS.glob("*.json")):
        vector = json.loads(path.read_text())
        for number, form in enumerate(FORMS):
            if form in vector and kind in vector:
                data = vector[form]
                yield number, data.encode() if form == "json" else bytes.fromhex(data)


def ticks() -> Iterator[bytes]:
    for number, data in vectors("tick"):
        which = next(n for n in range(128, 256) if CONTENTS[n % 3] == CONTENTS[number])
        yield bytes((which,)) + data
    for name in FILES:
        with suppress(UserError):  # without captures the vectors must do
            for captured in islice(read_capture(CAPTURES / FILES[name], name), 3):
                feed = captured.feed
                for one in mapper_for(feed).split(feed, captured.message, captured.symbol_hint):
                    yield bytes((FEEDS.index(feed),)) + one.value[:2_000] + NEXT + one.value[:2_000]


def seeds(target: str) -> list[bytes]:
    if target == "command":
        return [bytes((number,)) + data for number, data in vectors("command")]
    if target == "message":
        return [bytes((number,)) + data for number, data in vectors("message")]
    if target == "tick":
        return list(ticks())
    if target == "frame":
        return [
            bytes((number, 255)) + masked(Opcode.TEXT if name.endswith("json") else Opcode.BINARY, data)
            for number, name in enumerate(CODECS)
            for form, data in vectors("command")
            if form == number
        ]
    gets = [b"GET /%b HTTP/1.1\r\nhost: x\r\n\r\n" % path for path in (b"v1/instruments", b"v1/stream", b"")]
    return [b"\xff" + data for data in (*gets, request(), request(connection="close"), gets[0] + request())]
