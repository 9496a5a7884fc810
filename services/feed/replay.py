"""`depthcast feed replay`: a capture into the ticks topic, at its own speed, at a multiple of it, or at full speed."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from ingest.events import MapError
from protos.topics import Topics, partition_for
from services.config import Settings
from services.errors import UserError
from services.feed.files import Captured, read_capture
from services.feed.router import Router, TickOut
from services.kafka import RECORD_BYTES_MAX, Producer
from services.topics import check_topics

TURN_MESSAGES = 200
"""Messages read before others get the event loop; some ms."""
TURN_BYTES = 500_000
EARLY_S = 0.001
"""A message is sent this much early rather than sleeping for less."""
AHEAD_RECORDS_MAX = 20_000
AHEAD_BYTES_MAX = 2_000_000
"""How far a replay runs ahead of its readers when it is told where they are: well below the 100,000 records and
5 MB that the embedded broker keeps of a partition."""
WARNINGS_MAX = 10
"""Unusable messages that are logged one by one; all are counted."""
_POLL_S = 0.005
_log = logging.getLogger("depthcast.feed")


class _Due(NamedTuple):
    """A record of the turn."""

    partition: int
    timestamp_ms: int
    tick: TickOut


@dataclass(slots=True)
class Replayed:
    """What a replay did."""

    messages: int = 0
    records: int = 0
    unusable: int = 0  # messages that no record could be made of


class Replay:
    """One replay into one topic.

    Args:
        producer: Started; stays so.
        topic: The ticks topic.
        partitions: Its partition count.
        speed: A multiple of the capture's own; 0 is as fast as it goes.
        clock_ns: Gives the ``received_ns`` of the records, as if received now; None keeps the capture's.
        processed: Asked for how many of this replay's records the slowest reader has processed; the replay then stays
            at most AHEAD_RECORDS_MAX and AHEAD_BYTES_MAX ahead of it.
    """

    def __init__(
        self,
        producer: Producer,
        topic: str,
        partitions: int,
        *,
        speed: float = 0.0,
        clock_ns: Callable[[], int] | None = None,
        processed: Callable[[], Awaitable[int]] | None = None,
    ) -> None:
        self.counts = Replayed()
        self._producer, self._topic, self._partitions = producer, topic, partitions
        self._speed, self._clock_ns = speed, clock_ns
        self._processed = processed
        self._routers: dict[tuple[str, str], Router] = {}
        self._turn: list[_Due] = []
        self._bytes = self._bytes_read = 0
        self._ahead: deque[tuple[int, int]] = deque()  # (records, bytes) sent up to the end of a turn

    async def run(self, capture: Iterable[Captured]) -> Replayed:
        """Send it all and wait until Kafka has it.

        Raises:
            UserError: The capture cannot be read.
            DeliveryError: Kafka did not take a record.
        """
        loop = asyncio.get_running_loop()
        start_s, first_ns = loop.time(), 0
        for captured in capture:
            first_ns = first_ns or captured.received_ns
            due_s = (captured.received_ns - first_ns) / 1e9 / self._speed if self._speed else 0.0
            wait_s = due_s - (loop.time() - start_s)
            if wait_s > EARLY_S or len(self._turn) >= TURN_MESSAGES:
                await self._send()
                await asyncio.sleep(max(0.0, due_s - (loop.time() - start_s)))
            self._route(captured)
        await self._send()
        await self._producer.flush()
        return self.counts

    def _route(self, captured: Captured) -> None:
        """Make the records of a message due."""
        router = self._routers.get((captured.feed, captured.connection))
        if router is None:
            router = self._routers[captured.feed, captured.connection] = Router(captured.feed)
        received_ns = self._clock_ns() if self._clock_ns else captured.received_ns
        try:
            for tick in router.route(captured.message, received_ns, captured.symbol_hint):
                if len(tick.instrument) + len(tick.value) > RECORD_BYTES_MAX:
                    raise MapError("too-large", f"{len(tick.value)} bytes, at most {RECORD_BYTES_MAX} fit a record")
                partition = partition_for(tick.instrument.encode(), self._partitions)
                self._turn.append(_Due(partition, received_ns // 1_000_000, tick))
        except MapError as error:
            self.counts.unusable += 1
            if self.counts.unusable <= WARNINGS_MAX:
                _log.warning("message %d of the capture cannot be used: %s", self.counts.messages + 1, error)
        self.counts.messages += 1

    async def _send(self) -> None:
        """Hand what is due to Kafka, TURN_BYTES at a time; wait for room there, and for the readers."""
        while self._turn:
            count = size = 0
            while count < len(self._turn) and size < TURN_BYTES:
                size += len(self._turn[count].tick.value)
                count += 1
            part, self._turn = self._turn[:count], self._turn[count:]
            for partition, timestamp_ms, tick in part:
                key = tick.instrument.encode()
                self._producer.send(self._topic, partition, key, tick.value, tick.headers, timestamp_ms)
            self.counts.records += count
            self._bytes += size
            await self._producer.room()
            await self._keep_close()

    async def _keep_close(self) -> None:
        """Wait until the readers are no further behind than they may be."""
        if self._processed is None:
            return
        self._ahead.append((self.counts.records, self._bytes))
        while self._ahead:
            processed = await self._processed()
            while self._ahead and self._ahead[0][0] <= processed:
                self._bytes_read = self._ahead.popleft()[1]
            behind, bytes_behind = self.counts.records - processed, self._bytes - self._bytes_read
            if behind <= AHEAD_RECORDS_MAX and bytes_behind <= AHEAD_BYTES_MAX:
                return
            await asyncio.sleep(_POLL_S)


def check_found(counts: Replayed, path: Path, feed: str) -> None:
    """Raises UserError where a whole capture gave no record."""
    if not counts.records:
        raise UserError(f"none of the {counts.messages} messages in {path} is market data of {feed}: is --feed right?")


async def run_replay(settings: Settings, path: Path, feed: str, speed: float) -> None:
    """Replay a capture as if its messages were received now.

    Args:
        path: The capture.
        feed: One of `services.feed.files.FEED_NAMES`.
        speed: A multiple of the capture's own; 0 is as fast as it goes.

    Raises:
        UserError: The capture cannot be read, Kafka cannot be reached or its topics do not fit.
    """
    capture = read_capture(path, feed)
    await check_topics(settings)
    producer = Producer(settings)
    await producer.start()
    try:
        replay = Replay(
            producer, Topics(settings.topic_prefix).ticks, settings.partitions, speed=speed, clock_ns=time.time_ns
        )
        counts = await replay.run(capture)
    finally:
        await producer.stop()
    check_found(counts, path, feed)
    line = f"{counts.messages} messages gave {counts.records} records; {counts.unusable} could not be used"
    Console().print(line, highlight=False)
