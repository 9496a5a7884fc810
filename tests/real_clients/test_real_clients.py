"""Clients that others wrote, from the first subscription to the drain, in text and in binary."""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

import pytest

from protos.codec import Codec
from protos.messages import (
    BookUpdate,
    Channel,
    CloseCode,
    Command,
    Flag,
    Notice,
    NoticeCode,
    Resume,
    ServerMessage,
    Subscribe,
    Subscribed,
    Welcome,
)
from tests.real_clients.libraries import aiohttp_, picows_, websocket_client, websockets_
from tests.real_clients.programs import chromium, jdk, node_own, node_ws
from tests.real_clients.puppet import Closed, Puppet
from tests.support.endpoint import BTC, JSON, PROTO, Rig, running

CLIENTS: dict[str, Callable[[], AbstractAsyncContextManager[Puppet]]] = {
    "websockets": websockets_,
    "aiohttp": aiohttp_,
    "picows": picows_,
    "websocket-client": websocket_client,
    "node ws": node_ws,
    "node's own": node_own,
    "JDK HttpClient": jdk,
    "Chromium": chromium,
}
WAIT_S = 30
M = TypeVar("M", bound=ServerMessage)


class Talk:
    """One connection of a real client."""

    def __init__(self, puppet: Puppet, codec: Codec) -> None:
        self._puppet = puppet
        self._codec = codec
        self._held: deque[ServerMessage] = deque()

    async def begin(self, rig: Rig) -> None:
        async with asyncio.timeout(WAIT_S):
            url = f"ws://127.0.0.1:{rig.port}/v1/stream"
            assert await self._puppet.open(url, self._codec.name) == self._codec.name
        await self.until(Welcome)

    async def send(self, command: Command) -> None:
        data = self._codec.encode_command(command)
        await self._puppet.send(data if self._codec.binary else data.decode())

    async def until(self, kind: type[M]) -> M:
        async with asyncio.timeout(WAIT_S):
            while True:
                while self._held:
                    if isinstance(message := self._held.popleft(), kind):
                        return message
                data = await self._puppet.receive()
                assert isinstance(data, bytes if self._codec.binary else str), data
                self._held.extend(self._codec.decode(data if isinstance(data, bytes) else data.encode()))

    async def end(self) -> Closed:
        async with asyncio.timeout(WAIT_S):
            while not isinstance(data := await self._puppet.receive(), Closed):
                pass
            return data


async def subscribes_and_follows(talk: Talk, rig: Rig) -> int:
    """Up to a frame of more than 64 KiB; returns the last seq."""
    await talk.send(Subscribe(1, BTC, Channel.BOOK))
    assert not (await talk.until(Subscribed)).resumed
    snapshot = await talk.until(BookUpdate)
    assert snapshot.flags & Flag.SNAPSHOT
    for levels in (1, 30, 12_000):
        seq = rig.update(levels)
        update = await talk.until(BookUpdate)
        assert (update.prev_seq, update.seq, len(update.bids)) == (seq - 1, seq, levels)
    return rig.seq


async def comes_back_and_resumes(talk: Talk, rig: Rig, seq: int) -> None:
    for _ in range(3):
        rig.update()
    await talk.begin(rig)
    await talk.send(Subscribe(2, BTC, Channel.BOOK, resume=Resume(1, seq)))
    assert (await talk.until(Subscribed)).resumed
    merged = await talk.until(BookUpdate)
    assert (merged.prev_seq, merged.seq) == (seq, rig.seq)
    assert merged.flags & Flag.CONFLATED


async def is_drained(talk: Talk, rig: Rig) -> None:
    drain = asyncio.create_task(rig.endpoint.drain(0.5))
    notice = await talk.until(Notice)
    assert notice.code is NoticeCode.SHUTDOWN
    assert notice.retry_after_ms > 0
    assert await talk.end() == Closed(CloseCode.SERVICE_RESTART, "this server restarts")
    await drain


@pytest.mark.rfc6455
@pytest.mark.parametrize("name", CLIENTS)
async def test_a_real_client_subscribes_resumes_and_is_drained(name: str) -> None:
    async with CLIENTS[name]() as puppet:
        for codec in (JSON, PROTO):
            async with running() as rig:
                talk = Talk(puppet, codec)
                await talk.begin(rig)
                seq = await subscribes_and_follows(talk, rig)
                await puppet.close()
                assert (await talk.end()).code == CloseCode.NORMAL
                again = Talk(puppet, codec)
                await comes_back_and_resumes(again, rig, seq)
                await is_drained(again, rig)
                await rig.settle(0)
                assert rig.sample("disconnects_total", code="1006") == 0
