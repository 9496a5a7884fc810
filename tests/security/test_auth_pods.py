"""Several streamers and one Redis: what they share, and what happens without it."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import pytest
from websockets.exceptions import InvalidStatus

from protos.messages import (
    BookUpdate,
    Channel,
    CloseCode,
    Error,
    ErrorCode,
    Flag,
    Ping,
    Pong,
    Restore,
    Restored,
    SlowPolicy,
    Subscribe,
    Subscribed,
    Unsubscribe,
)
from services.auth import sessions
from services.auth.redis_store import RedisStore
from services.auth.sessions import dump, load
from services.auth.store import MemoryStore, StoreDown
from services.config import Settings
from services.metrics import Metrics
from streamer.streams import StreamKey
from tests.support.accounts import SUBSCRIBE, token
from tests.support.endpoint import BTC, Client, Rig, running
from tests.support.guests import asking, forgive, guest, http, show, ticket
from tests.support.invariants import P99_FACTOR, P99_FLOOR_S
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.security
SECOND = 1.0
"""What is promised for a revocation to be everywhere."""
NOISE_S = 1.5
"""A busy machine with two cores may add this to anything."""


@pytest.fixture(autouse=True)
def _expected(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    forgive(caplog, "revocations cannot be followed")


@dataclass
class Pods:
    """Two streamers with one Redis."""

    one: Rig
    two: Rig
    redis: RedisServer


@pytest.fixture
async def own_redis(redis_process: RedisServer) -> AsyncIterator[RedisServer]:
    """One that a test may stop."""
    assert redis_process
    server = RedisServer()
    server.start()
    yield server
    server.close()


@asynccontextmanager
async def two_pods(redis: RedisServer, timeout_s: float) -> AsyncIterator[Pods]:
    async with AsyncExitStack() as stack:
        rigs = []
        for _ in range(2):
            store = RedisStore(redis.url, "depthcast", timeout_s, Metrics())
            rigs.append(await stack.enter_async_context(asking(store)))
        for rig in rigs:
            await until(lambda rig=rig: rig.endpoint.gate.presence._renewed_s > 0)  # type: ignore[misc]
        yield Pods(*rigs, redis)


@pytest.fixture
async def pods(own_redis: RedisServer) -> AsyncIterator[Pods]:
    """They are patient: on a busy machine Redis is slow without a fault."""
    async with two_pods(own_redis, 10.0) as both:
        yield both


@pytest.fixture
async def hasty(own_redis: RedisServer) -> AsyncIterator[Pods]:
    """As in production: nothing waits for Redis longer than the settings allow."""
    async with two_pods(own_redis, Settings().redis_timeout_ms / 1e3) as both:
        yield both


async def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait until ``condition()`` holds."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_ticket_of_one_pod_opens_a_stream_at_another_once(pods: Pods) -> None:
    bought = await ticket(pods.one)
    async with guest(pods.two, query=f"?ticket={bought}"):
        for rig in (pods.one, pods.two):
            with pytest.raises(InvalidStatus, match="401"):
                async with guest(rig, query=f"?ticket={bought}"):
                    pass


@pytest.mark.parametrize("by", ["sub", "jti"])
async def test_a_revocation_at_one_pod_closes_at_all_within_a_second(pods: Pods, by: str) -> None:
    shown = token("desk-1")
    access = pods.one.endpoint.gate.check(shown, time.time_ns())
    async with (
        guest(pods.one, shown) as here,
        guest(pods.two, shown) as there,
        guest(pods.two, token("desk-2")) as other,
    ):
        started = time.monotonic()
        key = "sub:desk-1" if by == "sub" else f"jti:{access.token_id}"  # type: ignore[union-attr]
        await pods.one.endpoint.gate.revocations.revoke({key: time.time() + 60})
        assert await there.end() == (CloseCode.FORBIDDEN, "the token was revoked")
        assert time.monotonic() - started < SECOND + NOISE_S
        assert (await here.end())[0] == CloseCode.FORBIDDEN
        for rig in (pods.one, pods.two):
            with pytest.raises(InvalidStatus, match="403"):
                async with guest(rig, shown):
                    pass
        await other.send(Ping(1))
        assert await other.until(Pong), "nobody else is touched"
        await pods.two.endpoint.gate.revocations.revoke({key: time.time()})
        await until(lambda: pods.one.endpoint.gate.check(shown, time.time_ns()) is not None)
        await until(lambda: hasattr(pods.one.endpoint.gate.check(shown, time.time_ns()), "subject"))


async def test_a_lost_announcement_is_made_good_within_a_second(pods: Pods) -> None:
    async with guest(pods.two, token("desk-1")) as there:
        until_s = time.time() + 60
        pods.redis.tell("ZADD", "depthcast:revoked", str(until_s), "sub:desk-1")
        started = time.monotonic()
        pods.redis.tell("SET", "depthcast:revoked-version", "another")
        assert (await there.end())[0] == CloseCode.FORBIDDEN
        assert time.monotonic() - started < SECOND + NOISE_S


async def test_connections_of_a_subject_are_counted_over_all_pods(pods: Pods) -> None:
    three = token("desk-1", connections_max=3)
    async with guest(pods.one, three), guest(pods.one, three):
        await until(lambda: pods.redis.tell("HLEN", "depthcast:connections:desk-1") == b":1")
        async with guest(pods.two, three) as third:
            await until(lambda: pods.redis.tell("HLEN", "depthcast:connections:desk-1") == b":2")
            async with guest(pods.two, three) as fourth:
                code, reason = await fourth.end()
                assert code == CloseCode.TOO_MANY
                assert "too many connections" in str(reason)
            await third.send(Ping(1))
            assert await third.until(Pong), "those that came first stay"
    await until(lambda: pods.redis.tell("EXISTS", "depthcast:connections:desk-1") == b":0")


# ---- sessions

STREAMS = [
    Subscribe(1, BTC, Channel.BOOK, 10, 100),
    Subscribe(2, BTC, Channel.TRADES, slow_policy=SlowPolicy.SKIP),
    Subscribe(3, BTC, Channel.RAW),
    Subscribe(4, BTC, Channel.BBO),
]


async def session_with_streams(rig: Rig, bearer: str = "") -> str:
    """A session that had three streams; returns its id when the store has them."""
    async with guest(rig, bearer) as one:
        await one.send(*STREAMS)
        ids = [(await one.until(Subscribed)).stream for _ in STREAMS]
        await one.send(Unsubscribe(9, ids[3]), Ping(10))
        await one.until(Pong)
        (member,) = rig.endpoint.clients.members.values()
        session_id: str = member.session.id
    await rig.settle()
    await until(lambda: not (rig.endpoint.gate.sessions._changed or rig.endpoint.gate.sessions._gone))
    await asyncio.sleep(0.3)
    return session_id


async def test_one_message_restores_a_session_at_another_pod(pods: Pods) -> None:
    session_id = await session_with_streams(pods.one, token("desk-1"))
    async with guest(pods.two, token("desk-1")) as back:
        await back.send(Restore(7, session_id))
        assert await back.next() == Restored(7, 3)
        replies = [await back.until(Subscribed) for _ in range(3)]
        assert [(one.id, one.channel, one.depth, one.interval_ms) for one in replies] == [
            (0, Channel.BOOK, 10, 100),
            (0, Channel.TRADES, 0, 0),
            (0, Channel.RAW, 0, 0),
        ]
        snapshots = {(await back.until(BookUpdate)).flags & Flag.SNAPSHOT for _ in range(2)}
        assert snapshots == {Flag.SNAPSHOT}
        (outbox,) = pods.two.endpoint.clients.members
        assert [policy for _, policy in pods.two.hub.subscriptions(outbox)] == [
            SlowPolicy.CLOSE,
            SlowPolicy.SKIP,
            SlowPolicy.CLOSE,
        ]
        await back.send(Restore(8, session_id))
        assert (await back.until(Error)).code is ErrorCode.LIMIT
    assert pods.two.sample("restores_total", outcome="restored") == 1


async def test_a_session_of_another_subject_is_not_restored_and_a_narrow_token_restores_less(pods: Pods) -> None:
    session_id = await session_with_streams(pods.one, token("desk-1"))
    async with guest(pods.two, token("desk-2")) as thief:
        await thief.send(Restore(7, session_id))
        error = await thief.until(Error)
        assert (error.id, error.code) == (7, ErrorCode.NOT_SUBSCRIBED)
    async with guest(pods.two, token("desk-1", channels=["trades"])) as narrow:
        await narrow.send(Restore(7, session_id))
        assert await narrow.next() == Restored(7, 1)
    assert pods.two.sample("restores_total", outcome="unknown") == 1


async def test_without_redis_and_tokens_a_session_is_restored_at_the_same_pod() -> None:
    async with running() as rig:
        session_id = await session_with_streams(rig)
        async with guest(rig) as back:
            await back.send(Restore(1, "invented"))
            assert (await back.until(Error)).code is ErrorCode.NOT_SUBSCRIBED
        async with guest(rig) as back:
            await back.send(Restore(1, session_id))
            assert await back.next() == Restored(1, 3)


async def test_what_a_pod_leaves_behind_when_it_is_killed_is_there(pods: Pods) -> None:
    async with guest(pods.one, token("desk-1")) as alive, guest(pods.two, token("desk-1")) as back:
        await alive.send(SUBSCRIBE)
        await alive.until(Subscribed)
        (member,) = pods.one.endpoint.clients.members.values()
        key = f"depthcast:session:{member.session.id}"
        await until(lambda: pods.redis.tell("EXISTS", key) == b":1")
        await back.send(Restore(1, member.session.id))
        assert await back.until(Restored) == Restored(1, 1)


def test_what_is_kept_of_a_session_is_read_again_and_rubbish_is_nothing() -> None:
    wanted = [
        (StreamKey(BTC, Channel.BOOK, 10, 100), SlowPolicy.CLOSE),
        (StreamKey(BTC, Channel.TRADES), SlowPolicy.SKIP),
    ]
    kept = load(dump("desk-1", wanted))
    assert kept is not None
    assert (kept.subject, kept.wanted) == ("desk-1", wanted)
    for text in ("", "[]", '["x"]', '["x",[[1]]]', '["x",[["a",99,0,0,0]]]', "null"):
        assert load(text) is None


async def test_sessions_are_renewed_while_they_live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "RENEW_S", 0.0)
    store, texts = MemoryStore(), ["first", "second"]
    store.shared = True
    kept = sessions.Sessions(store, lambda: None)
    kept.changed("s", lambda: texts[0])
    await kept.share()
    del texts[0]
    await kept.share()
    assert await store.load_session("s") == "second"


async def test_alone_a_streamer_keeps_nothing_twice() -> None:
    store, wanted = MemoryStore(), dump("desk-1", [(StreamKey(BTC, Channel.BBO), SlowPolicy.CLOSE)])
    kept = sessions.Sessions(store, lambda: None)
    kept.changed("s", lambda: wanted)
    await kept.share()
    assert await store.load_session("s") is None, "the session itself still has it"
    assert await kept.find("s") == load(wanted)
    kept.ended("s")
    assert await kept.find("s") == load(wanted)
    await kept.share()
    assert await store.load_session("s") == wanted


# ---- Redis down, slow, emptied


async def alive(rig: Rig, one: Client, seq: int) -> float:
    """Seconds that an update needs to reach a client."""
    started = time.monotonic()
    rig.update()
    update = await one.until(BookUpdate)
    while update.seq < seq:
        update = await one.until(BookUpdate)
    return time.monotonic() - started


async def opens(rig: Rig, bought: str) -> bool:
    """Whether a ticket is redeemed; 503 says that it cannot be, yet."""
    try:
        async with guest(rig, query=f"?ticket={bought}"):
            return True
    except InvalidStatus as refused:
        if refused.response.status_code != 503:
            raise
        return False


@pytest.mark.faults
@pytest.mark.parametrize("fault", ["down", "slow"])
async def test_without_redis_live_sockets_go_on_and_each_use_has_its_policy(hasty: Pods, fault: str) -> None:
    rig, redis = hasty.one, hasty.redis
    bought = await ticket(rig)
    session_id = await session_with_streams(rig, token("desk-1"))
    async with guest(rig, token("desk-1")) as live:
        await live.send(SUBSCRIBE)
        await live.until(BookUpdate)
        before = sorted([await alive(rig, live, rig.seq + 1) for _ in range(60)])
        if fault == "down":
            redis.stop()
        else:
            redis.pause()
        try:
            during = sorted([await alive(rig, live, rig.seq + 1) for _ in range(60)])
            assert during[30] < 0.25, "updates do not wait for Redis"
            assert during[58] <= P99_FACTOR * max(before[58], P99_FLOOR_S), "I5"
            started = time.monotonic()
            with pytest.raises(InvalidStatus, match="503") as refused:
                async with guest(rig, query=f"?ticket={bought}"):
                    pass
            assert time.monotonic() - started < 0.25 + NOISE_S
            assert refused.value.response.headers["Retry-After"] == "2"
            async with http(rig, token()) as web:
                assert (await web.post("/v1/ticket")).status_code == 503
            one_only = token("desk-3", connections_max=1)
            started = time.monotonic()
            async with guest(rig, one_only) as fresh, guest(hasty.two, one_only) as also:
                assert time.monotonic() - started < 2 * (0.25 + NOISE_S), "a token needs no Redis"
                await fresh.send(SUBSCRIBE)
                assert await fresh.until(Subscribed)
                await also.send(Ping(1))
                assert await also.until(Pong), "counters fail open"
                with pytest.raises(InvalidStatus, match="429"):
                    async with guest(rig, one_only):
                        pass
            async with guest(rig, token("desk-1")) as back:
                await back.send(Restore(1, session_id))
                assert (await back.until(Error)).code is ErrorCode.NOT_READY
            await live.send(Ping(5))
            await live.until(Pong)
            await show(live, token("desk-1"))
            await until(lambda: rig.sample("store_failures_total", use="connections") > 0)
            await until(lambda: rig.sample("store_failures_total", use="revocations") > 0)
            assert rig.sample("store_failures_total", use="tickets") >= 2
            assert rig.sample("disconnects_total", code="1006") == 0
        finally:
            if fault == "down":
                redis.start()
            else:
                redis.go_on()
        async with asyncio.timeout(20):
            while not await opens(hasty.two, await ticket(rig)):  # noqa: ASYNC110
                await asyncio.sleep(0.2)
        await alive(rig, live, rig.seq + 1)


@pytest.mark.faults
async def test_a_revocation_holds_here_when_redis_is_down_and_everywhere_when_it_is_back(hasty: Pods) -> None:

    async with guest(hasty.one, token("desk-1")) as here, guest(hasty.two, token("desk-1")) as there:
        hasty.redis.stop()
        with pytest.raises(StoreDown):
            await hasty.one.endpoint.gate.revocations.revoke({"sub:desk-1": time.time() + 60})
        assert (await here.end())[0] == CloseCode.FORBIDDEN
        hasty.redis.start()
        assert (await there.end())[0] == CloseCode.FORBIDDEN, "it was written when Redis was back"


@pytest.mark.faults
async def test_an_emptied_redis_is_filled_again(pods: Pods) -> None:
    two = token("desk-2", connections_max=2)
    async with guest(pods.one, two), guest(pods.one, two):
        await pods.one.endpoint.gate.revocations.revoke({"sub:desk-1": time.time() + 60})
        await until(lambda: pods.two.endpoint.gate.revocations._until)
        await until(
            lambda: pods.redis.tell("HGET", "depthcast:connections:desk-2", pods.one.endpoint.gate.presence.pod)
        )
        pods.redis.tell("FLUSHALL")
        await until(lambda: pods.redis.tell("ZCARD", "depthcast:revoked") == b":1")
        await until(lambda: pods.redis.tell("HLEN", "depthcast:connections:desk-2") == b":1")
        with pytest.raises(InvalidStatus, match="403"):
            async with guest(pods.two, token("desk-1")):
                pass
        async with guest(pods.two, two) as third:
            assert (await third.end())[0] == CloseCode.TOO_MANY
