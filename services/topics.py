"""The four topics: how each must be, `depthcast topics create|describe`, and the check when a process starts.

All records carry the time they arrived (LogAppendTime): retention counts from there, whatever a replayed capture or a
worker that catches up with a backlog says about the age of its data.
"""

from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from protos.topics import Topics
from services.config import CHECKPOINTS_RETAINED_MIN, Settings
from services.errors import UserError
from services.kafka import RECORD_BYTES_MAX, Admin, TopicInfo, TopicSpec

_ENVELOPE_BYTES = 64 << 10
"""Room for headers and the batch around a record."""
_SEGMENTS_RETAINED = 4
"""Kafka deletes whole segments: with this many in the retention time, a topic takes a quarter more disk than needed."""
_SEGMENT_MS_MIN = 60_000
_SNAPSHOT_SEGMENT_MS = 600_000
"""Kafka does not compact the segment it writes to, so this is what a starting streamer reads more than once."""
_MIN_ISR = 2
"""In-sync copies that an acknowledged record has, from 3 replicas on: one broker may fail, and nothing is lost."""


class Problem(NamedTuple):
    topic: str
    text: str
    fatal: bool
    """Nothing may start before it is mended."""


def topic_specs(settings: Settings) -> list[TopicSpec]:
    """The topics as these settings want them: ticks, market, snapshots, dlq."""
    topics = Topics(settings.topic_prefix)
    compact = {
        "cleanup.policy": "compact",
        "segment.ms": str(_SNAPSHOT_SEGMENT_MS),
        "min.cleanable.dirty.ratio": "0.1",
    }
    wanted = [
        (topics.ticks, _kept_for(settings.ticks_retention_ms), 1),
        (topics.market, _kept_for(settings.market_retention_ms), 1),
        (topics.snapshots, compact, 1),
        (topics.dlq, _kept_for(settings.dlq_retention_ms), 2),  # the original, and the headers that say why
    ]
    return [
        TopicSpec(
            name,
            settings.partitions,
            settings.replication_factor,
            {
                **configs,
                "max.message.bytes": str(RECORD_BYTES_MAX + envelopes * _ENVELOPE_BYTES),
                "message.timestamp.type": "LogAppendTime",
                "min.insync.replicas": str(_MIN_ISR if settings.replication_factor > _MIN_ISR else 1),
                "unclean.leader.election.enable": "false",
            },
        )
        for name, configs, envelopes in wanted
    ]


def _kept_for(retention_ms: int) -> dict[str, str]:
    return {
        "cleanup.policy": "delete",
        "retention.ms": str(retention_ms),
        "segment.ms": str(max(_SEGMENT_MS_MIN, retention_ms // _SEGMENTS_RETAINED)),
    }


def problems(settings: Settings, found: dict[str, TopicInfo]) -> list[Problem]:
    """What is wrong with the topics that are there."""
    faults = []
    for spec in topic_specs(settings):
        topic = found.get(spec.name)
        if topic is None:
            faults.append(Problem(spec.name, "is missing: run `depthcast topics create`", True))
            continue
        if topic.partitions != spec.partitions:
            mend = f"set DEPTHCAST_PARTITIONS to {topic.partitions} or choose another DEPTHCAST_TOPIC_PREFIX"
            faults.append(Problem(spec.name, f"has {topic.partitions} partitions, not {spec.partitions}: {mend}", True))
        if topic.replication_factor < spec.replication_factor:
            text = f"has {topic.replication_factor} copies of each partition, not {spec.replication_factor}"
            faults.append(Problem(spec.name, text, False))
        faults += _config_problems(settings, spec, topic.configs or spec.configs)
    return faults


def _config_problems(settings: Settings, spec: TopicSpec, configs: dict[str, str]) -> list[Problem]:
    faults = []
    policy, wanted = configs["cleanup.policy"], spec.configs["cleanup.policy"]
    if policy != wanted:
        text = f"has cleanup.policy={policy}: it would lose records; set it to {wanted} with kafka-configs"
        faults.append(Problem(spec.name, text, True))
    needed_ms = CHECKPOINTS_RETAINED_MIN * settings.checkpoint_interval_ms
    retained_ms = int(configs.get("retention.ms", -1))
    if spec.name == Topics(settings.topic_prefix).market and 0 <= retained_ms < needed_ms:
        text = f"is kept for {retained_ms} ms: streamers need {needed_ms}; set retention.ms with kafka-configs"
        faults.append(Problem(spec.name, text, True))
    for name in ("retention.ms", "max.message.bytes", "message.timestamp.type"):
        is_, should = configs.get(name), spec.configs.get(name)
        if should is not None and is_ != should:
            faults.append(Problem(spec.name, f"has {name}={is_}, not {should} as the settings say", False))
    return faults


async def _look(settings: Settings, *, create: bool) -> tuple[list[str], dict[str, TopicInfo]]:
    admin = Admin(settings)
    await admin.start()
    try:
        specs = topic_specs(settings)
        found = await admin.describe([spec.name for spec in specs])
        created: list[str] = []
        if create and (missing := [spec for spec in specs if spec.name not in found]):
            created = await admin.create(missing)
            found = await admin.describe([spec.name for spec in specs])
        return created, found
    finally:
        await admin.stop()


async def create_topics(settings: Settings) -> list[str]:
    """Create the topics that are missing; returns their names.

    Raises:
        UserError: Kafka cannot be reached or refuses, or there are topics that do not fit.
    """
    created, found = await _look(settings, create=True)
    # A topic just created may not be known to every broker yet: what it lacks is no fault.
    _raise([fault for fault in problems(settings, found) if fault.topic not in created], settings)
    return created


async def check_topics(settings: Settings) -> None:
    """What ingest and streamers do first.

    Raises:
        UserError: Kafka cannot be reached, or a topic is missing or does not fit; one line says what to do.
    """
    _, found = await _look(settings, create=False)
    _raise(problems(settings, found), settings)


def _raise(faults: list[Problem], settings: Settings) -> None:
    fatal = [fault for fault in faults if fault.fatal]
    if fatal:
        others = {fault.topic for fault in fatal} - {fatal[0].topic}
        more = f" (and {len(others)} more: `depthcast topics describe`)" if others else ""
        raise UserError(f"topic {fatal[0].topic} on {settings.kafka_bootstrap} {fatal[0].text}{more}")


async def run_create(settings: Settings) -> None:
    """`depthcast topics create`."""
    created = await create_topics(settings)
    for spec in topic_specs(settings):
        state = "created" if spec.name in created else "exists"
        Console().print(f"{spec.name}: {state}, {spec.partitions} partitions", highlight=False)


async def run_describe(settings: Settings) -> None:
    """`depthcast topics describe`.

    Raises:
        UserError: After the table, if ingest and streamers would not start.
    """
    _, found = await _look(settings, create=False)
    faults = problems(settings, found)
    console = Console()
    table = Table("topic", "partitions", "copies", "cleanup", "kept for")
    for spec in topic_specs(settings):
        topic = found.get(spec.name)
        configs = (topic.configs if topic else None) or {}
        table.add_row(
            spec.name,
            *((str(topic.partitions), str(topic.replication_factor)) if topic else ("", "")),
            configs.get("cleanup.policy", ""),
            f"{configs['retention.ms']} ms" if configs.get("cleanup.policy") == "delete" else "",
        )
    console.print(table)
    for fault in faults:
        console.print(f"{fault.topic} {fault.text}", highlight=False, soft_wrap=True)
    _raise(faults, settings)
