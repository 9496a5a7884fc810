"""The four topics: created as they must be, and every misfit named in one line."""

import time
from dataclasses import replace

import pytest

from protos.topics import Topics
from services.config import Settings
from services.errors import UserError
from services.kafka import EARLIEST, Producer, Reader, TopicInfo, TopicSpec
from services.topics import check_topics, create_topics, problems, run_create, run_describe, topic_specs
from tests.support.brokers import TestBroker


def as_they_must_be(settings: Settings) -> dict[str, TopicInfo]:
    specs = topic_specs(settings)
    return {s.name: TopicInfo(s.name, s.partitions, s.replication_factor, dict(s.configs)) for s in specs}


def test_specs() -> None:
    settings = Settings(partitions=6, replication_factor=3, topic_prefix="p", market_retention_ms=400_000)
    ticks, market, snapshots, dlq = topic_specs(settings)
    assert [s.name for s in (ticks, market, snapshots, dlq)] == ["p.ticks", "p.market", "p.snapshots", "p.dlq"]
    assert {s.partitions for s in (ticks, market, snapshots, dlq)} == {6}
    assert [s.configs["cleanup.policy"] for s in (ticks, market, snapshots, dlq)] == [
        *("delete", "delete", "compact", "delete"),
    ]
    assert market.configs["retention.ms"] == "400000"
    assert market.configs["segment.ms"] == "100000"
    assert "retention.ms" not in snapshots.configs
    assert int(dlq.configs["max.message.bytes"]) > int(ticks.configs["max.message.bytes"])
    assert ticks.configs["min.insync.replicas"] == "2"
    assert topic_specs(Settings())[0].configs["min.insync.replicas"] == "1"


def test_no_problems() -> None:
    settings = Settings()
    found = as_they_must_be(settings)
    assert problems(settings, found) == []
    assert problems(settings, {name: replace(topic, configs=None) for name, topic in found.items()}) == []


@pytest.mark.parametrize(
    ("name", "change", "text", "fatal"),
    [
        ("market", None, "is missing: run `depthcast topics create`", True),
        ("ticks", {"partitions": 3}, "has 3 partitions, not 8: set DEPTHCAST_PARTITIONS to 3 or", True),
        ("snapshots", {"cleanup.policy": "delete"}, "has cleanup.policy=delete: it would lose records; set", True),
        ("ticks", {"cleanup.policy": "compact"}, "has cleanup.policy=compact", True),
        ("market", {"retention.ms": "39999"}, "is kept for 39999 ms: streamers need 40000", True),
        ("ticks", {"retention.ms": "40001"}, "has retention.ms=40001, not 86400000", False),
        ("dlq", {"max.message.bytes": "1000"}, "has max.message.bytes=1000", False),
        ("market", {"message.timestamp.type": "CreateTime"}, "has message.timestamp.type=CreateTime", False),
        ("ticks", {"replication_factor": 0}, "has 0 copies of each partition, not 1", False),
    ],
)
def test_problems(name: str, change: dict[str, object] | None, text: str, fatal: bool) -> None:
    settings = Settings()
    found = as_they_must_be(settings)
    topic = f"{settings.topic_prefix}.{name}"
    if change is None:
        del found[topic]
    else:
        fields = {key: value for key, value in change.items() if hasattr(found[topic], key)}
        configs = {**(found[topic].configs or {}), **{k: v for k, v in change.items() if k not in fields}}
        found[topic] = replace(found[topic], configs=configs, **fields)
    faults = problems(settings, found)
    assert faults[0].topic == topic
    assert faults[0].text.startswith(text)
    assert faults[0].fatal is fatal


def test_market_kept_for_ever_is_no_problem_for_streamers() -> None:
    settings = Settings()
    found = as_they_must_be(settings)
    (found["depthcast.market"].configs or {})["retention.ms"] = "-1"
    assert [fault.fatal for fault in problems(settings, found)] == [False]


async def test_check(broker: TestBroker) -> None:
    settings = broker.settings
    prefix = settings.topic_prefix
    line = f"^topic {prefix}.ticks on {broker.bootstrap} is missing: run `depthcast topics create` .and 3 more: [^\n]*$"
    with pytest.raises(UserError, match=line):
        await check_topics(settings)
    await broker.create_topics()
    await check_topics(settings)
    with pytest.raises(UserError, match=r"has 2 partitions, not 3: set DEPTHCAST_PARTITIONS to 2 or choose another"):
        await check_topics(settings.model_copy(update={"partitions": 3}))


@pytest.mark.kafka
async def test_create(kafka: TestBroker, capsys: pytest.CaptureFixture[str]) -> None:
    settings = kafka.settings
    names = [spec.name for spec in topic_specs(settings)]
    with pytest.raises(UserError, match="is missing"):
        await run_describe(settings)
    assert await create_topics(settings) == names
    assert await create_topics(settings) == []
    await run_create(settings)
    await run_describe(settings)
    out = capsys.readouterr().out
    assert f"{names[0]}: exists, 2 partitions" in out
    assert "compact" in out
    wide = settings.model_copy(update={"replication_factor": 3, "topic_prefix": "wide"})
    with pytest.raises(UserError, match=r"refuses to create wide\.ticks: .*only 1 broker"):
        await create_topics(wide)


@pytest.mark.kafka
async def test_create_beside_one_that_does_not_fit(kafka: TestBroker) -> None:
    topics = Topics(kafka.settings.topic_prefix)
    await kafka.create([TopicSpec(topics.snapshots, 2)])
    with pytest.raises(UserError, match=f"{topics.snapshots} on .* has cleanup.policy=delete"):
        await create_topics(kafka.settings)


@pytest.mark.kafka
async def test_old_ticks_are_kept(kafka: TestBroker) -> None:
    """A replay of captures from 2020 must not be deleted for its age."""
    settings = kafka.settings
    await create_topics(settings)
    ticks = Topics(settings.topic_prefix).ticks
    producer, reader = Producer(settings), Reader(settings)
    await producer.start()
    await reader.start()
    await producer.deliver(ticks, 0, b"k", b"v", timestamp_ms=1_600_000_000_000)
    await reader.assign({(ticks, 0): EARLIEST})
    records = []
    while not records:
        records = await reader.poll(100)
    assert abs(records[0].timestamp_ms - time.time() * 1000) < 60_000
    await producer.stop()
    await reader.stop()
