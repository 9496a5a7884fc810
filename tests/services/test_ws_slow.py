"""Clients of the stream endpoint that do not read, over real sockets."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from websockets.frames import Opcode

from protos.messages import (
    BookUpdate,
    Channel,
    Subscribe,
)
from tests.support.endpoint import (
    BTC,
    PROTO,
    Client,
    Rig,
    check_conflated,
    client,
    masked,
    running,
    slow_and_back,
    upgraded,
)


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with running() as one:
        yield one


async def test_a_client_that_never_reads_is_conflated_within_bounded_memory_then_closed_4008() -> None:
    async with running(outbox_stall_ms=1_000) as rig, client(rig) as reader:
        await reader.send(Subscribe(1, BTC, Channel.BOOK))
        dead = await upgraded(rig, receive_buffer=4096)
        dead.writer.write(masked(Opcode.BINARY, PROTO.encode_command(Subscribe(1, BTC, Channel.BOOK))))
        await asyncio.sleep(0.05)
        reading = asyncio.create_task(_read(reader))
        peak = 0
        async with asyncio.timeout(10):
            while rig.sample("disconnects_total", code="4008") == 0:
                for _ in range(20):
                    rig.update(levels=100)
                await asyncio.sleep(0.005)
                peak = max(peak, *(outbox.queued_bytes() for outbox in rig.hub.outboxes))
        assert peak <= rig.hub.limits.outbox_soft_bytes + 20 * 4096
        assert rig.hub.counters.slow_episodes == 1
        assert rig.hub.counters.overflows == 1
        last = rig.update()
        async with asyncio.timeout(5):
            while getattr(reader.held[-1], "seq", 0) != last:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        reading.cancel()
        updates = [message for message in reader.held if isinstance(message, BookUpdate)]
        assert [update.seq for update in updates] == list(range(1, last + 1)), "the one that reads got every update"


async def test_a_client_that_pauses_gets_one_conflated_update_and_is_told_that_it_is_slow() -> None:
    async with running() as rig:
        raw = await upgraded(rig, receive_buffer=4096)
        updates = check_conflated(await slow_and_back(rig, raw))
        assert len(updates) < updates[-1].seq


async def test_a_peer_that_pings_without_reading_costs_one_pong(rig: Rig) -> None:
    raw = await upgraded(rig, receive_buffer=4096)
    (member,) = rig.endpoint.clients.members.values()
    member.pause_writing()  # type: ignore[attr-defined]
    raw.writer.write(b"".join(masked(Opcode.PING, b"%d" % i) for i in range(100)))
    await asyncio.sleep(0.1)
    member.resume_writing()  # type: ignore[attr-defined]
    assert await raw.frame() == (0x8A, b"99")


async def _read(one: Client) -> None:
    while True:
        one.held.extend(one.codec.decode(await one.ws.recv(decode=False)))
