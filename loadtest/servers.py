"""Servers to measure: depthcast as a black box with its broker, the references, and any that is already running."""

import asyncio
import json
import socket
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import httpx

from loadtest.errors import LoadTestError
from loadtest.processes import ROOT, Child, Usage, cores, python, usage
from loadtest.scanner import compile_c, has_compiler

REFERENCES = ("c", "naive", "broadcast")
PREFIX = "depthcast-loadtest"
PARTITIONS = 8
_READY_S = 30.0
_UNSEEN_S = 1.0
"""For a server without metrics to read the snapshots."""
_QUIET = {"DEPTHCAST_STALE_AFTER_MS": "3600000", "DEPTHCAST_LOG_LEVEL": "warning"}
"""Between two runs nobody publishes; that is no outage."""


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(slots=True)
class Target:
    """Where clients connect, and what we may look at."""

    name: str
    host: str
    port: int
    path: str
    speaks_depthcast: bool
    """Subscriptions by command; otherwise by the path of the request, as in ``/?streams=1,2``."""
    pid: int | None = None
    admin_port: int | None = None

    def usage(self) -> Usage:
        return usage(self.pid) if self.pid else Usage(0.0, 0)

    async def metrics(self) -> dict[str, float]:
        """Samples by name with labels, as Prometheus reads them; {} when there is no admin port."""
        if self.admin_port is None:
            return {}
        async with httpx.AsyncClient(timeout=10.0) as http:
            text = (await http.get(f"http://127.0.0.1:{self.admin_port}/metrics")).text
        samples = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}

    async def knows(self, instruments: int) -> None:
        """Wait until it has the snapshots: a client that is too early would be told there are none."""
        for _ in range(200):
            if self.admin_port is None:
                await asyncio.sleep(_UNSEEN_S)
                return
            if (await self.metrics()).get('depthcast_books{state="synced"}', 0) >= instruments:
                return
            await asyncio.sleep(0.05)
        raise LoadTestError(f"{self.name} did not take {instruments} instruments from Kafka in 10 s")


class Server(Protocol):
    """Something to measure; started and stopped by the load test, and with it its publisher."""

    async def start(self, instruments: int) -> "tuple[Target, Publisher]": ...

    async def stop(self) -> None: ...


@dataclass(slots=True)
class Depthcast:
    """Our streamer, alone on its core, and a publisher with a broker on the generator's.

    Args:
        kafka: ``host:port`` of a real Kafka; "" takes the publisher's broker.
        environment: DEPTHCAST_* settings of the streamer.
    """

    kafka: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    streamer: Child | None = None
    publisher: "Publisher | None" = None

    async def start(self, instruments: int) -> "tuple[Target, Publisher]":
        """Start publisher and streamer, and wait until the streamer has all books."""
        logs = Path(tempfile.mkdtemp(prefix="depthcast-loadtest-"))
        port, admin_port, broker_port = free_port(), free_port(), free_port()
        prefix = f"{PREFIX}-{port}"
        bootstrap = self.kafka or f"127.0.0.1:{broker_port}"
        environment = {
            **_QUIET,
            **self.environment,
            "DEPTHCAST_TOPIC_PREFIX": prefix,
            "DEPTHCAST_PARTITIONS": str(PARTITIONS),
            "DEPTHCAST_KAFKA_BOOTSTRAP": bootstrap,
            "DEPTHCAST_HTTP_PORT": str(port),
            "DEPTHCAST_ADMIN_PORT": str(admin_port),
        }
        feed: dict[str, Any] = {"kafka": bootstrap, "topic": f"{prefix}.market"}
        if self.kafka:
            await self._create_topics(logs, environment)
        else:
            topics = [f"{prefix}.{name}" for name in ("ticks", "market", "snapshots", "dlq")]
            feed |= {"broker": broker_port, "topics": topics, "partitions": PARTITIONS}
        self.publisher = Publisher(feed, instruments)
        await self.publisher.start()
        self.streamer = Child(python("-m", "services", "streamer"), cores()[0], logs / "streamer.log", environment)
        await self.streamer.start()
        target = Target("depthcast", "127.0.0.1", port, "/v1/stream", True, self.streamer.pid, admin_port)
        await self._ready(target)
        await target.knows(instruments)
        return target, self.publisher

    async def _create_topics(self, logs: Path, environment: Mapping[str, str]) -> None:
        creation = Child(python("-m", "services", "topics", "create"), cores()[1], logs / "topics.log", environment)
        await creation.start()
        await creation.ended()

    async def _ready(self, target: Target) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + _READY_S
        async with httpx.AsyncClient(timeout=2.0) as http:
            while loop.time() < until:
                if self.streamer is not None and not self.streamer.running:
                    raise LoadTestError(f"the streamer ended: {self.streamer.last_words()}")
                try:
                    answer = await http.get(f"http://127.0.0.1:{target.admin_port}/readyz")
                    if answer.status_code == httpx.codes.OK:
                        return
                except httpx.TransportError:
                    pass
                await asyncio.sleep(0.05)
        raise LoadTestError(f"the streamer was not ready in {_READY_S:.0f} s")

    async def stop(self) -> None:
        for process in (self.streamer, self.publisher):
            if process is not None:
                await process.stop()


@dataclass(slots=True)
class Reference:
    """One of `REFERENCES`, on the server's core, fed over TCP.

    Args:
        flush_interval_us: Of the C program: as often as the server it is compared with.
    """

    name: str
    flush_interval_us: int = 1_000
    _child: Child | None = None
    _publisher: "Publisher | None" = None

    async def start(self, instruments: int) -> "tuple[Target, Publisher]":
        """Compile it if need be, start it, and wait until it listens."""
        port, feed_port = free_port(), free_port()
        directory = Path(tempfile.mkdtemp(prefix="depthcast-loadtest-"))
        if self.name == "c":
            command = [str(compile_floor(directory)), str(port), str(feed_port), str(self.flush_interval_us)]
        else:
            command = python("-m", f"loadtest.reference.{self.name}", str(port), str(feed_port))
        self._child = Child(command, cores()[0], directory / f"{self.name}.log", {})
        await self._child.start()
        await self._child.line()
        self._publisher = Publisher({"feed": feed_port}, instruments)
        await self._publisher.start()
        return Target(self.name, "127.0.0.1", port, "/", False, self._child.pid), self._publisher

    async def stop(self) -> None:
        for process in (self._publisher, self._child):
            if process is not None:
                await process.stop()


@dataclass(slots=True)
class Running:
    """A server that somebody else started: never stopped, measured by ``pid`` if it is given.

    Args:
        url: ``ws://host:port/path``.
        feed: Options of the publisher.
    """

    url: str
    feed: dict[str, Any]
    pid: int | None = None
    admin_port: int | None = None

    _publisher: "Publisher | None" = None

    async def start(self, instruments: int) -> "tuple[Target, Publisher]":
        """Publish the snapshots, and wait until they have arrived."""
        parts = urlsplit(self.url)
        if parts.scheme != "ws" or not parts.hostname:
            raise LoadTestError(f"--url {self.url}: say ws://HOST:PORT/PATH")
        address = (parts.hostname, parts.port or 80, parts.path or "/")
        target = Target(self.url, *address, "kafka" in self.feed, self.pid, self.admin_port)
        self._publisher = Publisher(self.feed, instruments)
        await self._publisher.start()
        if target.speaks_depthcast:
            await target.knows(instruments)
        return target, self._publisher

    async def stop(self) -> None:
        """Stop publishing; the server is not ours."""
        if self._publisher is not None:
            await self._publisher.stop()


def compile_floor(directory: Path) -> Path:
    """Build the C program of `loadtest/reference`.

    Raises:
        LoadTestError: There is no compiler, or it failed.
    """
    if not has_compiler():
        raise LoadTestError("--reference c needs a C compiler named cc; install one, or leave the reference out")
    program = directory / "floor"
    compile_c(ROOT / "loadtest" / "reference" / "floor.c", program)
    return program


class Publisher:
    """The publisher's process, told what to do.

    Args:
        feed: Options of `loadtest.publisher`: where it writes.
        instruments: How many it makes up.
    """

    def __init__(self, feed: dict[str, Any], instruments: int) -> None:
        options = json.dumps({**feed, "instruments": instruments})
        log = Path(tempfile.mkdtemp(prefix="depthcast-loadtest-")) / "publisher.log"
        self._child = Child(python("-m", "loadtest.publisher", options), cores()[1], log, {})

    async def start(self) -> None:
        """Returns when all snapshots are written."""
        await self._child.start()
        await self._child.line()

    async def run(self, rate: float, seconds: float) -> dict[str, Any]:
        """Publish; returns the fields of `loadtest.publisher.Run`."""
        self._child.tell(json.dumps({"rate": rate, "seconds": seconds}))
        answer: dict[str, Any] = json.loads(await self._child.line(seconds + 60))
        return answer

    async def stop(self) -> None:
        await self._child.stop()
