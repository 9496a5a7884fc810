"""`depthcast verify FILE`: a capture through the whole system, and the client's books held against the venue's word.

The file goes feed -> Kafka -> ingest -> Kafka -> streamer -> WebSocket -> client book; ingest and streamer are
processes of their own. What the books must be comes from the capture alone, see `services.referee`.
"""

import asyncio
import json
import uuid
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ingest.events import MapError
from ingest.pipeline import seq_of
from protos.messages import Channel, MarketMessage
from protos.tick import TickKind
from protos.topics import HEADER_CONTENT_TYPE, HEADER_FEED, Topics, partition_for
from services.client.subscription import Subscription
from services.config import load_settings
from services.errors import UserError
from services.feed.files import check_feed, read_capture
from services.feed.router import Router, TickOut
from services.kafka import Producer
from services.probe import Probe
from services.referee import TIER_DEPTHS, Referee, Report
from services.stack import Stack, local_http

WINDOW_BYTES = 32 * 1024
WINDOWS = 3
"""Sent ahead of what the client has confirmed: far below a client's marks, so that nothing is conflated."""
CONFIRM_S = 5.0
"""Records of a book that waits for its snapshot are never confirmed; neither is what the system lost."""
DIGEST_INTERVAL_MS = 500
DIGESTS_S = 5.0
"""Waited for a last digest of each book, of which the report counts what came."""

_ENVIRONMENT = {
    "DEPTHCAST_AUTH": "none",  # our client has no token
    "DEPTHCAST_CHECKPOINT_INTERVAL_MS": "2000",  # the embedded broker forgets after 5 MB
    "DEPTHCAST_DIGEST_INTERVAL_MS": str(DIGEST_INTERVAL_MS),
    "DEPTHCAST_SUBSCRIPTIONS_MAX": "1000",
}


async def run_verify(path: Path, feed: str, as_json: bool, kafka: str = "") -> bool:
    """Verify one capture and print the report.

    Args:
        path: The capture.
        feed: Its feed, one of `services.feed.files.FEED_NAMES`.
        as_json: Print one JSON object instead of lines.
        kafka: ``HOST:PORT`` of a real Kafka, where topics under a new prefix are made; "" for the embedded broker.

    Returns:
        Whether all holds.

    Raises:
        UserError: The capture cannot be read, or the system could not be started.
    """
    check_feed(feed)
    records = await asyncio.to_thread(lambda: list(_records(path, feed)))
    name = f"verify-{uuid.uuid4().hex[:8]}"
    settings = load_settings().model_copy(
        update={"topic_prefix": name, "ingest_group": name, "http_port": 0, "admin_port": 0, "partitions": 2}
    )
    async with Stack(settings, kafka or None, _ENVIRONMENT) as stack:
        report = await _Verification(stack, records).run()
    if as_json:
        print(json.dumps(report.as_dict()))  # noqa: T201 - the command's result
    else:
        for name, count in report.as_dict().items():
            print(f"{name:18} {count:>9,}")  # noqa: T201
        print("holds" if report.holds() else "DOES NOT HOLD")  # noqa: T201
    return report.holds()


class _Record(NamedTuple):
    """A record for the ticks topic, and when the capture received its message."""

    tick: TickOut
    received_ns: int

    @property
    def feed(self) -> str:
        return self.tick.headers[HEADER_FEED].decode()


def _records(path: Path, feed: str) -> Iterator[_Record]:
    routers: dict[tuple[str, str], Router] = {}
    for it in read_capture(path, feed):
        router = routers.setdefault((it.feed, it.connection), Router(it.feed))
        try:
            for tick in router.route(it.message, it.received_ns, it.symbol_hint):
                yield _Record(tick, it.received_ns)
        except MapError as error:
            raise UserError(f"{path} has a message that {it.feed} cannot send: {error}") from None


class _Verification:
    """One run."""

    def __init__(self, stack: Stack, records: list[_Record]) -> None:
        self._stack = stack
        self._records = records
        self._referee = Referee()
        self._reached: dict[str, int] = {}  # seq of the client's raw book, by instrument
        self._moved = asyncio.Event()

    async def run(self) -> Report:
        producer = Producer(self._stack.settings)
        await producer.start()
        probe = Probe(self._stack.url, self._seen)
        try:
            feeds = {record.tick.instrument: record.feed for record in self._records}
            await self._announce(producer, feeds)
            await probe.start(
                [(name, Channel.RAW, 0) for name in feeds]
                + [(name, Channel.BOOK, depth) for name in feeds for depth in TIER_DEPTHS]
            )
            await self._play(producer)
            await self._digested(probe)
        finally:
            await producer.stop()
            await probe.stop()
        report = self._referee.report()
        report.gaps, report.digests_passed, report.digests_failed = (
            probe.gaps,
            probe.digests_passed,
            probe.digests_failed,
        )
        report.dlq = int((await self._stack.ingest.metrics()).get("depthcast_dead_letters_total", 0))
        return report

    async def _announce(self, producer: Producer, feeds: dict[str, str]) -> None:
        """Make the instruments known before their first message, so that the client can be there to see it."""
        for name, feed in feeds.items():
            await self._deliver(producer, _Record(Router(feed).control(TickKind.DISCONNECTED, name, 0), 0))
        async with local_http() as http, asyncio.timeout(30):
            while True:
                known = (await http.get(f"{self._stack.http_url}/v1/instruments")).json()["instruments"]
                if {item["instrument"] for item in known} >= feeds.keys():
                    return
                await asyncio.sleep(0.02)

    async def _play(self, producer: Producer) -> None:
        window: list[_Record] = []
        size = 0
        expected: deque[dict[str, int]] = deque()
        for record in self._records:
            window.append(record)
            size += len(record.tick.value)
            if size >= WINDOW_BYTES:
                expected.append(await self._send(producer, window))
                window, size = [], 0
                if len(expected) == WINDOWS:
                    await self._confirmed(expected.popleft())
        expected.append(await self._send(producer, window))
        for last in expected:
            await self._confirmed(last)

    async def _send(self, producer: Producer, window: list[_Record]) -> dict[str, int]:
        """Put records into Kafka; returns the last seq of each book that they change."""
        offsets = await asyncio.gather(*(self._deliver(producer, record) for record in window))
        last: dict[str, int] = {}
        for record, offset in zip(window, offsets, strict=True):
            name, value, headers = record.tick
            if HEADER_CONTENT_TYPE not in headers and self._referee.sent(record.feed, name, seq_of(offset), value):
                last[name] = seq_of(offset)
        return last

    async def _confirmed(self, last: dict[str, int]) -> None:
        """Wait until the client has these."""
        try:
            async with asyncio.timeout(CONFIRM_S):
                while any(self._reached.get(name, 0) < seq for name, seq in last.items()):
                    self._moved.clear()
                    await self._moved.wait()
        except TimeoutError:
            return  # the report will say what is missing

    async def _digested(self, probe: Probe) -> None:
        """Wait for one more digest of each book, that of its end."""
        before = {id(it): it.digests_passed + it.digests_failed for it in probe.subscriptions if it.has_book}
        with suppress(TimeoutError):
            async with asyncio.timeout(DIGESTS_S):
                while any(it.digests_passed + it.digests_failed == before.get(id(it)) for it in probe.subscriptions):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)

    async def _deliver(self, producer: Producer, record: _Record) -> int:
        settings, key = self._stack.settings, record.tick.instrument.encode()
        return await producer.deliver(
            Topics(settings.topic_prefix).ticks,
            partition_for(key, settings.partitions),
            key,
            record.tick.value,
            record.tick.headers,
            record.received_ns // 1_000_000,
        )

    def _seen(self, subscription: Subscription, message: MarketMessage) -> None:
        if subscription.has_book and subscription.scale is not None:
            self._referee.saw(
                subscription.instrument,
                subscription.channel,
                subscription.depth,
                message.seq,
                subscription.book,
                subscription.scale,
            )
            if subscription.channel is Channel.RAW:
                self._reached[subscription.instrument] = message.seq
                self._moved.set()
