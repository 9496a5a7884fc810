"""A client that watches a running system and keeps count: of updates, latency, digests and broken chains."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from statistics import quantiles

from protos.messages import Channel, Flag, MarketMessage, StatusUpdate
from services.client.aio import Client, connect
from services.client.events import BrokenChain, DigestChecked, Disconnected, StateChanged, StreamState, Updated
from services.client.subscription import Subscription

SAMPLES_MAX = 60_000
"""Latencies kept: the newest. At 1,000 updates/s that is a minute: how it is now, not how it started. At 5,000 it is
twelve seconds."""
Seen = Callable[[Subscription, MarketMessage], None]
_POLL_S = 0.01
_SNAPSHOT = Flag.SNAPSHOT.value


class Probe:
    """Subscribes, and calls ``seen`` after each update while the subscription's book is as of that update.

    Args:
        url: Of the stream endpoint.
        seen: Called with the subscription and the update.
    """

    def __init__(self, url: str, seen: Seen | None = None) -> None:
        self.url = url
        self.updates = 0
        self.gaps = 0
        self.digests_passed = 0
        self.digests_failed = 0
        self.disconnects: list[str] = []
        self.latencies_ms: deque[float] = deque(maxlen=SAMPLES_MAX)
        self._seen = seen
        self._client: Client | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self, wanted: Iterable[tuple[str, Channel, int]]) -> None:
        """Connect and subscribe to (instrument, channel, depth) each; counting goes on in the background.

        Returns when the server has answered all, so that what is fed from now on is seen.
        """
        self._client = await connect(self.url).__aenter__()
        for instrument, channel, depth in wanted:
            await self._client.subscribe(instrument, channel, depth)
        self._task = asyncio.create_task(self._run(self._client), name="probe")
        while not self._task.done():
            if all(subscription.stream for subscription in self._client.core.subscriptions):
                return
            await asyncio.sleep(_POLL_S)

    @property
    def subscriptions(self) -> list[Subscription]:
        return self._client.core.subscriptions if self._client is not None else []

    async def _run(self, client: Client) -> None:
        async for event in client:
            if isinstance(event, Updated):
                self._count(event.subscription, event.message)
            elif isinstance(event, DigestChecked):
                self.digests_passed += event.passed
                self.digests_failed += not event.passed
            elif isinstance(event, BrokenChain) or (
                isinstance(event, StateChanged) and event.state is StreamState.GAPPED
            ):
                self.gaps += 1
            elif isinstance(event, Disconnected):
                self.disconnects.append(event.why)

    def _count(self, subscription: Subscription, message: MarketMessage) -> None:
        if not isinstance(message, StatusUpdate):
            self.updates += 1
            if not message.flags & _SNAPSHOT:
                self.latencies_ms.append((time.time_ns() - message.ts_received_ns) / 1e6)
        if self._seen is not None:
            self._seen(subscription, message)

    def percentiles_ms(self) -> tuple[float, float]:
        """(p50, p99) from the feed's receipt of a tick to our application of it, in milliseconds; 0 without any."""
        if len(self.latencies_ms) < 2:
            return 0.0, 0.0
        cuts = quantiles(self.latencies_ms, n=100)
        return round(cuts[49], 3), round(cuts[98], 3)

    async def stop(self) -> None:
        """Disconnect.

        Raises:
            Exception: What ended the counting early, if anything did.
        """
        if self._client is not None:
            await self._client.close()
        if self._task is not None:
            await self._task
