"""The contract of the Kafka adapter, on the embedded broker and on a real Kafka."""

import asyncio
import time

import pytest

from services.errors import UserError
from services.kafka import (
    EARLIEST,
    LATEST,
    RECORD_BYTES_MAX,
    DeliveryError,
    OffsetsLostError,
    Reader,
    Record,
)
from services.kafka.producer import BUFFER_BYTES_SOFT
from tests.support.brokers import TestBroker
from tests.support.kafka_io import fill, producer_of, read, reader_of

START_MS = 1_700_000_000_000


class TestContract:
    async def test_records_come_back_as_they_went_in(self, broker: TestBroker) -> None:
        topic = await broker.topic(partitions=2, retention_ms="-1")  # START_MS is long ago
        headers = {"feed": b"kraken", "empty": b""}
        async with producer_of(broker.settings) as producer:
            assert producer.acked(topic, 1) is None
            assert [await producer.deliver(topic, 1, b"k", b"v", headers, START_MS + i) for i in range(3)] == [0, 1, 2]
            assert await producer.deliver(topic, 1, b"tombstone", None) == 3
            assert await producer.deliver(topic, 1, None, b"no key") == 4
            assert producer.acked(topic, 1) == 4
            assert producer.acked(topic, 0) is None
            assert producer.buffered_bytes == 0
        async with reader_of(broker.settings, {(topic, 0): 0, (topic, 1): 0}) as reader:
            records = await read(reader, 5)
        assert records[:3] == [Record(topic, 1, i, START_MS + i, b"k", b"v", headers) for i in range(3)]
        assert [(r.key, r.value) for r in records[3:]] == [(b"tombstone", None), (None, b"no key")]
        assert all(abs(r.timestamp_ms - time.time() * 1000) < 60_000 for r in records[3:])

    @pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
    async def test_order_over_many_batches(self, broker: TestBroker, compression: str) -> None:
        topic = await broker.topic(partitions=2)
        settings = broker.settings.model_copy(update={"kafka_compression": compression})
        async with producer_of(settings) as producer:
            for i in range(6_000):
                producer.send(topic, i % 2, b"key", b"%07d" % i * 40)
                if i % 1_000 == 0:
                    await producer.room()
            await producer.flush()
            assert (producer.acked(topic, 0), producer.acked(topic, 1)) == (2_999, 2_999)
        async with reader_of(settings, {(topic, 0): 0, (topic, 1): 0}) as reader:
            records = await read(reader, 6_000)
        for partition in (0, 1):
            mine = [r for r in records if r.partition == partition]
            assert [r.offset for r in mine] == list(range(3_000))
            assert [r.value for r in mine] == [b"%07d" % i * 40 for i in range(partition, 6_000, 2)]

    async def test_flush_does_not_wait_for_what_is_sent_meanwhile(self, broker: TestBroker) -> None:
        topic = await broker.topic(partitions=1)
        async with producer_of(broker.settings) as producer:
            assert producer.end(topic, 0)() is None
            total = 0
            for _ in range(3):
                for i in range(100):
                    producer.send(topic, 0, b"key", b"%d" % i)
                end = producer.end(topic, 0)
                flushing = asyncio.create_task(producer.flush())
                sent = 0
                while not flushing.done():
                    producer.send(topic, 0, b"key", b"meanwhile")
                    sent += 1
                    await asyncio.sleep(0)
                await flushing
                total += 100
                assert end() == total
                total += sent
                assert (producer.acked(topic, 0) or 0) + 1 < total
            assert producer.buffered_bytes > 0
            await producer.flush()
            assert producer.buffered_bytes == 0

    async def test_large_records(self, broker: TestBroker) -> None:
        topic = await broker.topic(max_message_bytes=str(RECORD_BYTES_MAX + 1_000))
        largest = bytes(RECORD_BYTES_MAX - 3)
        async with producer_of(broker.settings) as producer:
            producer.send(topic, 0, b"key", b"small")
            producer.send(topic, 0, b"key", largest)
            with pytest.raises(ValueError, match="4194305 bytes for topic"):
                producer.send(topic, 0, b"key", bytes(RECORD_BYTES_MAX - 2))
            assert await producer.deliver(topic, 0, b"key", b"small") == 2
        start = 0 if broker.kind == "kafka" else 1  # the embedded broker keeps no more than 5 MB
        async with reader_of(broker.settings, {(topic, 0): start}) as reader:
            records = await read(reader, 3 - start)
        assert [len(r.value or b"") for r in records] == [5, len(largest), 5][start:]

    async def test_backpressure(self, broker: TestBroker) -> None:
        topic = await broker.topic()
        async with producer_of(broker.settings) as producer:
            async with asyncio.timeout(1):
                await producer.room()
            for _ in range(BUFFER_BYTES_SOFT // 100_000 + 2):
                producer.send(topic, 0, None, bytes(100_000))
            waiting = asyncio.create_task(producer.room())
            await asyncio.sleep(0)
            assert producer.buffered_bytes > BUFFER_BYTES_SOFT
            assert not waiting.done()
            await waiting
            assert producer.buffered_bytes <= BUFFER_BYTES_SOFT
            await producer.flush()
            assert producer.buffered_bytes == 0

    async def test_a_record_that_cannot_be_written_ends_the_producer(self, broker: TestBroker) -> None:
        topic = await broker.topic(partitions=1)
        async with producer_of(broker.settings) as producer:
            with pytest.raises(DeliveryError, match=f"cannot write to {topic}/7"):
                await producer.deliver(topic, 7, b"k", b"v")
            for call in (producer.flush, producer.room):
                with pytest.raises(DeliveryError):
                    await call()
            with pytest.raises(DeliveryError):
                producer.send(topic, 0, b"k", b"v")

    async def test_positions(self, broker: TestBroker) -> None:
        topic = await broker.topic(partitions=3)
        await fill(broker, topic, 10, partition=1)
        await fill(broker, topic, 4, partition=2)
        first, second, third = (topic, 0), (topic, 1), (topic, 2)
        async with reader_of(broker.settings, {first: EARLIEST, second: 7, third: LATEST}) as reader:
            assert reader.positions() == {first: 0, second: 7, third: 4}
            assert reader.lag() == {first: 0, second: 3, third: 0}
            assert await reader.beginning_offsets([first, second]) == {first: 0, second: 0}
            assert await reader.end_offsets([first, second, third]) == {first: 0, second: 10, third: 4}
            assert [r.offset for r in await read(reader, 3)] == [7, 8, 9]
            assert (reader.position(second), reader.lag()[second]) == (10, 0)
            reader.seek(second, 2)
            assert reader.lag()[second] == 8
            assert [r.key for r in await read(reader, 8)] == [b"k%d" % i for i in range(2, 10)]
            await reader.assign({third: 3})
            assert [(r.partition, r.offset) for r in await read(reader, 1)] == [(2, 3)]
            assert reader.positions() == {third: 4}

    async def test_poll_waits_no_longer_than_told(self, broker: TestBroker) -> None:
        topic = await broker.topic()
        await fill(broker, topic, 10)
        async with reader_of(broker.settings, {(topic, 0): LATEST}) as reader:
            started = time.monotonic()
            assert await reader.poll(50) == []
            assert 0.04 < time.monotonic() - started < 1
            await asyncio.sleep(0.1)
            assert 0.1 <= reader.last_poll_age_s() < 1
            reader.seek((topic, 0), 0)
            assert len(await read(reader, 1)) >= 1
            assert reader.last_poll_age_s() < 0.1
            reader.seek((topic, 0), 0)
            async with asyncio.timeout(5):
                while not (some := await reader.poll(100, records_max=3)):
                    pass
            assert [r.offset for r in some] == [0, 1, 2]
            assert reader.position((topic, 0)) == 3

    async def test_a_position_beyond_the_end(self, broker: TestBroker) -> None:
        topic = await broker.topic()
        await fill(broker, topic, 5)
        async with reader_of(broker.settings, {(topic, 0): 50}) as reader:
            for _ in range(2):  # it stays lost until told where to go on
                with pytest.raises(OffsetsLostError, match="holds offsets 0 to 5, not 50") as lost:
                    await read(reader, 1)
                assert (lost.value.beginning, lost.value.end, lost.value.lost) == (0, 5, 0)
            reader.seek(lost.value.partition, 4)
            assert [r.offset for r in await read(reader, 1)] == [4]

    async def test_records_that_were_dropped(self, broker: TestBroker) -> None:
        topic = await broker.topic(segment_bytes=str(1 << 20), retention_bytes=str(2 << 20), file_delete_delay_ms="0")
        async with producer_of(broker.settings) as producer:
            for _ in range(100):  # far over what the embedded broker keeps, and over this topic's retention
                await producer.deliver(topic, 0, None, bytes(100_000))
        async with reader_of(broker.settings, {(topic, 0): LATEST}) as reader:
            async with asyncio.timeout(20):
                while not (await reader.beginning_offsets([(topic, 0)]))[topic, 0]:
                    await reader.poll(100)
            reader.seek((topic, 0), 0)
            with pytest.raises(OffsetsLostError) as lost:
                await read(reader, 1)
            assert lost.value.lost == lost.value.beginning > 0
            assert (lost.value.partition, lost.value.end) == ((topic, 0), 100)
            reader.seek((topic, 0), lost.value.beginning)
            assert (await read(reader, 1))[0].offset == lost.value.beginning

    async def test_unknown_topic(self, broker: TestBroker, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("services.kafka.reader._OFFSETS_TIMEOUT_MS", 500)
        reader = Reader(broker.settings)
        await reader.start()
        try:
            if broker.kind == "kafka":
                with pytest.raises(UserError, match="does not tell the offsets of nowhere: run `depthcast topics"):
                    await reader.assign({("nowhere", 0): EARLIEST})
            else:  # it springs up
                await reader.assign({("nowhere", 0): EARLIEST})
        finally:
            await reader.stop()
