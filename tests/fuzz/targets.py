"""What is fuzzed: each target takes any bytes, and lets nothing escape but what is documented."""

import asyncio
from collections.abc import Callable, Iterator

from ingest.mappers import FEEDS
from ingest.pipeline import Pipeline, TickRecord
from loadtest.compiler import has_compiler
from protos.codec import CODECS, CodecError
from protos.records import decode_checkpoint, decode_market, decode_state
from protos.tick import CONTENT_JSON, CONTENT_MSGPACK, CONTENT_PROTO, decode_tick
from services.streamer.lobby import Lobby
from services.streamer.upgrade import StreamHttpProtocol
from services.streamer.ws import Connection
from tests.fuzz.memory import MemoryTransport
from tests.support.endpoint import Rig
from tests.support.shortcuts import shortcuts

CONTENTS = (CONTENT_PROTO, CONTENT_MSGPACK, CONTENT_JSON)
RECORDS = (decode_market, decode_state, decode_checkpoint)
NEXT = b"\xff\x00\xff"
"""Between two ticks of one input."""
KINDS = ("python", "native") if has_compiler() else ("python",)
_codecs = list(CODECS.values())


def command(data: bytes) -> None:
    """What a client says: `Codec.decode_command`. What is accepted survives another round."""
    codec, data = _codecs[data[0] % len(_codecs)], data[1:]
    try:
        found = codec.decode_command(data)
    except CodecError:
        return
    assert codec.decode_command(codec.encode_command(found)) == found


def message(data: bytes) -> None:
    """What a server says, as the client library reads it; and our own records in Kafka. C and Python read the same."""
    which, data = data[0] % (len(_codecs) + len(RECORDS)), data[1:]
    decode: Callable[[bytes], object]
    decode = _codecs[which].decode if which < len(_codecs) else RECORDS[which - len(_codecs)]
    found = [_read(decode, data, kind) for kind in KINDS]
    assert found[0] == found[-1]


def _read(decode: Callable[[bytes], object], data: bytes, kind: str) -> object:
    """What `decode` says; None for an error."""
    with shortcuts(kind):
        try:
            return decode(data)
        except CodecError:
            return None


def tick(data: bytes) -> None:
    """What venues say, in up to four records of one instrument: nothing is a bug of ours."""
    which, data = data[0], data[1:]
    if which >= 128:
        try:
            decode_tick(data, CONTENTS[which % len(CONTENTS)])
        except CodecError:
            return
    feed = FEEDS[which % len(FEEDS)].encode()
    headers = {"feed": feed, "received_ns": b"1653350400000000000"}
    if which >= 128:
        headers["content-type"] = CONTENTS[which % len(CONTENTS)].encode()
    pipeline = Pipeline(0)
    for offset, value in enumerate(data.split(NEXT, 3)):
        outputs = pipeline.process(TickRecord(0, offset, 1_653_350_400_000, b"binance:spot:BTCUSDT", value, headers))
        assert outputs.dead is None or outputs.dead.reason != "bug", outputs.dead
    pipeline.changed()


class _Port:
    """The public port without a socket."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)
        self.loop.set_exception_handler(self._escaped)
        self.rig = Rig()
        self.escaped: list[object] = []

    def _escaped(self, _loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        self.escaped.append(context.get("exception") or context["message"])

    def run(self, talk: Callable[[], MemoryTransport]) -> MemoryTransport:
        async def one() -> MemoryTransport:
            transport = talk()
            for _ in range(3):
                await asyncio.sleep(0)
            transport.lose()
            await asyncio.sleep(0)
            return transport

        transport = self.loop.run_until_complete(one())
        assert not self.escaped, self.escaped
        return transport


_ports: list[_Port] = []


def _port() -> _Port:
    if not _ports:
        _ports.append(_Port())
    return _ports[0]


def _pieces(data: bytes) -> Iterator[bytes]:
    """``data[1:]``, cut where its first byte says."""
    cut, data = data[0], data[1:]
    yield data[:cut]
    if data[cut:]:
        yield data[cut:]


def frame(data: bytes) -> None:
    """What a peer sends on an open connection, in two pieces: it ends with a code of ours, never with 1011."""
    port, codec = _port(), _codecs[data[0] % len(_codecs)]

    def talk() -> MemoryTransport:
        transport = MemoryTransport()
        connection = Connection(port.rig.endpoint.clients, codec, transport)
        transport.set_protocol(connection)
        connection.open(b"")
        for piece in _pieces(data[1:] or b"\0"):
            transport.feed(piece)
        return transport

    sent = port.run(talk).sent
    assert b"\x03\xf3" not in [part[2:4] for part in sent if part[:1] == b"\x88"], "closed with 1011"


def request(data: bytes) -> None:
    """What a peer sends on a new socket, in two pieces: HTTP answers it, or it ends."""
    port = _port()
    server = port.rig.endpoint._server

    def talk() -> MemoryTransport:
        transport = MemoryTransport()
        http = StreamHttpProtocol(port.rig.endpoint.clients, Lobby(), server._config, server._server.server_state, {})
        transport.set_protocol(http)
        http.connection_made(transport)
        for piece in _pieces(data):
            transport.feed(piece)
            http.serve()
        return transport

    sent = b"".join(port.run(talk).sent)
    assert not sent.startswith(b"HTTP/1.1 5") or sent.startswith((b"HTTP/1.1 503", b"HTTP/1.1 505")), sent[:200]


TARGETS: dict[str, Callable[[bytes], None]] = {one.__name__: one for one in (command, message, tick, frame, request)}
