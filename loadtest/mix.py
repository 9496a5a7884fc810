"""The real mix: simulated books all the way from ticks through Kafka, ingest and Kafka again to the clients.

The streamer has its core, the clients have theirs, and Kafka, ingest and simulator take what is free of both. The
simulator notes when each tick was due as the time of its receipt, so a latency covers the whole path. Books come at
most ten times a second, by the subscriptions' wish, so their latencies are told apart from those of trades and quotes.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from loadtest.errors import LoadTestError
from loadtest.processes import Child, child_running, cores, pin, python
from loadtest.servers import OPEN, PARTITIONS, free_port, ready
from loadtest.swarm import Subscription
from loadtest.target import Live, Source, Target
from protos.messages import Channel

MIX = (Subscription(Channel.BOOK, 10, 100), Subscription(Channel.TRADES), Subscription(Channel.BBO))
"""What a trading front end takes of an instrument."""
_ALL_KNOWN_S = 30.0
_CAUGHT_UP_S = 2.0
"""For the first snapshots, which come as fast as Kafka takes them, to be through."""
_LINGER = {"DEPTHCAST_KAFKA_LINGER_MS": "2"}
"""Without it each tick is a request of its own, and they are all that a Kafka on the same machine is busy with."""


@dataclass(slots=True)
class WholePath:
    """Simulator, ingest and streamer on a real Kafka, or `depthcast dev`, which has a small one of its own.

    Args:
        rate: Ticks per second, of all instruments together.
        kafka: ``host:port`` of a real Kafka; "" takes the embedded broker.
    """

    rate: float
    kafka: str = ""
    _children: list[Child] = field(default_factory=list)
    _logs: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="depthcast-loadtest-")))

    async def start(self, instruments: int) -> tuple[Target, Source]:
        """Start all, and wait until all instruments have come through."""
        port, admin_port = free_port(), free_port()
        environment = {
            **OPEN,
            **_LINGER,
            "DEPTHCAST_HTTP_PORT": str(port),
            "DEPTHCAST_ADMIN_PORT": str(admin_port),
            "DEPTHCAST_TOPIC_PREFIX": f"depthcast-loadtest-{port}",
            "DEPTHCAST_INGEST_GROUP": f"depthcast-loadtest-{port}",
            "DEPTHCAST_PARTITIONS": str(PARTITIONS),
        }
        simulated = ("--symbols", str(instruments), "--rate", str(self.rate))
        streamer = await (self._on_kafka if self.kafka else self._alone)(environment, admin_port, simulated)
        pin(streamer, cores()[0])
        target = Target("depthcast", "127.0.0.1", port, "/v1/stream", True, (), streamer, admin_port)
        target.names = await target.listed(instruments, _ALL_KNOWN_S)
        if len(target.names) < instruments:
            raise LoadTestError(f"only {len(target.names)} of {instruments} instruments came through; see {self._logs}")
        await Live().run(self.rate, _CAUGHT_UP_S)
        return target, Live()

    async def _alone(self, environment: Mapping[str, str], admin_port: int, simulated: tuple[str, ...]) -> int:
        """Start `depthcast dev`; returns the process id of its streamer."""
        dev = await self._spawn(environment, "dev", *simulated)
        await ready(dev, admin_port)
        streamer = child_running(dev.pid, "services", "streamer")
        if not streamer:
            raise LoadTestError(f"depthcast dev has no streamer; see {self._logs}")
        return streamer

    async def _on_kafka(self, environment: Mapping[str, str], admin_port: int, simulated: tuple[str, ...]) -> int:
        """Start each process; returns the streamer's id."""
        environment = {**environment, "DEPTHCAST_KAFKA_BOOTSTRAP": self.kafka}
        await (await self._spawn(environment, "topics", "create")).ended()
        ingest_port = free_port()
        ingest = await self._spawn({**environment, "DEPTHCAST_ADMIN_PORT": str(ingest_port)}, "ingest")
        streamer = await self._spawn(environment, "streamer")
        await ready(ingest, ingest_port)
        await ready(streamer, admin_port)
        await self._spawn({**environment, "DEPTHCAST_ADMIN_PORT": str(free_port())}, "feed", "simulate", *simulated)
        return streamer.pid

    async def _spawn(self, environment: Mapping[str, str], *command: str) -> Child:
        both = cores()[0] | cores()[1]
        log = self._logs / f"{command[0]}.log"
        child = Child(f"depthcast {command[0]}", python("-m", "services", *command), both, log, environment)
        self._children.append(child)
        await child.start()
        return child

    async def stop(self) -> None:
        for child in reversed(self._children):
            await child.stop()
