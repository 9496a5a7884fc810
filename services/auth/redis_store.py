"""The store that several streamers share, in Redis.

One timeout for every call, and one pause after a failure in which nobody waits for the next: while Redis is down or
slow, each answer takes microseconds and says so. No retry in the client, no call without a time limit.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

import orjson
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from services.auth.store import Claimed, StoreDown
from services.metrics import Metrics

PAUSE_S = 1.0
"""After a failure nothing is asked for this long."""
POD_TTL_S = 15
"""A pod that does not claim for so long has no connections."""
REVOKED_KEPT_S = 86_400
"""Entries stay this long after their end, so that pods which were cut off learn what was permitted again."""
CONNECTIONS_MAX = 32
LISTEN_S = 5.0
BATCH = 200

_CLAIM = """
local others = 0
local counts = redis.call('HGETALL', KEYS[1])
for i = 1, #counts, 2 do
    if counts[i] ~= ARGV[1] then
        if redis.call('EXISTS', ARGV[4] .. counts[i]) == 1 then
            others = others + tonumber(counts[i + 1])
        else
            redis.call('HDEL', KEYS[1], counts[i])
        end
    end
end
local granted = math.max(0, math.min(tonumber(ARGV[2]), tonumber(ARGV[3]) - others))
if granted == 0 then
    redis.call('HDEL', KEYS[1], ARGV[1])
else
    redis.call('HSET', KEYS[1], ARGV[1], granted)
    redis.call('EXPIRE', KEYS[1], 86400)
end
return granted
"""
"""Atomic, so that two pods never both give away the last place."""

T = TypeVar("T")


class RedisStore:
    """
    Args:
        url: ``redis://`` or ``rediss://``, with the password in it if there is one.
        prefix: Of all keys.
        timeout_s: Of every call.
    """

    shared = True

    def __init__(self, url: str, prefix: str, timeout_s: float, metrics: Metrics) -> None:
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=CONNECTIONS_MAX,
            timeout=timeout_s,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            decode_responses=True,
        )
        self._redis: Any = Redis.from_pool(pool)  # its types say bytes, also for text
        self._prefix = prefix
        self._timeout_s = timeout_s
        self._latency = metrics.store_latency
        self._pause_until_s = 0.0

    def _key(self, *parts: str) -> str:
        return ":".join((self._prefix, *parts))

    async def _call(self, ask: Callable[[], Awaitable[T]]) -> T:
        started_s = time.monotonic()
        if started_s < self._pause_until_s:
            raise StoreDown("Redis failed a moment ago")
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await ask()
        except (RedisError, OSError, TimeoutError) as error:
            self._pause_until_s = time.monotonic() + PAUSE_S
            raise StoreDown(f"Redis: {type(error).__name__}") from error
        finally:
            self._latency.observe(time.monotonic() - started_s)
            _notice_cancellation()
        return answer

    async def put_ticket(self, ticket_hash: str, claims: str, ttl_s: float) -> None:
        key = self._key("ticket", ticket_hash)
        await self._call(lambda: self._redis.set(key, claims, px=int(ttl_s * 1e3)))

    async def take_ticket(self, ticket_hash: str) -> str | None:
        found: str | None = await self._call(lambda: self._redis.getdel(self._key("ticket", ticket_hash)))
        return found

    async def revoke(self, entries: Mapping[str, float]) -> None:
        revoked = self._key("revoked")
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.zadd(revoked, dict(entries))
            pipe.zremrangebyscore(revoked, "-inf", time.time() - REVOKED_KEPT_S)
            pipe.set(self._key("revoked-version"), secrets.token_hex(8))
            pipe.publish(self._key("revocations"), orjson.dumps(dict(entries)))
            await self._call(pipe.execute)

    async def revocations(self) -> dict[str, float]:
        found = await self._call(lambda: self._redis.zrange(self._key("revoked"), 0, -1, withscores=True))
        return {name: float(score) for name, score in found}

    async def version(self) -> str:
        return await self._call(lambda: self._redis.get(self._key("revoked-version"))) or ""

    async def announcements(self) -> AsyncIterator[dict[str, float]]:
        async with self._redis.pubsub(ignore_subscribe_messages=True) as pubsub:
            await self._call(lambda: pubsub.subscribe(self._key("revocations")))
            yield {}
            while True:
                try:
                    message = await pubsub.get_message(timeout=LISTEN_S)
                except (RedisError, OSError) as error:
                    raise StoreDown(f"Redis: {type(error).__name__}") from error
                if message is not None and message["type"] == "message":
                    yield _entries(message["data"])

    async def claim(self, pod: str, wanted: Mapping[str, tuple[int, int]]) -> Claimed:
        forgotten = False
        granted: dict[str, int] = {}
        subjects = list(wanted)
        for start in range(0, max(len(subjects), 1), BATCH):
            part = subjects[start : start + BATCH]
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.set(self._key("pod", pod), "1", ex=POD_TTL_S, get=True)
                for subject in part:
                    key, (here, limit) = self._key("connections", subject), wanted[subject]
                    pipe.eval(_CLAIM, 1, key, pod, str(here), str(limit), self._key("pod", ""))
                before, *counts = await self._call(pipe.execute)
            forgotten = forgotten or before is None
            granted.update(zip(part, map(int, counts), strict=True))
        return Claimed(granted, forgotten)

    async def save_sessions(self, sessions: Mapping[str, str], ttl_s: float) -> None:
        ids = list(sessions)
        for start in range(0, len(ids), BATCH):
            async with self._redis.pipeline(transaction=False) as pipe:
                for session_id in ids[start : start + BATCH]:
                    pipe.set(self._key("session", session_id), sessions[session_id], px=int(ttl_s * 1e3))
                await self._call(pipe.execute)

    async def keep_sessions(self, session_ids: Sequence[str], ttl_s: float) -> None:
        for start in range(0, len(session_ids), BATCH):
            async with self._redis.pipeline(transaction=False) as pipe:
                for session_id in session_ids[start : start + BATCH]:
                    pipe.pexpire(self._key("session", session_id), int(ttl_s * 1e3))
                await self._call(pipe.execute)

    async def load_session(self, session_id: str) -> str | None:
        found: str | None = await self._call(lambda: self._redis.get(self._key("session", session_id)))
        return found

    async def close(self) -> None:
        await self._redis.aclose()
        await self._redis.connection_pool.disconnect()


def _notice_cancellation() -> None:
    """The client sends by `asyncio.wait_for`, which before Python 3.12 loses a cancellation that comes while it ends: a
    streamer that stops would wait for ever."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _entries(data: object) -> dict[str, float]:
    """An announcement; what is none says nothing. Whoever can write to our Redis can do worse than confuse us."""
    try:
        found: Any = orjson.loads(data if isinstance(data, str | bytes) else b"")
        return {str(name): float(until_s) for name, until_s in found.items()}
    except (orjson.JSONDecodeError, AttributeError, TypeError, ValueError):
        return {}
