"""Who was thrown out, as this pod knows it.

Checked without a question to anyone: the list is here, and follows the store's. An announcement is there in
milliseconds; once a second the version is compared, so that a lost announcement is made good in time.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

from services.auth.store import Store, StoreDown
from streamer.access import Access

POLL_S = 0.5
"""Half of what is promised: an announcement that got lost is made good within a second."""
ENTRIES_MAX = 100_000

_log = logging.getLogger("depthcast.auth")


def keys_of(access: Access) -> tuple[str, str]:
    """What can be revoked of a connection."""
    return f"sub:{access.subject}", f"jti:{access.token_id}"


class Revocations:
    """
    Args:
        revoked: Called with what is revoked from now on.
        failed: Called when the store did not answer.
        clock_s: Wall time.
    """

    def __init__(
        self,
        store: Store,
        revoked: Callable[[list[str]], None],
        failed: Callable[[], None],
        clock_s: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._revoked = revoked
        self._failed = failed
        self._clock_s = clock_s
        self._until: dict[str, float] = {}
        self._unsaved: dict[str, float] = {}
        self._version = ""
        self._in_step_s = time.monotonic()
        self._in_step = True

    def __len__(self) -> int:
        return len(self._until)

    def age_s(self) -> float:
        """Seconds since we last knew what the store knows."""
        return time.monotonic() - self._in_step_s

    def revokes(self, access: Access) -> bool:
        now_s = self._clock_s()
        return any(self._until.get(key, 0.0) > now_s for key in keys_of(access))

    def learn(self, entries: Mapping[str, float]) -> None:
        """Take over what the store says; what it does not name stays as it was: Redis may have been emptied."""
        now_s = self._clock_s()
        news = [key for key, until_s in entries.items() if until_s > now_s and self._until.get(key, 0.0) <= now_s]
        self._until.update(entries)
        if len(self._until) > ENTRIES_MAX or any(until_s <= now_s for until_s in entries.values()):
            self._until = {key: until_s for key, until_s in self._until.items() if until_s > now_s}
        if news:
            self._revoked(news)

    async def follow(self) -> None:
        """Stay in step with the store, for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen())
            tasks.create_task(self._poll())

    async def _listen(self) -> None:
        while True:
            try:
                async for entries in self._store.announcements():
                    self.learn(entries)
            except StoreDown:
                await asyncio.sleep(POLL_S)

    async def _poll(self) -> None:
        while True:
            try:
                await self._compare()
            except StoreDown as error:
                self._failed()
                self._say(False, error)
            else:
                self._say(True)
            await asyncio.sleep(POLL_S)

    async def _compare(self) -> None:
        version = await self._store.version()
        if version != self._version or self._unsaved or (self._until and not version):
            theirs = await self._store.revocations()
            self.learn({**theirs, **self._unsaved})
            now_s = self._clock_s()
            lost = {key: until_s for key, until_s in self._until.items() if until_s > now_s and key not in theirs}
            if lost or self._unsaved:  # it was emptied, or away: others shall know what we know
                await self._store.revoke({**lost, **self._unsaved})
                self._unsaved.clear()
            self._version = version
        self._in_step_s = time.monotonic()

    async def revoke(self, entries: Mapping[str, float]) -> None:
        """Revoke, or permit again, here at once and everywhere else by the store.

        Raises:
            StoreDown: It is in force here; the others learn it when the store is back.
        """
        self.learn(entries)
        self._unsaved.update(entries)
        await self._store.revoke(self._unsaved)
        self._unsaved.clear()

    def _say(self, in_step: bool, error: StoreDown | None = None) -> None:
        if in_step != self._in_step:
            self._in_step = in_step
            if in_step:
                _log.warning("in step with the list of revocations again")
            else:
                _log.error("revocations cannot be followed, those known stay in force: %s", error)
