"""What each session is subscribed to, kept so that a client that comes back to any pod gets it all by one `restore`."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import orjson

from protos.messages import Channel, SlowPolicy
from services.auth.store import Store, StoreDown
from streamer.streams import StreamKey

LIVE_S = 3_600.0
"""Seconds that the set of a live session is kept without a renewal: it outlives the pod."""
RENEW_S = LIVE_S / 3
GONE_S = 600.0
"""Seconds that it is kept after the session's end: a client that is away for longer starts anew."""
BATCH = 25
"""Sessions written in one turn of the event loop, well under a millisecond."""


Wanted = tuple[StreamKey, SlowPolicy]


class Kept(NamedTuple):
    """The subscriptions of a session, and whose they are."""

    subject: str
    wanted: list[Wanted]


def dump(subject: str, wanted: Sequence[Wanted]) -> str:
    rows = [[*key, policy] for key, policy in wanted]
    return orjson.dumps([subject, rows]).decode()


def load(text: str) -> Kept | None:
    """None: it is none of ours."""
    try:
        subject, rows = orjson.loads(text)
        wanted = [
            (StreamKey(str(name), Channel(channel), int(depth), int(interval)), SlowPolicy(policy))
            for name, channel, depth, interval, policy in rows
        ]
    except (orjson.JSONDecodeError, TypeError, ValueError):
        return None
    return Kept(str(subject), wanted)


class Sessions:
    """
    Args:
        failed: Called when the store did not take something.
    """

    def __init__(self, store: Store, failed: Callable[[], None]) -> None:
        self._store = store
        self._failed = failed
        self._live: dict[str, Callable[[], str]] = {}
        self._changed: set[str] = set()
        self._gone: dict[str, str] = {}  # session id -> its last text; "": the store has it already
        self._renewed_s = time.monotonic()

    def changed(self, session_id: str, read: Callable[[], str]) -> None:
        """Its subscriptions are no longer what they were; ``read`` gives them, as `dump` does, when it is time."""
        self._live[session_id] = read
        if self._store.shared:
            self._changed.add(session_id)

    def ended(self, session_id: str) -> None:
        """The connection is gone, or about to go: ``read`` is called now for the last time."""
        read = self._live.pop(session_id, None)
        if read is not None:
            known = self._store.shared and session_id not in self._changed
            self._gone[session_id] = "" if known else read()
            self._changed.discard(session_id)

    async def share(self) -> None:
        """Write what changed. To be called often. What is not taken is tried again while the session lives."""
        now_s = time.monotonic()
        if self._store.shared and now_s - self._renewed_s >= RENEW_S:
            self._renewed_s = now_s
            self._changed.update(self._live)
        gone, self._gone = self._gone, {}
        batch: list[str] = []
        try:
            while self._changed:
                batch = [self._changed.pop() for _ in range(min(BATCH, len(self._changed)))]
                await self._store.save_sessions({name: self._live[name]() for name in batch}, LIVE_S)
                await asyncio.sleep(0)
            batch = []
            if texts := {name: text for name, text in gone.items() if text}:
                await self._store.save_sessions(texts, GONE_S)
            if saved := [name for name, text in gone.items() if not text]:
                await self._store.keep_sessions(saved, GONE_S)
        except StoreDown:
            self._changed.update(name for name in batch if name in self._live)
            self._failed()

    async def find(self, session_id: str) -> Kept | None:
        """What a session had; None: nothing is kept of it.

        Raises:
            StoreDown: Nobody can say.
        """
        live = self._live.get(session_id)
        text = live() if live is not None else self._gone.get(session_id)
        text = text or await self._store.load_session(session_id)
        return load(text) if text else None
