"""Reaching Kafka at all, and its topics, through the adapter; and the embedded broker itself."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from services.broker import EmbeddedBroker
from services.config import Settings
from services.errors import UserError
from services.kafka import (
    EARLIEST,
    Admin,
    DeliveryError,
    Producer,
    Reader,
    TopicSpec,
)
from tests.support.brokers import TestBroker
from tests.support.kafka_io import producer_of, read, reader_of
from tests.support.kafka_server import PASSWORD, USER, RealBroker, tls


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
        with pytest.raises(UserError, match=r"test_kafka_admin\.py .*: DEPTHCAST_KAFKA_CA_FILE must name a PEM file"):
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
