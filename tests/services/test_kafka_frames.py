"""What comes through a connection of aiokafka's, cut into frames by us."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from aiokafka import AIOKafkaClient
from aiokafka.errors import CorrelationIdError, KafkaConnectionError
from aiokafka.protocol.admin import ApiVersionResponse_v0
from aiokafka.protocol.fetch import FetchResponse_v4
from aiokafka.structs import BrokerMetadata

from services.kafka.connection import ask, connection_to
from services.kafka.fetch import FetchRequest

REQUEST = FetchRequest({"t": {0: 0}}, 1, 1, 1, "me")
VERSIONS_KEY = b"\0\x12"


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
