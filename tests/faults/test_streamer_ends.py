"""A streamer that is killed, and one that is told to stop, with many clients; another serves them on the same port."""

import asyncio
import signal
import time
from collections import Counter

import httpx
import pytest

from protos.messages import Channel, CloseCode
from services.stack import Child, free_port
from tests.support.crowd import Crowd, Member
from tests.support.invariants import STREAMS, Scene, check_latency, scene
from tests.support.kafka_server import RealBroker
from tests.support.scenario import Truth, Wanted, Watcher, until

CLIENTS = 2_000
HANDSHAKES_PER_S = 300
"""Of the streamer that they come to. Fewer than come at once: the gate sends most away, to come back later."""
ALL_AT_ONCE = 5_000
INTERVAL_MS = 1_000
WATCHERS = 10
"""Clients of this process, whose latency is measured. That all are on the streamer that ends: once in a thousand."""
BACK_S = 15.0
ALL_BACK_S = 90.0
LOOK_S = 0.2
"""Between two looks at metrics: they are written on the loop whose latency is measured."""
DRAIN_MS = 3_000
SETTLED_S = 4.0
pytestmark = [pytest.mark.faults, pytest.mark.kafka, pytest.mark.timeout(300)]


async def streamer(it: Scene, handshakes_per_s: int) -> Child:
    """One more on the one port, as `depthcast streamer --workers 2` has them; nobody replaces one that ends."""
    gate = {"DEPTHCAST_HANDSHAKES_PER_S": str(handshakes_per_s)}
    pod = await it.stack.spawn(
        "worker", free_port(), {"DEPTHCAST_WORKERS": "2", "DEPTHCAST_DRAIN_MS": str(DRAIN_MS), **gate}
    )
    await pod.ready()
    return pod


def wanted(it: Scene) -> list[Wanted]:
    return [(name, Channel.BOOK, 10, INTERVAL_MS) for name in it.feed.instruments]


def check(members: list[Member], truth: Truth) -> None:
    """I1 and I2 for each of the crowd."""
    assert [jump for member in members for jump in member.jumps] == [], "I1"
    tops = truth.tops
    wrong = [v for m in members for v in m.views if tops.get((v.instrument, v.epoch, v.seq), {}).get(v.depth) != v.top]
    assert wrong == [], "I2: a book that is not the reference's"
    ends = {name: truth.last_top(name, 10) for name in truth.books}
    assert {(m.live, m.top == ends[m.views[-1].instrument]) for m in members} == {(True, True)}, "I2: in the end"


async def connected(pod: Child) -> int:
    return int((await pod.metrics())["depthcast_connections"])


async def finish(it: Scene, crowd: Crowd) -> list[Member]:
    await it.feed.stop()
    truth = await it.invariants.hold()
    await asyncio.sleep(2 * INTERVAL_MS / 1e3)
    members = await crowd.members()
    check(members, truth)
    return members


async def test_clients_of_a_killed_streamer_resume_on_another(kafka_server: RealBroker) -> None:
    async with scene(kafka_server.bootstrap, rate_per_s=150) as it:
        assert await it.stack.streamer.stop() == 0
        dying = await streamer(it, ALL_AT_ONCE)
        crowd = Crowd(it.stack.url, wanted(it), CLIENTS, nice=10)
        streams: list[Wanted] = [(name, *STREAMS[0]) for name in it.feed.instruments]
        watchers = [Watcher(it.stack.url, streams) for _ in range(WATCHERS)]
        await crowd.start()
        assert await connected(dying) >= CLIENTS
        other = await streamer(it, HANDSHAKES_PER_S)
        await asyncio.gather(*(watcher.__aenter__() for watcher in watchers))
        try:
            it.feed.flow()
            began = time.monotonic()
            await asyncio.sleep(SETTLED_S)
            killed = time.monotonic()
            assert await dying.stop(signal.SIGKILL) == -signal.SIGKILL
            everybody = CLIENTS + WATCHERS + 1

            async def all_back() -> bool:
                await asyncio.sleep(LOOK_S)
                return await connected(other) >= everybody

            await until(all_back, "everybody on the other", ALL_BACK_S)
            undisturbed = [watcher for watcher in watchers if not watcher.lost]
            refused = (await other.metrics()).get("depthcast_handshakes_total{outcome=503}", 0)
            check_latency(began, killed, time.monotonic(), *undisturbed)
            members = await finish(it, crowd)
        finally:
            await crowd.stop()
            await asyncio.gather(*(watcher.__aexit__() for watcher in watchers))
    assert all(member.lost for member in members), "all were hit"
    back = sorted(member.started[-1] - killed for member in members)
    times = [back[len(back) * share // 100] for share in (50, 95)]
    print(
        f"half are back in {times[0]:.1f} s, 95 % in {times[1]:.1f} s, all in {back[-1]:.1f} s; {refused:.0f} refusals"
    )
    assert times[1] < BACK_S
    assert refused > CLIENTS // 2, "the gate was needed"
    assert refused < 2 * CLIENTS, "who is told when to come back is rarely refused again"
    delays = [member.lost[0][2] for member in members]
    assert max(delays) - min(delays) > 150, "full jitter: anywhere in the first 250 ms"


async def test_a_streamer_that_is_told_to_stop_sends_its_clients_away_in_waves(kafka_server: RealBroker) -> None:
    async with scene(kafka_server.bootstrap, rate_per_s=150) as it:
        assert await it.stack.streamer.stop() == 0
        ending, other = await asyncio.gather(streamer(it, ALL_AT_ONCE), streamer(it, ALL_AT_ONCE))
        crowd = Crowd(it.stack.url, wanted(it), CLIENTS)
        streams: list[Wanted] = [(name, *STREAMS[0]) for name in it.feed.instruments]
        watchers = [Watcher(it.stack.url, streams) for _ in range(WATCHERS)]
        await asyncio.gather(crowd.start(), *(watcher.__aenter__() for watcher in watchers))
        try:
            it.feed.flow()
            began = time.monotonic()
            await asyncio.sleep(SETTLED_S)
            on_it = await connected(ending)
            assert on_it > CLIENTS // 4
            assert ending.process is not None
            ending.process.send_signal(signal.SIGTERM)
            told = time.monotonic()
            async with httpx.AsyncClient(timeout=2.0) as http:
                while (await http.get(f"http://127.0.0.1:{ending.admin_port}/readyz")).status_code == httpx.codes.OK:
                    assert time.monotonic() < told + 1.0, "readiness goes at once"
                    await asyncio.sleep(0.01)
            assert await connected(ending) > 0, "and the clients are still there"
            codes = Counter[str]()
            while ending.process.returncode is None:
                try:
                    found = await ending.metrics()
                except httpx.TransportError:
                    break
                codes.update({k: 1 for k, v in found.items() if k.startswith("depthcast_disconnects_total{") and v})
                await asyncio.sleep(0.05)
            assert await asyncio.wait_for(ending.process.wait(), 20) == 0

            async def all_back() -> bool:
                return await connected(other) >= CLIENTS + WATCHERS + 1

            await until(all_back, "everybody on the other", ALL_BACK_S)
            check_latency(began, told, time.monotonic(), *(watcher for watcher in watchers if not watcher.lost))
            members = await finish(it, crowd)
        finally:
            await crowd.stop()
            await asyncio.gather(*(watcher.__aexit__() for watcher in watchers))
    assert codes.keys() == {f"depthcast_disconnects_total{{code={int(CloseCode.SERVICE_RESTART)}}}"}
    hit = [member for member in members if member.lost]
    assert len(hit) > CLIENTS // 4
    assert {member.lost[0][1] for member in hit} == {"this server restarts"}, "1012, and no 1006"
    assert all(len(member.retry_after_ms) == 1 for member in hit)
    assert len({member.retry_after_ms[0] for member in hit}) > len(hit) // 2, "each is told another time"
    assert all(member.lost[0][2] >= member.retry_after_ms[0] for member in hit), "and keeps to it"
    times = sorted(member.lost[0][0] - told for member in hit)
    assert times[-1] - times[0] > DRAIN_MS / 1e3 / 2, "over the drain window, not at once"
    tenths = Counter(int(at * 10) for at in times)
    assert max(tenths.values()) < len(hit) / 4, "in waves"
