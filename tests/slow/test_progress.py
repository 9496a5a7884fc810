"""A client is judged by what it takes: one that reads steadily is not stalled, one that takes nothing is not alive."""

import asyncio
import struct

import pytest
from websockets.frames import Opcode

from protos.messages import BookUpdate, Channel, ServerMessage, Subscribe
from tests.support.endpoint import BTC, PROTO, Raw, Rig, masked, running, upgraded

LEVELS = 190_000
"""Of a snapshot of 750 KB, which no kernel takes at once from us."""
STALL_MS = 1_000
PIECE, PIECES_PER_S = 4 << 10, 50
"""What a steady client reads: the snapshot takes three times as long as it may stall."""


async def subscribed(rig: Rig) -> Raw:
    """A client that is to get the large snapshot."""
    rig.seq += 1
    bids = [(price, rig.seq) for price in range(-1_000_003 * LEVELS, 0, 1_000_003)]
    rig.apply(BookUpdate(epoch=1, seq=rig.seq, prev_seq=rig.seq - 1, bids=bids))
    raw = await upgraded(rig, receive_buffer=4096)
    raw.writer.write(masked(Opcode.BINARY, PROTO.encode_command(Subscribe(1, BTC, Channel.BOOK))))
    return raw


async def closed(rig: Rig) -> float:
    """How often with 4008, once nobody is there any more."""
    async with asyncio.timeout(15):
        while not rig.endpoint.clients.open:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        while rig.endpoint.clients.open:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return rig.sample("disconnects_total", code="4008")


async def next_frame(raw: Raw) -> list[ServerMessage]:
    """Read steadily, and answer pings."""
    first, size = await raw.reader.readexactly(2)
    if size >= 126:
        kind = "!H" if size == 126 else "!Q"
        (size,) = struct.unpack(kind, await raw.reader.readexactly(struct.calcsize(kind)))
    payload = b""
    while len(payload) < size:
        payload += await raw.reader.read(min(PIECE, size - len(payload)))
        await asyncio.sleep(1 / PIECES_PER_S)
    assert first != 0x88, payload
    if first == 0x89:
        raw.writer.write(masked(Opcode.PONG, payload))
    return list(PROTO.decode(payload)) if first == 0x82 else []


@pytest.mark.parametrize("flowing", [True, False])
async def test_a_snapshot_may_take_its_time_while_the_client_reads(flowing: bool) -> None:
    """With updates that wait behind it, and without."""
    async with running(outbox_stall_ms=STALL_MS, heartbeat_interval_ms=300) as rig:
        raw = await subscribed(rig)
        loop = asyncio.get_running_loop()
        began, snapshot = loop.time(), rig.seq

        async def flow() -> None:
            while flowing:
                rig.update()
                await asyncio.sleep(0.01)

        flowing_on = asyncio.create_task(flow())
        seen: list[ServerMessage] = []
        async with asyncio.timeout(30):
            while not any(isinstance(message, BookUpdate) for message in seen):
                seen += await next_frame(raw)
            assert loop.time() - began > 2 * STALL_MS / 1e3, "it took its time"
            flowing_on.cancel()
            last = rig.update()
            while getattr(seen[-1], "seq", 0) != last:
                seen += await next_frame(raw)
        updates = [message for message in seen if isinstance(message, BookUpdate)]
        assert updates[0].seq >= snapshot
        assert rig.sample("disconnects_total", code="4008") == 0


async def test_who_takes_nothing_is_closed_though_nothing_more_waits() -> None:
    """No update comes after the snapshot; what is left of that is with the transport, where no outbox sees it."""
    async with running(outbox_stall_ms=STALL_MS, heartbeat_interval_ms=300) as rig:
        await subscribed(rig)
        assert await closed(rig) == 1


async def test_a_byte_now_and_then_is_no_progress() -> None:
    """A third of what counts. Who could hold a large snapshot so would hold as many as it has connections."""
    async with running(outbox_stall_ms=STALL_MS, heartbeat_interval_ms=300) as rig:
        raw = await subscribed(rig)

        async def trickle() -> None:
            while await raw.reader.read(rig.hub.limits.outbox_progress_bytes // 30):  # noqa: ASYNC110
                await asyncio.sleep(0.1 * STALL_MS / 1e3)

        trickling = asyncio.create_task(trickle())
        assert await closed(rig) == 1
        trickling.cancel()
