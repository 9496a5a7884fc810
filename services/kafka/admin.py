"""Topics: what there is, and how to make it."""

from dataclasses import dataclass, field
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import IncompatibleBrokerVersion, KafkaError, TopicAlreadyExistsError, for_code

from services.config import Settings
from services.errors import UserError
from services.kafka.connection import client_options, connect


@dataclass(slots=True, frozen=True)
class TopicSpec:
    """A topic as it should be; ``configs`` are Kafka's topic configs, as text."""

    name: str
    partitions: int
    replication_factor: int = 1
    configs: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True, frozen=True)
class TopicInfo:
    """A topic as it is; ``configs`` is None where the broker does not tell (the embedded one)."""

    name: str
    partitions: int
    replication_factor: int
    configs: dict[str, str] | None


class Admin:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: Any = None

    async def start(self) -> None:
        """Connect.

        Raises:
            UserError: Kafka cannot be reached.
        """
        self._client = AIOKafkaAdminClient(**client_options(self._settings))
        await connect(self._client.start, self._client.close, self._settings)

    async def stop(self) -> None:
        if self._client is not None:
            await self._client.close()

    async def topics(self) -> list[str]:
        """Names of all topics that we may see."""
        return sorted(await self._client.list_topics())

    async def describe(self, names: list[str]) -> dict[str, TopicInfo]:
        """Those of ``names`` that exist. Asks for all topics: a broker may create one that is asked for by name."""
        found = {topic["topic"]: topic["partitions"] for topic in await self._client.describe_topics(None)}
        existing = [name for name in names if name in found]
        configs = await self._configs(existing)
        return {
            name: TopicInfo(
                name,
                len(found[name]),
                min((len(partition["replicas"]) for partition in found[name]), default=0),
                configs.get(name) if configs is not None else None,
            )
            for name in existing
        }

    async def _configs(self, names: list[str]) -> dict[str, dict[str, str]] | None:
        if not names:
            return {}
        resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
        try:
            responses = await self._client.describe_configs(resources)
        except IncompatibleBrokerVersion:
            return None
        configs = {}
        for response in responses:
            for code, _message, _kind, name, entries in response.resources:
                if code == 0:
                    configs[name] = {entry[0]: entry[1] for entry in entries}
        return configs

    async def create(self, specs: list[TopicSpec]) -> list[str]:
        """Create what does not exist; returns the names created.

        Raises:
            UserError: Kafka refuses; the line says which topic and why.
        """
        topics = [NewTopic(s.name, s.partitions, s.replication_factor, topic_configs=s.configs) for s in specs]
        try:
            response = await self._client.create_topics(topics)
        except (AttributeError, IncompatibleBrokerVersion):  # the embedded broker names no controller
            raise UserError("this broker does not create topics on request") from None
        except KafkaError as error:
            raise UserError(f"Kafka does not create topics: {error!r}") from None
        created = []
        for name, code, *rest in response.topic_errors:
            if code == 0:
                created.append(name)
            elif for_code(code) is not TopicAlreadyExistsError:
                reason = rest[0] if rest and rest[0] else for_code(code).__name__
                raise UserError(f"Kafka refuses to create {name}: {reason}")
        return created
