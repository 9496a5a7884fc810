"""The contract of what streamers share, on both stores; and what a Redis that is down, slow or emptied does."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from services.auth.redis_store import PAUSE_S, RedisStore
from services.auth.store import Claimed, Expiring, MemoryStore, Store, StoreDown
from services.metrics import Metrics
from tests.support.redis_server import RedisServer

TIMEOUT_S = 0.2


def redis_store(redis: RedisServer, timeout_s: float = TIMEOUT_S) -> RedisStore:
    return RedisStore(redis.url, "test", timeout_s, Metrics())


class TestContract:
    @pytest.fixture(params=["memory", "redis"])
    async def store(self, request: pytest.FixtureRequest) -> AsyncIterator[Store]:
        if request.param == "memory":
            yield MemoryStore()
            return
        one = redis_store(request.getfixturevalue("redis"), 5.0)  # a busy machine is no fault here
        yield one
        await one.close()

    async def test_a_ticket_is_taken_once_whoever_asks(self, store: Store) -> None:
        await store.put_ticket("t", '{"sub":"x"}', 30)
        taken = await asyncio.gather(*(store.take_ticket("t") for _ in range(20)))
        assert sorted(taken, key=str) == [*[None] * 19, '{"sub":"x"}']
        assert await store.take_ticket("unknown") is None

    async def test_a_ticket_ends(self, store: Store) -> None:
        await store.put_ticket("t", "x", 0.05)
        await asyncio.sleep(0.1)
        assert await store.take_ticket("t") is None

    async def test_revocations_are_listed_counted_and_announced(self, store: Store) -> None:
        before, until = await store.version(), time.time() + 60
        assert before == ""
        announced = store.announcements()
        assert await anext(announced) == {}, "it listens"
        await store.revoke({"sub:a": until, "jti:b": until})
        assert await asyncio.wait_for(anext(announced), 5) == {"sub:a": until, "jti:b": until}
        await store.revoke({"sub:a": until - 60})
        assert await store.revocations() == {"sub:a": until - 60, "jti:b": until}
        assert await store.version() != before
        await announced.aclose()  # type: ignore[attr-defined]

    async def test_the_last_place_is_given_away_once(self, store: Store) -> None:
        assert await store.claim("p1", {"s": (3, 5)}) == Claimed({"s": 3}, forgotten=True)
        assert await store.claim("p2", {"s": (3, 5)}) == Claimed({"s": 2}, forgotten=True)
        assert await store.claim("p1", {"s": (4, 5)}) == Claimed({"s": 3}, forgotten=False)
        assert (await store.claim("p1", {"s": (1, 5)})).granted == {"s": 1}
        assert (await store.claim("p2", {"s": (4, 5), "other": (1, 1)})).granted == {"s": 4, "other": 1}
        assert (await store.claim("p2", {"s": (0, 5)})).granted == {"s": 0}
        assert (await store.claim("p1", {"s": (5, 5)})).granted == {"s": 5}
        assert await store.claim("p1", {}) == Claimed({}, forgotten=False)

    async def test_many_subjects_are_claimed_at_once(self, store: Store) -> None:
        wanted = {f"s{i}": (i % 7, 5) for i in range(450)}
        assert (await store.claim("p", wanted)).granted == {f"s{i}": min(i % 7, 5) for i in range(450)}

    async def test_sessions_are_kept_renewed_and_end(self, store: Store) -> None:
        await store.save_sessions({f"s{i}": f"text {i}" for i in range(450)}, 60)
        assert await store.load_session("s449") == "text 449"
        assert await store.load_session("unknown") is None
        await store.keep_sessions(["s1", "unknown"], 0.05)
        await asyncio.sleep(0.1)
        assert await store.load_session("s1") is None
        assert await store.load_session("s2") == "text 2"


def test_memory_is_bounded_and_forgets_what_has_ended() -> None:
    now = [0.0]
    entries = Expiring(lambda: now[0], entries_max=3)
    for i in range(10):
        entries.put(f"k{i}", str(i), 10)
    assert len(entries) == 3
    assert [entries.get(f"k{i}") for i in (6, 7, 9)] == [None, "7", "9"]
    now[0] = 10.0
    assert entries.get("k9") is None
    entries.put("new", "x", 10)
    assert len(entries) == 1


def test_memory_is_bounded_in_characters_too() -> None:
    entries = Expiring(lambda: 0.0, characters_max=100)
    for i in range(10):
        entries.put(f"k{i}", "x" * 30, 10)
        entries.put(f"k{i}", "y" * 30, 10)
    assert len(entries) == 3
    entries.take("k9")
    entries.put("large", "z" * 70, 10)
    assert [entries.get(key) is not None for key in ("k7", "k8", "large")] == [False, True, True]


# ---- a Redis that does not do its part

CALLS: dict[str, Callable[[Store], Awaitable[object]]] = {
    "put_ticket": lambda store: store.put_ticket("t", "x", 30),
    "take_ticket": lambda store: store.take_ticket("t"),
    "revoke": lambda store: store.revoke({"sub:x": 1.0}),
    "revocations": lambda store: store.revocations(),
    "version": lambda store: store.version(),
    "claim": lambda store: store.claim("p", {"s": (1, 1)}),
    "save": lambda store: store.save_sessions({"s": "x"}, 60),
    "keep": lambda store: store.keep_sessions(["s"], 60),
    "load": lambda store: store.load_session("s"),
    "announcements": lambda store: anext(store.announcements()),  # type: ignore[arg-type]
}


@pytest.mark.faults
@pytest.mark.usefixtures("redis_process")
@pytest.mark.parametrize("fault", ["down", "slow"])
async def test_every_call_ends_in_time_and_says_that_redis_is_not_there(fault: str) -> None:
    redis = RedisServer()
    redis.start()
    try:
        warm = redis_store(redis, 5.0)
        await warm.version()  # a connection that was good
        for name, call in CALLS.items():
            store = redis_store(redis)
            if fault == "slow":
                redis.pause()
            else:
                redis.stop()
            started = time.monotonic()
            with pytest.raises(StoreDown, match=r"^Redis: [A-Za-z]+$"):
                await call(store)
            took = time.monotonic() - started
            assert took < TIMEOUT_S + 1.0, name  # and the noise of a busy machine
            before = time.monotonic()
            with pytest.raises(StoreDown, match="a moment ago"):
                await call(store)
            assert time.monotonic() - before < TIMEOUT_S, "nobody waits for what failed just now"
            await store.close()
            redis.go_on() if fault == "slow" else redis.start()
        await warm.close()
    finally:
        redis.close()


@pytest.mark.faults
@pytest.mark.usefixtures("redis_process")
async def test_after_the_pause_it_is_asked_again() -> None:
    redis = RedisServer()
    store = redis_store(redis, 1.0)
    try:
        with pytest.raises(StoreDown):
            await store.version()
        redis.start()
        await asyncio.sleep(PAUSE_S + 0.1)
        await store.revoke({"sub:x": 1.0})
        assert await store.version()
    finally:
        await store.close()
        redis.close()


async def test_a_dead_pod_gives_its_connections_back(redis: RedisServer) -> None:
    store = redis_store(redis, 5.0)
    await store.claim("dead", {"s": (5, 5)})
    assert (await store.claim("alive", {"s": (1, 5)})).granted == {"s": 0}
    redis.tell("DEL", "test:pod:dead")  # as its end of time does
    assert (await store.claim("alive", {"s": (1, 5)})).granted == {"s": 1}
    assert (await store.claim("dead", {})).forgotten
    await store.close()


async def test_what_is_no_announcement_says_nothing(redis: RedisServer) -> None:
    store = redis_store(redis, 5.0)
    announced = store.announcements()
    await anext(announced)
    for junk in ("junk", "[1]", '{"a":"b"}', "null"):
        redis.tell("PUBLISH", "test:revocations", junk)
        assert await asyncio.wait_for(anext(announced), 5) == {}
    await announced.aclose()  # type: ignore[attr-defined]
    await store.close()


async def test_a_cancellation_is_never_lost(redis: RedisServer) -> None:
    """Whenever it comes: a streamer that stops cancels what asks Redis at that moment."""
    store = redis_store(redis, 5.0)

    async def ask_for_ever() -> None:
        while True:
            await store.version()

    await store.version()
    for turns in range(200):
        task = asyncio.create_task(ask_for_ever())
        for _ in range(turns % 40):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0.001)
        done, _ = await asyncio.wait([task], timeout=5)
        if not done:
            task.cancel()
        assert done, f"lost when it came after {turns % 40} turns of the event loop"
    await store.close()
