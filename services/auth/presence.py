"""How many connections each subject has: here exactly, everywhere by the store.

A connection never waits for the store. It is let in by the count of this pod; a moment later the store says how many
of them this pod may keep, and those that came last are closed with 4429. Without the store they all stay.
"""

import secrets
import time
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from services.auth.store import Store, StoreDown
from streamer.access import Access

RENEW_S = 5.0
"""A third of the time after which a pod is forgotten."""


class Guest(Protocol):
    """A connection that counts."""

    def turn_away(self) -> None:
        """There are too many of its subject."""
        ...


G = TypeVar("G", bound=Guest)


class Presence(Generic[G]):
    """
    Args:
        limit: Connections of a subject, unless its token says otherwise.
    """

    def __init__(self, store: Store, limit: int, failed: Callable[[], None]) -> None:
        self.pod = secrets.token_hex(8)
        self._store = store
        self._limit = limit
        self._failed = failed
        self._guests: dict[str, dict[G, int]] = {}  # subject -> guest -> its token's limit, in the order they came
        self._changed: set[str] = set()
        self._unshared: set[str] = set()  # what the store missed while it was away
        self._renewed_s = float("-inf")

    def limit_of(self, access: Access) -> int:
        return access.connections_max or self._limit

    def full(self, access: Access) -> bool:
        """Whether this pod alone has as many as there may be."""
        return len(self._guests.get(access.subject, ())) >= self.limit_of(access)

    def enter(self, guest: G, access: Access) -> None:
        """It is here, or its token says something else than before."""
        self._guests.setdefault(access.subject, {})[guest] = self.limit_of(access)
        self._changed.add(access.subject)

    def leave(self, guest: G, access: Access) -> None:
        guests = self._guests.get(access.subject)
        if guests is not None and guests.pop(guest, None) is not None:
            self._changed.add(access.subject)
            if not guests:
                del self._guests[access.subject]

    def _wanted(self, subject: str) -> tuple[int, int]:
        limits = list(self._guests.get(subject, {}).values())
        return len(limits), limits[-1] if limits else self._limit

    async def share(self) -> None:
        """Tell the store what changed, and close what is too much. To be called often."""
        now_s = time.monotonic()
        if not self._changed and now_s - self._renewed_s < RENEW_S:
            return
        changed, self._changed = self._changed, set()
        try:
            granted, forgotten = await self._store.claim(self.pod, {name: self._wanted(name) for name in changed})
        except StoreDown:  # what this pod can count by itself still holds
            granted, forgotten = {name: self._wanted(name)[1] for name in changed}, False
            self._unshared |= changed
            self._failed()
        else:
            self._changed |= self._unshared - changed
            self._unshared.clear()
        self._renewed_s = now_s
        if forgotten:
            self._changed.update(self._guests)
        for subject, count in granted.items():
            surplus = list(self._guests.get(subject, ()))[count:]
            for guest in surplus:
                guest.turn_away()
