"""`depthcast feed simulate`: a market that does not exist, into the ticks topic.

Open loop: each tick has its due time, ``received_ns`` is that time whenever the tick is really sent, so a feed that
falls behind shows as latency instead of hiding it.
"""

import asyncio
import logging
import time
from random import Random

from protos.tick import CONTENT_PROTO, encode_tick
from protos.topics import HEADER_CONTENT_TYPE, HEADER_FEED, HEADER_RECEIVED_NS, Topics, partition_for
from services.config import Settings
from services.feed.market_model import Market
from services.kafka import Producer
from services.topics import check_topics

PACE_S = 0.002
"""Sleep between looks at what is due. At 5,000 ticks/s that is 10 ticks a turn, and one request to Kafka. uvloop's
timers count whole milliseconds: a shorter sleep is none, and the feed would take a core from whom it measures."""
TURN_TICKS = 200
"""Ticks made before others get the event loop; 10 ms."""
BEHIND_NS = 1_000_000_000
"""Lateness that is worth a warning: the rate is more than this machine can do."""
_log = logging.getLogger("depthcast.feed")


async def run_simulate(settings: Settings, symbols: int, rate: float, seed: int, seconds: float | None = None) -> int:
    """Send ticks until cancelled, or for some seconds.

    Args:
        symbols: Instruments, ``sim:spot:...``, the busiest first.
        rate: Ticks per second, of all instruments together.
        seed: The same seed gives the same market.
        seconds: None or 0 runs until cancelled.

    Returns:
        How many ticks were sent.

    Raises:
        UserError: Kafka cannot be reached, or its topics do not fit.
    """
    await check_topics(settings)
    producer = Producer(settings)
    await producer.start()
    try:
        sent = await _run(producer, settings, Market(symbols, Random(seed)), rate, seconds)
        await producer.flush()
    finally:
        await producer.stop()
    return sent


async def _run(producer: Producer, settings: Settings, market: Market, rate: float, seconds: float | None) -> int:
    topic = Topics(settings.topic_prefix).ticks
    total = round(rate * seconds) if seconds else None
    routes: dict[str, tuple[bytes, int]] = {}
    start_ns = time.time_ns()
    sent, warned = 0, False
    while total is None or sent < total:
        now_ns = time.time_ns()
        due = int((now_ns - start_ns) * rate / 1e9) + 1
        for _ in range(min(due - sent, TURN_TICKS) if total is None else min(due - sent, TURN_TICKS, total - sent)):
            due_ns = start_ns + int(sent * 1e9 / rate)
            instrument, tick = market.next(due_ns)
            key, partition = routes.get(instrument.name) or _route(routes, instrument.name, settings.partitions)
            headers = {
                HEADER_FEED: b"canonical",
                HEADER_RECEIVED_NS: str(due_ns).encode(),
                HEADER_CONTENT_TYPE: CONTENT_PROTO.encode(),
            }
            producer.send(topic, partition, key, encode_tick(tick), headers, due_ns // 1_000_000)
            sent += 1
        if not warned and now_ns - start_ns - int(sent * 1e9 / rate) > BEHIND_NS:
            warned = True
            _log.warning("the simulator is late: %s ticks/s is more than this machine or Kafka can take", rate)
        await producer.room()
        await asyncio.sleep(0 if sent < due - 1 else PACE_S)
    return sent


def _route(routes: dict[str, tuple[bytes, int]], name: str, partitions: int) -> tuple[bytes, int]:
    key = name.encode()
    route = routes[name] = key, partition_for(key, partitions)
    return route
