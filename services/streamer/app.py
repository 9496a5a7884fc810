"""The streamer process, from start to end: books in from Kafka, clients out on one port.

Reading order: this function, then `market` (Kafka to hub), `flush` (hub to clients), `ws` (one client).
"""

import asyncio
import gc
import logging
from collections.abc import Callable
from dataclasses import fields

from services.admin import Admin
from services.auth.revoking import revocations_route
from services.build import describe
from services.config import Settings
from services.metrics import Metrics
from services.serving import raise_descriptor_limit
from services.signals import stop_on_signals
from services.streamer.clock import Clock
from services.streamer.endpoint import Endpoint
from services.streamer.market import MarketReader
from services.streamer.observe import observe
from services.streamer.sending import Line
from services.topics import check_topics
from streamer.hub import Hub
from streamer.limits import Limits

GC_OBJECTS = 100_000
"""Connections come without cycles, but looking for some among those of 1,000 clients stalls everybody for 10 ms:
at 500,000 deliveries a second p99 was 78 and 86 ms with Python's default of 700, and 43 and 56 ms with this."""

_log = logging.getLogger("depthcast.streamer")


async def run_streamer(
    settings: Settings, stop: asyncio.Event | None = None, *, ready: Callable[[int, int], None] | None = None
) -> None:
    """Serve until SIGTERM or SIGINT, or until ``stop`` is set; then send the clients elsewhere and return.

    Args:
        ready: Called once with the public and the admin port, when the books have caught up.

    Raises:
        UserError: A port is taken, Kafka cannot be reached, or its topics are missing.
    """
    stop = stop or stop_on_signals()
    raise_descriptor_limit()
    clock, metrics, hub = Clock(), Metrics(), Hub(limits_of(settings), Line())
    endpoint = Endpoint(settings, hub, metrics, clock)
    admin = Admin(settings, metrics, endpoint.clients.why_not_ready, [revocations_route(endpoint.gate)])
    market = MarketReader(settings, hub, metrics, clock, endpoint.flusher)
    observe(metrics, hub, endpoint.clients, market)
    following = None
    try:
        await check_topics(settings)
        await market.start()
        await admin.start()
        _log.info("%s", describe())
        if settings.workers == 1:  # who comes early is told when to come back
            await endpoint.start()
        following = asyncio.create_task(market.run(), name="market")
        await _wait_for(market.caught_up, stop, [following, *endpoint.tasks])
        if settings.workers > 1:  # until now the other workers served all who came
            await endpoint.start()
        gc.freeze()  # what lives as long as the process is not looked through again: full collections stall the loop
        gc.set_threshold(GC_OBJECTS)
        if ready is not None and not stop.is_set():
            ready(endpoint.port, admin.port)
        await _wait_for(stop, stop, [following, *endpoint.tasks])
        _log.info("draining %d connections over %.1f s", endpoint.clients.open, settings.drain_ms / 1e3)
        await endpoint.drain(settings.drain_ms / 1e3)
    finally:
        if following is not None:
            following.cancel()
        await asyncio.gather(endpoint.stop(), admin.stop(), market.stop())


def limits_of(settings: Settings) -> Limits:
    """The core's limits, with the operator's wishes."""
    wishes = {field.name: getattr(settings, field.name) for field in fields(Limits) if hasattr(settings, field.name)}
    return Limits(**wishes)


async def _wait_for(event: asyncio.Event, stop: asyncio.Event, tasks: list[asyncio.Task[None]]) -> None:
    """Until ``event`` or ``stop`` is set. A task that ends is a failure, and raises here."""
    waits = [asyncio.create_task(event.wait()), asyncio.create_task(stop.wait())]
    try:
        await asyncio.wait([*waits, *tasks], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
    for task in tasks:
        if task.done():
            task.result()
