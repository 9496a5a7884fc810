"""The contract of the Kafka adapter, on the embedded broker and on a real Kafka."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from pydantic import SecretStr

from services.broker import EmbeddedBroker
from services.config import Settings
from services.errors import UserError
from services.kafka import (
    EARLIEST,
    LATEST,
    RECORD_BYTES_MAX,
    Admin,
    DeliveryError,
    GroupReader,
    OffsetsLostError,
    Partition,
    Producer,
    Reader,
    Record,
    TopicSpec,
)
from services.kafka.producer import BUFFER_BYTES_SOFT
from tests.support.brokers import TestBroker
from tests.support.kafka_server import PASSWORD, USER, RealBroker, tls

START_MS = 1_700_000_000_000


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


class Member:
    """A group member that starts where it is told and remembers what happened to it."""

    def __init__(self, broker: TestBroker, topic: str, group: str, start: int = 0) -> None:
        self.partitions: list[int] = []
        self.history: list[tuple[str, list[int]]] = []
        self.records: list[Record] = []
        self._start = start
        self.reader = GroupReader(broker.settings, topic, group, self._on_assigned, self._on_revoked)

    async def _on_assigned(self, partitions: list[int]) -> Mapping[int, int]:
        self.history.append(("assigned", partitions))
        await asyncio.sleep(0.05)  # as if loading snapshots; nothing may be polled meanwhile
        self.partitions = partitions
        return dict.fromkeys(partitions, self._start)

    async def _on_revoked(self, partitions: list[int]) -> None:
        assert partitions == self.partitions
        self.history.append(("revoked", partitions))
        self.partitions = []

    async def poll(self) -> None:
        records = await self.reader.poll(20)
        assert {r.partition for r in records} <= set(self.partitions)
        self.records += records


async def until(condition: Callable[[], bool], *members: Member) -> None:
    async with asyncio.timeout(20):
        while not condition():
            for member in members:
                await member.poll()


@pytest.fixture
async def member(broker: TestBroker) -> AsyncIterator[Callable[..., Awaitable[Member]]]:
    async with AsyncExitStack() as stack:

        async def start(topic: str, group: str, start: int = 0) -> Member:
            new = Member(broker, topic, group, start)
            await new.reader.start()
            stack.push_async_callback(new.reader.stop)
            return new

        yield start


class TestGroup:
    async def test_one_member(self, broker: TestBroker, member: Callable[..., Awaitable[Member]]) -> None:
        topic, group = await broker.topic(partitions=2), broker.name("group")
        for partition in (0, 1):
            await fill(broker, topic, 6, partition)
        first = await member(topic, group, start=2)
        await until(lambda: len(first.records) == 8, first)
        assert first.history == [("assigned", [0, 1])]
        assert sorted((r.partition, r.offset) for r in first.records) == [(p, i) for p in (0, 1) for i in range(2, 6)]
        assert first.reader.lag() == {(topic, 0): 0, (topic, 1): 0}
        assert await first.reader.committed((topic, 1)) is None
        assert await first.reader.commit({(topic, 1): 6})
        assert await first.reader.committed((topic, 1)) == 6
        await first.reader.stop()
        assert first.history == [("assigned", [0, 1])]
        second = await member(topic, group, start=EARLIEST)  # not where the other one committed
        await until(lambda: len(second.records) == 12, second)
        assert second.partitions == [0, 1]

    async def test_an_error_in_a_callback_comes_out_of_poll(self, broker: TestBroker) -> None:
        topic = await broker.topic()

        async def fail(_partitions: list[int]) -> Mapping[int, int]:
            raise UserError("no snapshots")

        async def revoked(_partitions: list[int]) -> None:
            raise AssertionError

        reader = GroupReader(broker.settings, topic, broker.name("group"), fail, revoked)
        await reader.start()
        with pytest.raises(UserError, match="no snapshots"):
            await read(reader, 1)
        await reader.stop()

    async def test_stop_while_a_rebalance_waits(self, broker: TestBroker) -> None:
        topic = await broker.topic()
        member = Member(broker, topic, broker.name("group"))
        await member.reader.start()
        await asyncio.sleep(0.7)  # it joins without being polled
        async with asyncio.timeout(5):
            await member.reader.stop()
        assert member.history == []

    @pytest.mark.kafka
    @pytest.mark.parametrize("broker", ["kafka"], indirect=True)  # the embedded one loses members that sync late
    async def test_two_members(self, broker: TestBroker, member: Callable[..., Awaitable[Member]]) -> None:
        topic, group = await broker.topic(partitions=4), broker.name("group")
        first = await member(topic, group)
        await until(lambda: first.partitions == [0, 1, 2, 3], first)
        second = await member(topic, group)
        await until(lambda: len(first.partitions) == len(second.partitions) == 2, first, second)
        assert sorted(first.partitions + second.partitions) == [0, 1, 2, 3]
        assert first.history[:2] == [("assigned", [0, 1, 2, 3]), ("revoked", [0, 1, 2, 3])]
        for partition in range(4):
            await fill(broker, topic, 3, partition)
        await until(lambda: len(first.records) == len(second.records) == 6, first, second)
        assert await first.reader.commit({(topic, first.partitions[0]): 3})
        assert not await first.reader.commit({(topic, second.partitions[0]): 3})
        await second.reader.stop()
        await until(lambda: first.partitions == [0, 1, 2, 3], first)

    @pytest.mark.kafka
    @pytest.mark.parametrize("broker", ["kafka"], indirect=True)
    async def test_a_member_that_is_stuck_cannot_commit(
        self, broker: TestBroker, member: Callable[..., Awaitable[Member]]
    ) -> None:
        topic, group = await broker.topic(), broker.name("group")
        stuck = await member(topic, group)
        await until(lambda: stuck.partitions == [0], stuck)
        time.sleep(3)  # noqa: ASYNC251 no heartbeats: the loop stands still
        other = await member(topic, group)
        await until(lambda: other.partitions == [0], other)
        assert not await stuck.reader.commit({(topic, 0): 1})


class TestOutage:
    async def test_nothing_is_lost_or_doubled(self, embedded: TestBroker) -> None:
        assert isinstance(embedded.server, EmbeddedBroker)
        topic = await embedded.topic()
        async with producer_of(embedded.settings) as producer, reader_of(embedded.settings, {(topic, 0): 0}) as reader:
            await producer.deliver(topic, 0, None, b"0")
            for i in range(1, 100):
                if i == 30:
                    embedded.server.pause()
                if i == 60:
                    await asyncio.sleep(0.3)
                    embedded.server.resume()
                producer.send(topic, 0, None, b"%d" % i)
                await asyncio.sleep(0.001)
            await producer.flush()
            records = await read(reader, 100)
            assert await reader.poll(50) == []
        assert [r.value for r in records] == [b"%d" % i for i in range(100)]

    async def test_stop_without_kafka(self, embedded: TestBroker, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("services.kafka.producer._STOP_S", 0.3)
        assert isinstance(embedded.server, EmbeddedBroker)
        topic = await embedded.topic()
        producer = Producer(embedded.settings)
        await producer.start()
        embedded.server.pause()
        waiting = asyncio.create_task(producer.deliver(topic, 0, None, b"lost"))
        await asyncio.sleep(0.05)
        async with asyncio.timeout(5):
            await producer.stop()
        with pytest.raises(DeliveryError, match="stopped"):
            await waiting


class TestConnect:
    @pytest.mark.parametrize("client", [Producer, Reader, Admin])
    async def test_nobody_listens(
        self, client: type[Producer | Reader | Admin], capfd: pytest.CaptureFixture[str]
    ) -> None:
        settings = Settings(kafka_bootstrap="127.0.0.1:1", kafka_connect_timeout_ms=300)
        started = time.monotonic()
        with pytest.raises(
            UserError, match=r"^cannot reach Kafka at 127.0.0.1:1: connection refused; start it, or set"
        ):
            await client(settings).start()
        assert time.monotonic() - started < 3
        assert "Traceback" not in capfd.readouterr().err

    async def test_kafka_may_start_later(self) -> None:
        first = EmbeddedBroker()
        bootstrap = first.start()
        first.pause()
        producer = Producer(Settings(kafka_bootstrap=bootstrap))
        starting = asyncio.create_task(producer.start())
        await asyncio.sleep(0.3)
        assert not starting.done()
        first.resume()
        await starting
        await producer.stop()
        first.stop()

    async def test_it_is_not_kafka(self) -> None:
        async def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()

        server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(UserError, match="it hangs up; check that it speaks PLAINTEXT there"):
            await Admin(Settings(kafka_bootstrap=f"127.0.0.1:{port}", kafka_connect_timeout_ms=300)).start()
        server.close()

    async def test_unknown_host(self) -> None:
        with pytest.raises(UserError, match=r"nowhere\.invalid:9092: unknown host"):
            await Admin(Settings(kafka_bootstrap="nowhere.invalid:9092", kafka_connect_timeout_ms=300)).start()

    def test_no_authority(self) -> None:
        settings = Settings(kafka_security_protocol="SSL", kafka_ca_file=Path(__file__))
        with pytest.raises(UserError, match=r"test_kafka\.py .*: DEPTHCAST_KAFKA_CA_FILE must name a PEM file"):
            asyncio.run(Admin(settings).start())


@pytest.mark.kafka
class TestSecurity:
    @pytest.fixture
    def secure(self, kafka_server: RealBroker) -> Settings:
        return Settings(
            kafka_bootstrap=kafka_server.secure_bootstrap,
            kafka_security_protocol="SASL_SSL",
            kafka_sasl_username=USER,
            kafka_sasl_password=SecretStr(PASSWORD),
            kafka_ca_file=tls() / "ca.pem",
            kafka_connect_timeout_ms=2_000,
        )

    async def test_tls_and_login(self, kafka: TestBroker, secure: Settings) -> None:
        topic = await kafka.topic()
        async with producer_of(secure) as producer, reader_of(secure, {(topic, 0): 0}) as reader:
            await producer.deliver(topic, 0, b"k", b"v")
            assert len(await read(reader, 1)) == 1

    async def test_wrong_password(self, secure: Settings) -> None:
        wrong = secure.model_copy(update={"kafka_sasl_username": "nobody"})
        started = time.monotonic()
        with pytest.raises(UserError, match="refused the login of 'nobody' by SCRAM-SHA-512"):
            await Admin(wrong).start()
        assert time.monotonic() - started < secure.kafka_connect_timeout_ms / 1000  # trying again would not help

    async def test_unknown_authority(self, secure: Settings) -> None:
        with pytest.raises(UserError, match=r"TLS failed \(CERTIFICATE_VERIFY_FAILED\); check"):
            await Admin(secure.model_copy(update={"kafka_ca_file": None})).start()


@pytest.mark.kafka
class TestAdmin:
    @pytest.fixture
    async def admin(self, kafka: TestBroker) -> AsyncIterator[Admin]:
        admin = Admin(kafka.settings)
        await admin.start()
        yield admin
        await admin.stop()

    async def test_create_and_describe(self, kafka: TestBroker, admin: Admin) -> None:
        spec = TopicSpec(kafka.name("topic"), 3, 1, {"cleanup.policy": "compact"})
        assert await admin.create([spec]) == [spec.name]
        assert await admin.create([spec]) == []
        assert spec.name in await admin.topics()
        found = await admin.describe([spec.name, "nowhere"])
        assert list(found) == [spec.name]
        assert (found[spec.name].partitions, found[spec.name].replication_factor) == (3, 1)
        assert (found[spec.name].configs or {})["cleanup.policy"] == "compact"
        assert "nowhere" not in await admin.topics()

    async def test_refusals(self, kafka: TestBroker, admin: Admin) -> None:
        name = kafka.name("topic")
        with pytest.raises(UserError, match=f"refuses to create {name}: .*replication factor of 3"):
            await admin.create([TopicSpec(name, 1, 3)])
        with pytest.raises(UserError, match=f"refuses to create {name}: .*cleanup.policy"):
            await admin.create([TopicSpec(name, 1, 1, {"cleanup.policy": "sometimes"})])

    async def test_the_broker_refuses_a_record(self, kafka: TestBroker) -> None:
        topic = await kafka.topic(max_message_bytes="1000")
        async with producer_of(kafka.settings) as producer:
            with pytest.raises(DeliveryError, match=f"cannot write to {topic}/0: .*MessageSizeTooLarge"):
                await producer.deliver(topic, 0, b"k", bytes(2_000))

    async def test_a_reader_passes_what_compaction_left(self, kafka: TestBroker) -> None:
        topic = await kafka.topic(
            cleanup_policy="compact", segment_ms="100", min_cleanable_dirty_ratio="0.01", delete_retention_ms="0"
        )
        async with producer_of(kafka.settings) as producer:
            for i in range(20):
                await producer.deliver(topic, 0, b"same", b"%d" % i)
            await asyncio.sleep(0.2)
            await producer.deliver(topic, 0, b"same", b"last")  # rolls the segment
        async with reader_of(kafka.settings, {(topic, 0): EARLIEST}) as reader, asyncio.timeout(30):
            while True:
                reader.seek((topic, 0), 0)
                records = await read(reader, 1)
                while reader.position((topic, 0)) < 21:
                    records += await reader.poll(100)
                if len(records) < 21:
                    break
                await asyncio.sleep(0.2)
        assert records[-1].value == b"last"
        assert [r.offset for r in records] == sorted({r.offset for r in records})


class TestEmbeddedBroker:
    def test_start_and_stop_twice(self) -> None:
        broker = EmbeddedBroker()
        assert broker.start() == broker.start() == broker.bootstrap
        broker.stop()
        broker.stop()
        with pytest.raises(RuntimeError, match="not started"):
            broker.create_topic("x", 1)

    async def test_topics(self, embedded: TestBroker) -> None:
        name = await embedded.topic(partitions=5)
        with pytest.raises(ValueError, match="exists"):
            await embedded.create([TopicSpec(name, 5)])
        admin = Admin(embedded.settings)
        await admin.start()
        assert (await admin.describe([name]))[name].partitions == 5
        assert (await admin.describe([name]))[name].configs is None
        with pytest.raises(UserError, match="does not create topics"):
            await admin.create([TopicSpec("other", 1)])
        await admin.stop()
