"""What goes and comes through a connection of aiokafka's: requests and answers, cut into frames by us."""

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from io import BytesIO
from typing import Any

import pytest
from aiokafka import AIOKafkaClient
from aiokafka.errors import CorrelationIdError, IncompatibleBrokerVersion, KafkaConnectionError
from aiokafka.protocol.admin import ApiVersionResponse_v0
from aiokafka.protocol.fetch import FetchRequest_v4, FetchResponse_v4
from aiokafka.structs import BrokerMetadata

from services.kafka.connection import ask, connection_to
from services.kafka.fetch import FetchAnswer, FetchRequest

REQUEST = FetchRequest({"t": {0: 0}}, 1, 1, 1, "me")
VERSIONS_KEY = b"\0\x12"


class TestBytes:
    def test_a_request_is_what_aiokafka_would_send(self) -> None:
        ours = FetchRequest({"t": {3: 17, 0: 1 << 40}, "naïve": {1: 0}}, 100, 1 << 24, 1 << 20, "mé")
        size = 1 << 20
        for correlation_id, offset in ((7, 17), (1 << 30, 1 << 50)):
            ours.seek(("t", 3), offset)
            topics = [("t", [(3, offset, size), (0, 1 << 40, size)]), ("naïve", [(1, 0, size)])]
            theirs = FetchRequest_v4(-1, 100, 1, 1 << 24, 0, topics)
            header = theirs.build_request_header(correlation_id=correlation_id, client_id="mé")
            message = header.encode() + theirs.encode()
            assert ours.frame(correlation_id) == len(message).to_bytes(4, "big") + message
        assert ours.parse_response_header(BytesIO(b"\0\0\0\7rest")).correlation_id == 7

    @pytest.mark.parametrize("versions", [{}, {1: (5, 17)}, {1: (0, 3)}])
    def test_a_broker_that_does_not_take_it(self, versions: dict[int, tuple[int, int]]) -> None:
        with pytest.raises(IncompatibleBrokerVersion):
            FetchRequest.prepare(versions)

    def test_an_answer(self) -> None:
        partitions = [(3, 0, 20, 19, [(5, 6), (7, 8)], b"records"), (0, 1, -1, -1, None, None)]
        data = FetchResponse_v4(9, [("t", partitions), ("naïve", [(1, 0, 5, 5, [], b"")])]).encode()
        assert FetchAnswer.decode(BytesIO(data)) == [
            ("t", 3, 0, 20, b"records"),
            ("t", 0, 1, -1, b""),
            ("naïve", 1, 0, 5, b""),
        ]
        for length in range(len(data)):
            with pytest.raises((struct.error, UnicodeDecodeError)):
                FetchAnswer.decode(BytesIO(data[:length]))


def framed(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


@asynccontextmanager
async def connected(pieces: list[bytes]) -> AsyncIterator[tuple[AIOKafkaClient, Any]]:
    """A connection to a broker that answers a fetch with these bytes, one piece after the other."""
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                request = await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big"))
                if request[:2] == VERSIONS_KEY:
                    writer.write(framed(request[4:8] + ApiVersionResponse_v0(0, [(1, 4, 4)]).encode()))
                    continue
                for piece in pieces:
                    writer.write(piece)
                    await asyncio.sleep(0.005)
        writer.close()
        ended.set()

    async with asyncio.timeout(10), await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        client = AIOKafkaClient(request_timeout_ms=1_000)
        host, port = server.sockets[0].getsockname()
        client.cluster._brokers = {1: BrokerMetadata(1, host, port, None)}
        assert connection_to(client, 1) is None
        assert await client.ready(1)
        yield client, connection_to(client, 1)
        await client.close()
        await ended.wait()


@pytest.mark.parametrize("step", [1, 5, 1_000])
async def test_in_pieces_or_together(step: int) -> None:
    answers = [FetchResponse_v4(0, [("t", [(0, 0, n, n, [], b"%d" % n)])]).encode() for n in (2, 3)]
    frames = b"".join([framed(n.to_bytes(4, "big") + answer) for n, answer in enumerate(answers, 2)])
    async with connected([frames[i : i + step] for i in range(0, len(frames), step)]) as (_, connection):
        first, second = (asyncio.get_running_loop().create_future() for _ in range(2))
        connection._requests.append((2, REQUEST, first))  # as if it had been sent, too
        connection._correlation_id = 2
        ask(connection, REQUEST, second)
        assert await first == [("t", 0, 0, 2, b"2")]
        assert await second == [("t", 0, 0, 3, b"3")]


@pytest.mark.parametrize(
    "pieces",
    [
        [b"\0\0\0\5\0\0\0\2x", b"more"],  # cut off
        [b"\0\0\0\5\0\0\0\1x\0\0\0\5\0\0\0\2x"],  # to another request
    ],
)
async def test_what_cannot_be_read_closes_the_connection(pieces: list[bytes]) -> None:
    async with connected(pieces) as (client, connection):
        answer = asyncio.get_running_loop().create_future()
        ask(connection, REQUEST, answer)
        with pytest.raises((KafkaConnectionError, CorrelationIdError)):
            await answer
        assert connection_to(client, 1) is None
