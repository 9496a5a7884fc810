"""`depthcast feed simulate`: a market that does not exist, into the ticks topic.

Open loop: each tick has its due time, ``received_ns`` is that time whenever the tick is really sent, so a feed that
falls behind shows as latency instead of hiding it.
"""

import asyncio
import gc
import logging
import time
from collections.abc import Iterator
from itertools import count, islice
from random import Random

from protos.tick import CONTENT_PROTO, encode_tick
from protos.topics import HEADER_CONTENT_TYPE, HEADER_FEED, HEADER_RECEIVED_NS, Topics, partition_for
from services.config import Settings
from services.errors import UserError
from services.feed.market_model import Market
from services.kafka import Producer
from services.topics import check_topics

PACE_S = 0.005
"""Sleep between looks at what is due, and so the time between two requests to Kafka. Every stage behind is woken as
often. At 5,000 ticks/s that were made ahead, sending costs 27 us a tick; with 2 ms it was 42."""
TURN_TICKS = 200
"""Ticks made before others get the event loop; 10 ms."""
BEHIND_NS = 1_000_000_000
"""Lateness that is worth a warning: the rate is more than this machine can do."""
AHEAD_MAX = 1_000_000
"""Ticks made ahead at most, about 600 MB."""
AHEAD_NS = 50_000
"""Time until the first is due, for each: making one takes 25 us of an idle core."""
GC_OBJECTS = 50_000
"""No tick holds a cycle, so looking for some every 700 objects finds none."""

Due = tuple[int, bytes, int, bytes, dict[str, bytes]]
"""A tick: when it is due (nanoseconds since 1970), key, partition, value, headers."""
_log = logging.getLogger("depthcast.feed")


async def run_simulate(
    settings: Settings, symbols: int, rate: float, seed: int, seconds: float | None = None, *, ahead: bool = False
) -> int:
    """Send ticks until cancelled, or for some seconds.

    Args:
        symbols: Instruments, ``sim:spot:...``, the busiest first.
        rate: Ticks per second, of all instruments together.
        seed: The same seed gives the same market.
        seconds: None or 0 runs until cancelled.
        ahead: Make all of them before the first is due: sending one costs a third of making it, and whoever measures
            what becomes of ticks on the same cores wants no more than that.

    Returns:
        How many ticks were sent.

    Raises:
        UserError: Kafka cannot be reached, its topics do not fit, or ``ahead`` is without end.
    """
    total = round(rate * seconds) if seconds else None
    if ahead and not (total and total <= AHEAD_MAX):
        raise UserError(f"--ahead needs --seconds, and at most {AHEAD_MAX} ticks in all")
    await check_topics(settings)
    gc.freeze()
    gc.set_threshold(GC_OBJECTS)
    producer = Producer(settings)
    await producer.start()
    try:
        start_ns = time.time_ns() + (AHEAD_NS * total if ahead and total else 0)
        ticks: Iterator[Due] = islice(_ticks(Market(symbols, Random(seed)), rate, start_ns, settings.partitions), total)
        if ahead:
            ticks = iter(list(ticks))
            gc.freeze()
            await asyncio.sleep((start_ns - time.time_ns()) / 1e9)
        sent = await _send(producer, Topics(settings.topic_prefix).ticks, ticks, rate, start_ns)
        await producer.flush()
    finally:
        await producer.stop()
    return sent


def _ticks(market: Market, rate: float, start_ns: int, partitions: int) -> Iterator[Due]:
    """All ticks to come, each made when it is asked for."""
    routes: dict[str, tuple[bytes, int]] = {}
    for number in count():
        due_ns = start_ns + int(number * 1e9 / rate)
        instrument, tick = market.next(due_ns)
        key, partition = routes.get(instrument.name) or _route(routes, instrument.name, partitions)
        headers = {
            HEADER_FEED: b"canonical",
            HEADER_RECEIVED_NS: str(due_ns).encode(),
            HEADER_CONTENT_TYPE: CONTENT_PROTO.encode(),
        }
        yield due_ns, key, partition, encode_tick(tick), headers


def _route(routes: dict[str, tuple[bytes, int]], name: str, partitions: int) -> tuple[bytes, int]:
    key = name.encode()
    route = routes[name] = key, partition_for(key, partitions)
    return route


async def _send(producer: Producer, topic: str, ticks: Iterator[Due], rate: float, start_ns: int) -> int:
    """Send each tick when it is due, or as soon as can be after that; returns how many there were."""
    sent, warned = 0, False
    while True:
        now_ns = time.time_ns()
        due = int((now_ns - start_ns) * rate / 1e9) + 1
        wanted = max(0, min(due - sent, TURN_TICKS))
        made = 0
        for due_ns, key, partition, value, headers in islice(ticks, wanted):
            producer.send(topic, partition, key, value, headers, due_ns // 1_000_000)
            made += 1
        sent += made
        if made < wanted:
            return sent
        if not warned and now_ns - start_ns - int(sent * 1e9 / rate) > BEHIND_NS:
            warned = True
            _log.warning("the simulator is late: %s ticks/s is more than this machine or Kafka can take", rate)
        await producer.room()
        await asyncio.sleep(0 if sent < due - 1 else PACE_S)
