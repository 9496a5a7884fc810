"""The broker that a test runs on, embedded or real, behind one face."""

import itertools
import os
from dataclasses import dataclass, field
from typing import Literal

from services.broker import EmbeddedBroker
from services.config import Settings
from services.kafka import Admin, TopicSpec
from services.topics import create_topics, topic_specs
from tests.support.kafka_server import RealBroker

_numbers = itertools.count(1)


@dataclass
class TestBroker:
    """``settings`` point to it. Topics and groups of different tests have different names."""

    __test__ = False
    kind: Literal["embedded", "kafka"]
    server: EmbeddedBroker | RealBroker
    settings: Settings = field(init=False)

    def __post_init__(self) -> None:
        embedded = self.kind == "embedded"
        self.settings = Settings(
            kafka_bootstrap=self.server.bootstrap,
            kafka_fetch_max_wait_ms=5 if embedded else 100,
            # The embedded broker waits for a rebalance all but a second of this; a real one at most until then.
            kafka_session_timeout_ms=1_500,
            topic_prefix=self.name("test"),
            partitions=2,
        )

    @property
    def bootstrap(self) -> str:
        return self.settings.kafka_bootstrap

    @staticmethod
    def name(what: str) -> str:
        """A name that no other test has used."""
        return f"{what}-{os.getpid()}-{next(_numbers)}"

    async def topic(self, partitions: int = 1, **configs: str) -> str:
        """Create a topic. Configs, with ``_`` for ``.``, have an effect on the real Kafka only."""
        name = self.name("topic")
        await self.create([TopicSpec(name, partitions, 1, {key.replace("_", "."): configs[key] for key in configs})])
        return name

    async def create(self, specs: list[TopicSpec]) -> None:
        if isinstance(self.server, EmbeddedBroker):
            for spec in specs:
                self.server.create_topic(spec.name, spec.partitions)
            return
        admin = Admin(self.settings)
        await admin.start()
        try:
            await admin.create(specs)
        finally:
            await admin.stop()

    async def create_topics(self) -> None:
        """Create the four topics of ``settings``."""
        if isinstance(self.server, EmbeddedBroker):
            await self.create(topic_specs(self.settings))
        await create_topics(self.settings)
