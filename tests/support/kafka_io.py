"""Records into Kafka and out of it, through our adapter."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from services.config import Settings
from services.kafka import (
    GroupReader,
    Partition,
    Producer,
    Reader,
    Record,
)
from tests.support.brokers import TestBroker


@asynccontextmanager
async def producer_of(settings: Settings) -> AsyncIterator[Producer]:
    producer = Producer(settings)
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


@asynccontextmanager
async def reader_of(settings: Settings, positions: Mapping[Partition, int]) -> AsyncIterator[Reader]:
    reader = Reader(settings)
    await reader.start()
    try:
        await reader.assign(positions)
        yield reader
    finally:
        await reader.stop()


async def read(reader: Reader | GroupReader, count: int, timeout_s: float = 10.0) -> list[Record]:
    records: list[Record] = []
    async with asyncio.timeout(timeout_s):
        while len(records) < count:
            records += await reader.poll(100)
    return records


async def fill(broker: TestBroker, topic: str, count: int, partition: int = 0) -> None:
    async with producer_of(broker.settings) as producer:
        for i in range(count):
            producer.send(topic, partition, b"k%d" % i, b"v%d" % i)
        await producer.flush()
