"""Clients that read half of what they asked for: real sockets, a streamer in a process of its own.

Whatever they do not get is conflated and flagged, announced, or lost with a connection that is closed with 4008; and
the server's accounts say the same as the clients' own, for every channel.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence

from protos.messages import Channel, SlowPolicy
from services.client.reconnect import Reconnect
from tests.support.invariants import check_latency
from tests.support.scenario import until
from tests.support.slow_market import CHANNELS, Market
from tests.support.slow_reader import Reader, Want

SMALL_BUFFER = 4096
"""Of the slow clients' kernel: what hides there is the client's own, and says nothing about the server."""
LAG_MAX_S = 1.0
EVERYTHING = 1e9
SMALL_MARKS = {"outbox_soft_bytes": 8 << 10, "outbox_hard_bytes": 48 << 10}
"""So that little traffic shows what else takes minutes."""


def assert_sound(*readers: Reader) -> None:
    for reader in readers:
        assert reader.accounts.faults == []
        assert set(reader.accounts.conflated) <= {Channel.BOOK, Channel.BBO}
        assert set(reader.accounts.skipped) <= {Channel.TRADES}


async def test_at_half_the_needed_rate_a_book_is_newest_state_within_a_second() -> None:
    """Whatever the client's kernel may hold; when it is much, from when that is read for the first time."""
    async with Market(10, books_only=True, digest_interval_ms=500) as market:  # nobody here asks for more
        wants = [Want(name) for name in market.names]
        async with (
            Reader(market.port, wants) as fast,
            Reader(market.port, wants, SMALL_BUFFER) as slow,
            Reader(market.port, wants) as deep,
        ):
            fast.flow(EVERYTHING)
            market.flow(1_200)
            began = time.monotonic()
            await until(lambda: fast.accounts.delivered.total() > 600, "updates")
            before = fast.bytes
            await asyncio.sleep(1)
            throttled = time.monotonic()
            for half in (slow, deep):
                half.flow((fast.bytes - before) / 2)
            for half in (slow, deep):
                await until(lambda it=half: it.accounts.conflated.total() > 0, "conflated")  # type: ignore[misc]
            print(f"{deep.bytes / 1024:.0f} KiB were in the kernels' buffers")
            lags: list[float] = []
            while len(lags) < 120:
                await asyncio.sleep(0.05)
                lags += [(fast.newest_ns() - half.newest_ns()) / 1e9 for half in (slow, deep)]
            check_latency(began, throttled, time.monotonic(), fast)
            market.flow(0)
            for half in (slow, deep):
                half.flow(EVERYTHING)
            await until(lambda: all(reader.at(market) for reader in (fast, slow, deep)), "the end")
    lags.sort()
    assert lags[len(lags) * 9 // 10] <= LAG_MAX_S, lags
    assert not slow.ended
    assert not deep.ended
    assert_sound(fast, slow, deep)
    for half in (slow, deep):
        assert half.accounts.told_slow
        assert half.accounts.digests > 10
    assert not fast.accounts.conflated


def of_server(metrics: dict[str, float], name: str) -> dict[Channel, float]:
    return {channel: metrics[f"depthcast_{name}{{channel={channel.name.lower()}}}"] for channel in CHANNELS}


def sum_of(counters: Sequence[Counter[Channel]]) -> dict[Channel, float]:
    return {channel: sum(counter[channel] for counter in counters) for channel in CHANNELS}


async def test_the_accounts_of_the_server_and_of_the_clients_are_the_same() -> None:
    """While all stay connected: to the last update, on every channel."""
    async with Market(2, digest_interval_ms=500, **SMALL_MARKS) as market:
        everything = [Want(name, channel) for name in market.names for channel in CHANNELS]
        lossy = [
            Want(name, channel, slow_policy=SlowPolicy.SKIP)
            for name in market.names
            for channel in (Channel.BOOK, Channel.BBO, Channel.TRADES, Channel.STATUS)
        ]
        async with (
            Reader(market.port, everything) as fast,
            Reader(market.port, lossy, SMALL_BUFFER) as half,
            Reader(market.port, lossy, SMALL_BUFFER) as stops,
        ):
            for reader in (fast, half, stops):
                await reader.start()
            fast.flow(EVERYTHING)
            market.flow(600)
            before = fast.bytes
            await asyncio.sleep(1)
            half.flow((fast.bytes - before) / 3)
            await until(
                lambda: all(sum_of([half.accounts.conflated, half.accounts.skipped])[c] for c in LOSSY), "drops"
            )
            stops.flow(EVERYTHING)
            await asyncio.sleep(1)
            market.flow(0)
            half.flow(EVERYTHING)
            await until(lambda: all(reader.at(market) for reader in (fast, half, stops)), "the end")
            metrics = await market.metrics()
    assert_sound(fast, half, stops)
    accounts = [reader.accounts for reader in (fast, half, stops)]
    assert not any(reader.ended for reader in (fast, half, stops)[1:] if reader.ended != "closed by us")
    assert of_server(metrics, "updates_sent_total") == sum_of([it.delivered for it in accounts])
    assert of_server(metrics, "conflated_total") == sum_of([it.conflated for it in accounts])
    assert of_server(metrics, "skipped_total") == sum_of([it.skipped for it in accounts])
    assert set(of_server(metrics, "lost_total").values()) == {0}
    assert set(of_server(metrics, "updates_waiting").values()) == {0}
    expected = sum_of([counter for it in accounts for counter in (it.delivered, it.conflated, it.skipped)])
    assert of_server(metrics, "updates_offered_total") == expected
    assert min(expected.values()) > 0


LOSSY = (Channel.BOOK, Channel.BBO, Channel.TRADES)


async def test_what_a_closed_client_did_not_get_is_lost_with_it_and_comes_when_it_resumes() -> None:
    """`trades` and `raw` are never dropped silently: by default the client is closed, and resumes where it was."""
    async with Market(2, digest_interval_ms=500, outbox_stall_ms=2_000, **SMALL_MARKS) as market:
        wants = [Want(name, channel) for name in market.names for channel in CHANNELS]
        async with Reader(market.port, wants) as fast, Reader(market.port, wants, SMALL_BUFFER) as dead:
            await fast.start()
            await dead.start()
            fast.flow(EVERYTHING)
            market.flow(600)
            closed = "depthcast_disconnects_total{code=4008}"
            metrics = await market.until(lambda found: found[closed] > 0)
            market.flow(0)
            await dead.read_to_the_end()
            await until(lambda: fast.at(market), "the end")
            metrics = await market.metrics()
            sent, lost = of_server(metrics, "updates_sent_total"), of_server(metrics, "lost_total")
            in_flight = {channel: sent[channel] - fast.accounts.delivered[channel] for channel in CHANNELS}
            got = dict(dead.accounts.delivered)
            verdict = dead.disconnected()
            await dead.connect()
            dead.flow(EVERYTHING)
            await until(lambda: dead.at(market), "resumed")
    assert_sound(fast)
    offered = of_server(metrics, "updates_offered_total")
    conflated, skipped = of_server(metrics, "conflated_total"), of_server(metrics, "skipped_total")
    for channel in CHANNELS:
        assert offered[channel] == sent[channel] + conflated[channel] + skipped[channel] + lost[channel]
        assert 0 <= got.get(channel, 0) <= in_flight[channel], "handed to the kernel, not read before the end"
    assert all(lost[channel] > 0 for channel in CHANNELS)
    assert set(conflated.values()) == set(skipped.values()) == {0}
    assert isinstance(verdict, Reconnect)
    assert dead.accounts.faults == []
    seen = sum_of([dead.accounts.delivered, dead.accounts.conflated, dead.accounts.skipped])
    assert seen == sum_of([fast.accounts.delivered]), "nothing is missing"
