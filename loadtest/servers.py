"""Servers to measure: depthcast as a black box with its broker, the references, and any that is already running."""

import asyncio
import json
import socket
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

import httpx

from loadtest.compiler import compile_c
from loadtest.errors import LoadTestError
from loadtest.instruments import names
from loadtest.processes import ROOT, Child, cores, python
from loadtest.target import Live, Source, Target, trusting

REFERENCES = ("c", "python", "python-books", "naive", "broadcast")
PREFIX = "depthcast-loadtest"
PARTITIONS = 8
_READY_S = 30.0
OPEN = {
    "DEPTHCAST_STALE_AFTER_MS": "3600000",
    "DEPTHCAST_LOG_LEVEL": "warning",
    "DEPTHCAST_CONNECTIONS_MAX": "1000000",
    "DEPTHCAST_CONNECTIONS_PER_ADDRESS_MAX": "1000000",
    "DEPTHCAST_HANDSHAKES_PER_S": "1000000",
}
"""Between two runs nobody publishes; that is no outage. All clients come from this machine; that is no attack."""


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(slots=True)
class Depthcast:
    """Our streamer, alone on its core, and a publisher with a broker on the generator's.

    Args:
        kafka: ``host:port`` of a real Kafka; "" takes the publisher's broker.
        environment: DEPTHCAST_* settings of the streamer.
        certificate: PEM files of a certificate and its key, to serve over TLS.
    """

    kafka: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    certificate: tuple[Path, Path] | None = None
    streamer: Child | None = None
    publisher: "Publisher | None" = None

    async def start(self, instruments: int) -> tuple[Target, Source]:
        """Start publisher and streamer, and wait until the streamer has all books."""
        logs = Path(tempfile.mkdtemp(prefix="depthcast-loadtest-"))
        port, admin_port, broker_port = free_port(), free_port(), free_port()
        prefix = f"{PREFIX}-{port}"
        bootstrap = self.kafka or f"127.0.0.1:{broker_port}"
        environment = {
            **OPEN,
            **self.environment,
            **self._tls_settings(),
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
        command = python("-m", "services", "streamer")
        self.streamer = Child("the streamer", command, cores()[0], logs / "streamer.log", environment)
        await self.streamer.start()
        known = names(instruments)
        target = Target("depthcast", "127.0.0.1", port, "/v1/stream", True, known, self.streamer.pid, admin_port)
        if self.certificate is not None:
            target.tls = trusting(self.certificate[0])
            target.tls.check_hostname = False  # it is our own process, whatever its certificate is called
        await ready(self.streamer, admin_port)
        await target.knows(instruments)
        return target, self.publisher

    def _tls_settings(self) -> dict[str, str]:
        if self.certificate is None:
            return {}
        certificate, key = (str(file.absolute()) for file in self.certificate)
        return {"DEPTHCAST_SSL_CERTFILE": certificate, "DEPTHCAST_SSL_KEYFILE": key}

    async def _create_topics(self, logs: Path, environment: Mapping[str, str]) -> None:
        command = python("-m", "services", "topics", "create")
        creation = Child("the creation of topics", command, cores()[1], logs / "topics.log", environment)
        await creation.start()
        await creation.ended()

    async def stop(self) -> None:
        for process in (self.streamer, self.publisher):
            if process is not None:
                await process.stop()


async def ready(child: Child, admin_port: int) -> None:
    """Wait until a depthcast process says that it is.

    Raises:
        LoadTestError: It ended, or was not in time.
    """
    until = time.monotonic() + _READY_S
    async with httpx.AsyncClient(timeout=2.0) as http:
        while time.monotonic() < until:
            if not child.running:
                raise LoadTestError(f"{child.name} ended: {child.last_words()}")
            try:
                answer = await http.get(f"http://127.0.0.1:{admin_port}/readyz")
                if answer.status_code == httpx.codes.OK:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.05)
    raise LoadTestError(f"{child.name} was not ready in {_READY_S:.0f} s")


@dataclass(slots=True)
class Reference:
    """One of `REFERENCES`, on the server's core, fed over TCP.

    Args:
        flush_interval_us: Of `c` and `python`, as often as the server they are compared with; the others do not wait.
    """

    name: str
    flush_interval_us: int = 1_000
    _child: Child | None = None
    _publisher: "Publisher | None" = None

    async def start(self, instruments: int) -> tuple[Target, Source]:
        """Compile it if need be, start it, and wait until it listens."""
        port, feed_port = free_port(), free_port()
        directory = Path(tempfile.mkdtemp(prefix="depthcast-loadtest-"))
        floor = [str(compile_floor(directory))] if self.name == "c" else None
        module, _, option = self.name.partition("-")
        program = floor or python("-m", f"loadtest.reference.{module}")
        command = [*program, str(port), str(feed_port), str(self.flush_interval_us), *filter(None, [option])]
        self._child = Child(f"reference {self.name}", command, cores()[0], directory / f"{self.name}.log", {})
        await self._child.start()
        await self._child.line()
        self._publisher = Publisher({"feed": feed_port}, instruments)
        await self._publisher.start()
        target = Target(self.name, "127.0.0.1", port, "/", False, names(instruments), self._child.pid)
        return target, self._publisher

    async def stop(self) -> None:
        for process in (self._publisher, self._child):
            if process is not None:
                await process.stop()


@dataclass(slots=True)
class Running:
    """A server that somebody else started: never stopped, measured by ``pid`` if it is given.

    Args:
        url: ``ws://host:port/path``, or ``wss://``.
        feed: Options of the publisher; {} takes the updates that the server has anyway.
        ca_file: Whom to trust, with ``wss://``.
    """

    url: str
    feed: dict[str, Any]
    pid: int | None = None
    admin_port: int | None = None
    ca_file: Path | None = None

    _publisher: "Publisher | None" = None

    async def start(self, instruments: int) -> tuple[Target, Source]:
        """Publish the snapshots, and wait until they have arrived."""
        parts = urlsplit(self.url)
        if parts.scheme not in ("ws", "wss") or not parts.hostname:
            raise LoadTestError(f"--url {self.url}: say ws://HOST:PORT/PATH")
        tls = trusting(self.ca_file) if parts.scheme == "wss" else None
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        where = (parts.hostname, _port(parts), path)
        target = Target(self.url, *where, "feed" not in self.feed, names(instruments), self.pid, self.admin_port, tls)
        if not self.feed:
            target.names = await target.listed(instruments)
            return target, Live()
        self._publisher = Publisher(self.feed, instruments)
        await self._publisher.start()
        if target.speaks_depthcast:
            await target.knows(instruments)
        return target, self._publisher

    async def stop(self) -> None:
        """Stop publishing; the server is not ours."""
        if self._publisher is not None:
            await self._publisher.stop()


def _port(parts: SplitResult) -> int:
    try:
        return parts.port or (443 if parts.scheme == "wss" else 80)
    except ValueError as error:
        raise LoadTestError(f"--url {parts.geturl()}: {error}") from None


def compile_floor(directory: Path) -> Path:
    """Build the C program of `loadtest/reference`.

    Raises:
        LoadTestError: It failed.
    """
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
        self._child = Child("the publisher", python("-m", "loadtest.publisher", options), cores()[1], log, {})

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
