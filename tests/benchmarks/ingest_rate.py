"""Ingest on one core, Kafka to Kafka: BTCUSDT spot book events per second.

The capture's book messages are copied under several symbols, so that there is enough to do; they wait in Kafka when the
worker starts. The rate is the slope of its own count between a tenth and nine tenths. The reference is orjson parsing
the same bytes, in the same run.
"""

import asyncio
import re
import time
import uuid
from pathlib import Path
from statistics import median
from tempfile import mkdtemp

import orjson

from protos.topics import HEADER_FEED, HEADER_RECEIVED_NS, Topics
from services.config import load_settings
from services.feed.files import read_capture
from services.kafka import Producer
from services.stack import Child, free_port
from services.topics import create_topics
from tests.benchmarks.common import BUILDS, CAPTURES, OTHER_CORE, SERVER_CORE, Row, build, kafka, pinned

COPIES = 10
MUST, AIM = 8_000, 15_000


def messages() -> list[bytes]:
    """The capture's snapshot and book deltas."""
    capture = read_capture(CAPTURES / "binance" / "spot_btcusdt_20240808.gz", "binance.spot")
    return [it.message for it in capture if b"depthUpdate" in it.message or b"lastUpdateId" in it.message]


async def ingest_rate(bootstrap: str, name: str) -> float:
    """Book events per second of one worker of a build on SERVER_CORE."""
    settings = load_settings().model_copy(
        update={"kafka_bootstrap": bootstrap, "topic_prefix": f"bench-{uuid.uuid4().hex[:8]}", "partitions": 1}
    )
    await create_topics(settings)
    producer = Producer(settings)
    await producer.start()
    total = 0
    received_ns = str(time.time_ns()).encode()
    for message in messages():
        for copy in range(COPIES):
            value = re.sub(rb"(?<=\")(BTCUSDT)(?=\")", b"BTCUSDT%d" % copy, message)
            headers = {HEADER_FEED: b"binance.spot", HEADER_RECEIVED_NS: received_ns}
            producer.send(Topics(settings.topic_prefix).ticks, 0, b"binance:spot:BTCUSDT%d" % copy, value, headers)
            total += 1
        await producer.room()
    await producer.stop()
    environment = {
        "DEPTHCAST_KAFKA_BOOTSTRAP": bootstrap,
        "DEPTHCAST_TOPIC_PREFIX": settings.topic_prefix,
        "DEPTHCAST_PARTITIONS": "1",
        "DEPTHCAST_INGEST_GROUP": settings.topic_prefix,
    }
    child = Child("ingest", environment, free_port(), Path(mkdtemp(), "ingest.log"))
    with pinned(SERVER_CORE), build(name):
        await child.start()
    try:
        return await _slope(child, total)
    finally:
        await child.stop()


async def _slope(child: Child, total: int) -> float:
    await child.ready()
    first: tuple[float, float] | None = None
    while True:
        if child.ended:
            raise RuntimeError(child.ended)
        done = (await child.metrics()).get("depthcast_kafka_records_total", 0)
        now = time.monotonic()
        if first is None and done >= total / 10:
            first = (now, done)
        if done >= total * 0.9:
            assert first is not None
            return (done - first[1]) / (now - first[0]) if now > first[0] else 0.0
        await asyncio.sleep(0.25)  # each look costs the worker 2 ms


def orjson_rate() -> float:
    """The same messages per second through orjson alone."""
    found = messages()
    start = time.perf_counter()
    for message in found:
        orjson.loads(message)
    return len(found) / (time.perf_counter() - start)


def measure() -> list[Row]:
    """The rate of each build, and its ratio to parsing alone; medians of three."""
    with kafka(OTHER_CORE) as bootstrap:
        rates = {name: median(asyncio.run(ingest_rate(bootstrap, name)) for _ in range(3)) for name in BUILDS}
    with pinned(SERVER_CORE):
        parse = median(orjson_rate() for _ in range(3))
    rows = []
    for (name, rate), must in zip(rates.items(), (f">= {MUST:,}", f">= {MUST:,}, aim {AIM:,}"), strict=True):
        rows += [
            Row(f"ingest, Kafka to Kafka, one core, {name}", f"{rate:,.0f} events/s", must, rate >= MUST),
            Row("  of the rate of orjson alone", f"{rate / parse:.1%} of {parse:,.0f}/s", "reported", True),
        ]
    return rows
