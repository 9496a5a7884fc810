"""The real mix: simulated books all the way from ticks through Kafka, ingest and Kafka again to the clients.

`depthcast dev` runs the whole path; its streamer is moved to the server's core, all else shares the generator's. The
simulator notes when each tick was due as the time of its receipt, so a latency covers the whole path. Books come at
most ten times a second, by the subscriptions' wish, so their latencies are told apart from those of trades and quotes.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from loadtest.errors import LoadTestError
from loadtest.processes import Child, child_running, cores, pin, python
from loadtest.servers import OPEN, free_port, ready
from loadtest.swarm import Subscription
from loadtest.target import Live, Source, Target
from protos.messages import Channel

MIX = (Subscription(Channel.BOOK, 10, 100), Subscription(Channel.TRADES), Subscription(Channel.BBO))
"""What a trading front end takes of an instrument."""
_ALL_KNOWN_S = 30.0
_CAUGHT_UP_S = 2.0
"""For the first snapshots, which come as fast as Kafka takes them, to be through."""


@dataclass(slots=True)
class WholePath:
    """`depthcast dev` with simulated instruments.

    Args:
        rate: Ticks per second, of all instruments together.
        kafka: ``host:port`` of a real Kafka; "" takes the embedded broker.
    """

    rate: float
    kafka: str = ""
    _child: Child | None = None

    async def start(self, instruments: int) -> tuple[Target, Source]:
        """Start it, and wait until all instruments have come through."""
        port, admin_port = free_port(), free_port()
        log = Path(tempfile.mkdtemp(prefix="depthcast-loadtest-")) / "dev.log"
        name = f"depthcast-loadtest-{port}"
        environment = {
            **OPEN,
            "DEPTHCAST_HTTP_PORT": str(port),
            "DEPTHCAST_ADMIN_PORT": str(admin_port),
            "DEPTHCAST_TOPIC_PREFIX": name,
            "DEPTHCAST_INGEST_GROUP": name,
        }
        options = ("--symbols", str(instruments), "--rate", str(self.rate), *self._kafka_options())
        self._child = Child("depthcast dev", python("-m", "services", "dev", *options), cores()[1], log, environment)
        await self._child.start()
        await ready(self._child, admin_port)
        streamer = child_running(self._child.pid, "services", "streamer")
        if not streamer:
            raise LoadTestError(f"depthcast dev has no streamer; see {log}")
        pin(streamer, cores()[0])
        target = Target("depthcast", "127.0.0.1", port, "/v1/stream", True, (), streamer, admin_port)
        target.names = await target.listed(instruments, _ALL_KNOWN_S)
        if len(target.names) < instruments:
            raise LoadTestError(f"only {len(target.names)} of {instruments} instruments came through; see {log}")
        await Live().run(self.rate, _CAUGHT_UP_S)
        return target, Live()

    def _kafka_options(self) -> tuple[str, ...]:
        return ("--kafka", self.kafka) if self.kafka else ()

    async def stop(self) -> None:
        if self._child is not None:
            await self._child.stop()
