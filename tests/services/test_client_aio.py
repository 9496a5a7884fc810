"""The asyncio driver against a small real server on the loopback interface."""

import asyncio
import time
from collections.abc import Callable
from random import Random

import pytest
from websockets.asyncio.server import ServerConnection, serve

from protos.codec import CODECS
from protos.messages import (
    Channel,
    CloseCode,
    Notice,
    NoticeCode,
    Resume,
)
from services.client import aio
from services.client.aio import Client, connect
from services.client.events import (
    BrokenChain,
    Disconnected,
    Ended,
    Event,
    Opened,
    Ponged,
    Refused,
    Started,
    StateChanged,
    StreamState,
    TerminalError,
    Updated,
)
from tests.support.mini_streamer import KNOWN, streamer


async def until(client: Client, wanted: Callable[[Event], object], limit_s: float = 5.0) -> list[Event]:
    """Events up to the first that is wanted."""
    events: list[Event] = []
    async with asyncio.timeout(limit_s):
        async for event in client:
            events.append(event)
            if wanted(event):
                break
    return events


def is_live(event: Event) -> bool:
    return isinstance(event, StateChanged) and event.state is StreamState.LIVE


@pytest.mark.parametrize("codec", sorted(CODECS))
async def test_subscribe_and_follow(codec: str) -> None:
    async with streamer() as peer, connect(peer.url, codec=codec, rng=Random(1)) as client:
        book = await client.subscribe(KNOWN, "raw")
        events = await until(client, is_live)
        assert [type(event) for event in events] == [Opened, Started, Updated, StateChanged]
        await peer.push(peer.delta(), peer.delta())
        tops = []
        for _ in range(2):
            event = await anext(client)
            assert isinstance(event, Updated)
            tops.append(book.book.top(1)[0])
            assert book.book.seq == event.message.seq
        assert tops == [[(2, 1)], [(3, 1)]], "each event sees the book as of that event"


@pytest.mark.parametrize("step_s", [-300, 300])
async def test_a_step_of_the_wall_clock_costs_no_connection_and_no_wait(
    step_s: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with streamer() as peer, connect(peer.url, rng=Random(1)) as client:
        await client.subscribe(KNOWN, "raw")
        await until(client, is_live)
        real = time.time_ns
        monkeypatch.setattr(time, "time_ns", lambda: real() + step_s * 1_000_000_000)
        await asyncio.sleep(1.2)  # longer than the grace that silence is given
        await peer.push(peer.delta())
        assert isinstance(await anext(client), Updated), "it was not given up"
        peer.sockets[-1].transport.abort()
        lost = await until(client, lambda event: isinstance(event, Disconnected))
        monkeypatch.setattr(time, "time_ns", lambda: real() - step_s * 1_000_000_000)
        await until(client, is_live)
        assert isinstance(lost[-1], Disconnected)


async def test_unknown_instruments_are_refused_and_unsubscribing_ends() -> None:
    async with streamer() as peer, connect(peer.url) as client:
        await client.subscribe("no:such:thing")
        events = await until(client, lambda event: isinstance(event, Refused))
        assert isinstance(events[-1], Refused)
        assert events[-1].error.message == "there is no such thing"
        book = await client.subscribe(KNOWN)
        await until(client, is_live)
        await client.unsubscribe(book)
        assert await anext(client) == Ended(book)
        await client.ping()
        pong = await anext(client)
        assert isinstance(pong, Ponged)
        assert 0 < pong.round_trip_ns < 5_000_000_000


async def test_a_lost_connection_is_announced_and_resumed() -> None:
    async with streamer() as peer, connect(peer.url, rng=Random(1)) as client:
        book = await client.subscribe(KNOWN)
        await until(client, is_live)
        peer.sockets[-1].transport.abort()
        peer.seq += 3
        events = await until(client, is_live)
        lost = events[0]
        assert isinstance(lost, Disconnected)
        assert 0 <= lost.delay_ms <= 250
        assert events[1] == StateChanged(book, StreamState.STALE, "connection lost")
        assert peer.resumed == [None, Resume(1, 1)]
        assert book.book.bids.levels() == [(1, 1), (2, 1), (3, 1), (4, 1)]
        assert book.live


async def test_the_hint_of_a_shutdown_is_waited_for() -> None:
    async with streamer() as peer, connect(peer.url, rng=Random(1)) as client:
        await until(client, lambda event: isinstance(event, Opened))
        await peer.push(Notice(NoticeCode.SHUTDOWN, retry_after_ms=300))
        await peer.sockets[-1].close(CloseCode.SERVICE_RESTART)
        (_, lost) = await until(client, lambda event: isinstance(event, Disconnected))
        assert isinstance(lost, Disconnected)
        assert 300 <= lost.delay_ms <= 550
        start = asyncio.get_running_loop().time()
        await until(client, lambda event: isinstance(event, Opened))
        assert asyncio.get_running_loop().time() - start > 0.29


async def test_a_busy_server_is_tried_again_after_its_hint() -> None:
    async with streamer() as peer, connect(peer.url, rng=Random(1)) as client:
        peer.refuse = [(503, "1")]
        peer.sockets[-1].transport.abort()
        events = await until(client, lambda event: isinstance(event, Disconnected) and "503" in event.why)
        assert isinstance(events[-1], Disconnected)
        assert 1000 <= events[-1].delay_ms <= 1500


@pytest.mark.parametrize("code", [CloseCode.UNAUTHORIZED, CloseCode.TOO_MANY, CloseCode.NORMAL])
async def test_the_last_word_ends_the_iteration(code: CloseCode) -> None:
    async with streamer() as peer, connect(peer.url) as client:
        await until(client, lambda event: isinstance(event, Opened))
        await peer.sockets[-1].close(code, "mend it")
        with pytest.raises(TerminalError, match="mend it"):
            await until(client, lambda _: False)
        assert [event async for event in client] == []


async def test_silence_is_noticed_and_pings_break_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aio, "_GRACE_S", 0.01)
    async with streamer() as peer:
        peer.heartbeat_ms = 100
        async with connect(peer.url, rng=Random(1)) as client:
            await until(client, lambda event: isinstance(event, Opened))

            async def ping_for_a_while() -> None:
                for _ in range(6):
                    await asyncio.sleep(0.1)
                    await peer.sockets[0].ping()

            pings = asyncio.create_task(ping_for_a_while())
            start = asyncio.get_running_loop().time()
            events = await until(client, lambda event: isinstance(event, Disconnected))
            await pings
            assert asyncio.get_running_loop().time() - start > 0.6
            assert isinstance(events[-1], Disconnected)
            assert "nothing heard" in events[-1].why
            await until(client, lambda event: isinstance(event, Opened))


async def test_a_server_that_does_not_greet_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.client.core.GREETING_MS", 100)
    monkeypatch.setattr(aio, "_GRACE_S", 0.01)
    async with streamer() as peer:
        peer.greets = False
        async with connect(peer.url) as client:
            events = await until(client, lambda event: isinstance(event, Disconnected))
            assert len(events) == 1


async def test_garbage_costs_the_connection_and_nothing_more() -> None:
    async with streamer() as peer, connect(peer.url, rng=Random(1)) as client:
        book = await client.subscribe(KNOWN)
        await until(client, is_live)
        await peer.sockets[-1].send(b"\xff\xff\xff")
        events = await until(client, is_live)
        assert isinstance(events[0], Disconnected)
        assert book.live
        await peer.sockets[0].wait_closed()
        assert peer.sockets[0].close_code == CloseCode.PROTOCOL_ERROR


async def test_a_broken_chain_gets_its_snapshot_on_the_same_connection() -> None:
    async with streamer() as peer, connect(peer.url) as client:
        book = await client.subscribe(KNOWN)
        await until(client, is_live)
        peer.delta()
        await peer.push(peer.delta())
        events = await until(client, is_live)
        assert any(isinstance(event, BrokenChain) for event in events)
        assert len(peer.sockets) == 1
        assert book.book.seq == 3


async def test_entering_fails_in_one_line() -> None:
    with pytest.raises(TerminalError, match=r"^cannot connect to ws://127.0.0.1:1/: nothing listens there$"):
        await connect("ws://127.0.0.1:1/").__aenter__()
    with pytest.raises(TerminalError, match="is no WebSocket address"):
        await connect("nonsense").__aenter__()
    async with streamer() as peer:
        peer.refuse = [(404, ""), (503, "")]
        with pytest.raises(TerminalError, match="HTTP 404"):
            await connect(peer.url).__aenter__()
        with pytest.raises(TerminalError, match="HTTP 503"):
            await connect(peer.url, token="secret").__aenter__()
        assert peer.headers == ["", "Bearer secret"]


async def test_a_server_of_another_protocol_is_left() -> None:
    async def mute(socket: ServerConnection) -> None:
        await socket.wait_closed()

    async with serve(mute, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        with pytest.raises(TerminalError, match="does not speak"):
            await connect(f"ws://127.0.0.1:{port}/").__aenter__()


async def test_closing_ends_the_iteration() -> None:
    async with streamer() as peer, connect(peer.url) as client:
        await client.subscribe(KNOWN, Channel.BOOK, depth=10, interval_ms=100)
        await until(client, is_live)
        await client.close()
        assert [event async for event in client] == []
