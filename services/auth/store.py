"""What streamers share: tickets, revocations, connections per subject, subscriptions per session.

`MemoryStore` is one streamer's own. `RedisStore` (``redis_store.py``) is for several; the same contract tests run on
both. Every call ends within a quarter of a second, one way or the other.

Exception
└── StoreDown    the store did not answer in time, or at all; who asked decides what that means
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

ENTRIES_MAX = 100_000
CHARACTERS_MAX = 64 << 20
"""Of each kind, in memory. Beyond it the oldest go."""


class StoreDown(Exception):  # noqa: N818 - a state of the world, not a bug
    """No answer from the store."""


class Claimed(NamedTuple):
    """What `Store.claim` granted."""

    granted: dict[str, int]
    """Subject -> how many connections this pod may keep."""
    forgotten: bool
    """The store did not know this pod: all its subjects must be claimed anew."""


class Store(Protocol):
    """All of it raises `StoreDown`."""

    shared: bool
    """Whether it outlives this process: then what a live session has is worth keeping there."""

    async def put_ticket(self, ticket_hash: str, claims: str, ttl_s: float) -> None:
        """Keep what a ticket stands for."""
        ...

    async def take_ticket(self, ticket_hash: str) -> str | None:
        """What a ticket stands for, to exactly one of all who ask; None to the others, and when it has expired."""
        ...

    async def revoke(self, entries: Mapping[str, float]) -> None:
        """Revoke, or with a time that has passed permit again.

        Args:
            entries: ``sub:SUBJECT`` or ``jti:TOKEN_ID`` -> second of the wall clock until which it is revoked.
        """
        ...

    async def revocations(self) -> dict[str, float]:
        """All that are known, as given to `revoke`."""
        ...

    async def version(self) -> str:
        """Another with each `revoke`; "": nothing is known, or everything was lost."""
        ...

    def announcements(self) -> AsyncIterator[dict[str, float]]:
        """First an empty one, when listening has begun; then what anyone gives to `revoke`, within milliseconds."""
        ...

    async def claim(self, pod: str, wanted: Mapping[str, tuple[int, int]]) -> Claimed:
        """Say how many connections each of some subjects has here, and learn how many it may have here.

        Args:
            pod: Who asks. What it has is forgotten when it does not ask for a while.
            wanted: Subject -> (connections here, the most that it may have everywhere).
        """
        ...

    async def save_sessions(self, sessions: Mapping[str, str], ttl_s: float) -> None:
        """Keep texts under session ids."""
        ...

    async def keep_sessions(self, session_ids: Sequence[str], ttl_s: float) -> None:
        """Keep those that are there for so long from now."""
        ...

    async def load_session(self, session_id: str) -> str | None:
        """The text kept, None without one."""
        ...

    async def close(self) -> None: ...


class Expiring:
    """A bounded dictionary whose entries end.

    Args:
        clock_s: Seconds that never go back.
    """

    def __init__(
        self, clock_s: Callable[[], float], entries_max: int = ENTRIES_MAX, characters_max: int = CHARACTERS_MAX
    ) -> None:
        self._clock_s = clock_s
        self._entries_max, self._characters_max = entries_max, characters_max
        self._entries: dict[str, tuple[float, str]] = {}
        self._characters = 0

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, key: str, value: str, ttl_s: float) -> None:
        self._remove(key)
        now_s = self._clock_s()
        while self._entries:
            oldest = next(iter(self._entries))
            room = len(self._entries) < self._entries_max and self._characters + len(value) <= self._characters_max
            if room and self._entries[oldest][0] > now_s:
                break
            self._remove(oldest)
        self._entries[key] = (now_s + ttl_s, value)
        self._characters += len(value)

    def _remove(self, key: str) -> None:
        _, value = self._entries.pop(key, (0.0, ""))
        self._characters -= len(value)

    def get(self, key: str) -> str | None:
        until_s, value = self._entries.get(key, (float("-inf"), ""))
        return value if until_s > self._clock_s() else None

    def take(self, key: str) -> str | None:
        value = self.get(key)
        self._remove(key)
        return value


class MemoryStore:
    """The store of a streamer that is alone."""

    shared = False

    def __init__(self, clock_s: Callable[[], float] = time.monotonic, entries_max: int = ENTRIES_MAX) -> None:
        self._tickets = Expiring(clock_s, entries_max)
        self._sessions = Expiring(clock_s, entries_max)
        self._revoked: dict[str, float] = {}
        self._version = 0
        self._listeners: list[asyncio.Queue[dict[str, float]]] = []
        self._counts: dict[str, dict[str, int]] = {}  # subject -> pod -> connections
        self._pods: set[str] = set()

    async def put_ticket(self, ticket_hash: str, claims: str, ttl_s: float) -> None:
        self._tickets.put(ticket_hash, claims, ttl_s)

    async def take_ticket(self, ticket_hash: str) -> str | None:
        return self._tickets.take(ticket_hash)

    async def revoke(self, entries: Mapping[str, float]) -> None:
        self._revoked.update(entries)
        self._version += 1
        for queue in self._listeners:
            queue.put_nowait(dict(entries))

    async def revocations(self) -> dict[str, float]:
        return dict(self._revoked)

    async def version(self) -> str:
        return str(self._version or "")

    async def announcements(self) -> AsyncIterator[dict[str, float]]:
        queue: asyncio.Queue[dict[str, float]] = asyncio.Queue()
        self._listeners.append(queue)
        try:
            yield {}
            while True:
                yield await queue.get()
        finally:
            self._listeners.remove(queue)

    async def claim(self, pod: str, wanted: Mapping[str, tuple[int, int]]) -> Claimed:
        forgotten = pod not in self._pods
        self._pods.add(pod)
        granted = {}
        for subject, (here, limit) in wanted.items():
            pods = self._counts.setdefault(subject, {})
            others = sum(count for other, count in pods.items() if other != pod)
            pods[pod] = granted[subject] = max(0, min(here, limit - others))
            if not pods[pod]:
                del pods[pod]
            if not pods:
                del self._counts[subject]
        return Claimed(granted, forgotten)

    async def save_sessions(self, sessions: Mapping[str, str], ttl_s: float) -> None:
        for session_id, text in sessions.items():
            self._sessions.put(session_id, text, ttl_s)

    async def keep_sessions(self, session_ids: Sequence[str], ttl_s: float) -> None:
        for session_id in session_ids:
            if (text := self._sessions.get(session_id)) is not None:
                self._sessions.put(session_id, text, ttl_s)

    async def load_session(self, session_id: str) -> str | None:
        return self._sessions.get(session_id)

    async def close(self) -> None:
        """Nothing to do."""
