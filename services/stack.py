"""A whole depthcast on this machine: broker, ingest and streamer as child processes.

For `depthcast dev`, `depthcast verify`, the tests and the benchmarks. The embedded broker lives in this process; with
``kafka`` a real one is used, under the settings' topic prefix.
"""

import asyncio
import os
import shlex
import signal
import socket
import ssl
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
from prometheus_client.parser import text_string_to_metric_families

from protos.topics import Topics
from services.broker import EmbeddedBroker
from services.config import Settings, load_settings
from services.errors import UserError
from services.signals import end_with_parent
from services.topics import create_topics

_STOP_S = 10.0
_EMBEDDED = {"kafka_fetch_max_wait_ms": 5, "kafka_linger_ms": 10}
"""The embedded broker answers an empty fetch only when its time ends, and any fetch with one batch per partition: small
batches would be read more slowly than they are written."""


_NO_AUTHORITIES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def local_http(timeout_s: float = 5.0) -> httpx.AsyncClient:
    """A client for processes on this machine: without TLS and proxies. Loading the system's authorities, as httpx does
    for each client, takes 30 ms of CPU, and the metrics of a replay are asked for again and again."""
    return httpx.AsyncClient(timeout=timeout_s, verify=_NO_AUTHORITIES, trust_env=False)


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Child:
    """One depthcast process: its log file, its admin port, and what it says of itself there."""

    def __init__(self, command: str, environment: Mapping[str, str], admin_port: int, log: Path) -> None:
        self.command, self.admin_port, self.log = command, admin_port, log
        self._environment = {**os.environ, **environment, "DEPTHCAST_ADMIN_PORT": str(admin_port)}
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        with self.log.open("ab") as out:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "services", *shlex.split(self.command)),
                env=self._environment,
                stdout=out,
                stderr=out,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )

    async def ready(self, timeout_s: float = 30.0) -> None:
        """Wait until ``/readyz`` says yes.

        Raises:
            UserError: The process ended or was not ready in time; the last line of its log says why.
        """
        url = f"http://127.0.0.1:{self.admin_port}/readyz"
        deadline = asyncio.get_running_loop().time() + timeout_s
        async with local_http(2.0) as http:
            while asyncio.get_running_loop().time() < deadline:
                if self.ended:
                    raise UserError(self.ended)
                with suppress(httpx.TransportError):
                    if (await http.get(url)).status_code == httpx.codes.OK:
                        return
                await asyncio.sleep(0.02)
        raise UserError(f"{self.command} was not ready in {timeout_s:.0f} s; see {self.log}")

    def _last_words(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1].removeprefix("depthcast: ") if lines else f"no word in {self.log}"

    @property
    def ended(self) -> str:
        """Why it is no longer there; "" while it runs."""
        running = self.process is not None and self.process.returncode is None
        return "" if running else f"{self.command} ended: {self._last_words()}"

    async def metrics(self) -> dict[str, float]:
        """Samples of ``/metrics`` by name, labels summed up."""
        totals: dict[str, float] = {}
        async with local_http() as http:
            text = (await http.get(f"http://127.0.0.1:{self.admin_port}/metrics")).text
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
                for key, value in sample.labels.items():
                    name = f"{sample.name}{{{key}={value}}}"
                    totals[name] = totals.get(name, 0.0) + sample.value
        return totals

    async def stop(self, sig: signal.Signals = signal.SIGTERM) -> int:
        """Send ``sig`` and wait; a process that does not end in 10 s is killed. Returns its exit code."""
        process = self.process
        if process is None:
            return 0
        if process.returncode is None:
            process.send_signal(sig)
            try:
                await asyncio.wait_for(process.wait(), _STOP_S)
            except TimeoutError:
                process.kill()
        return await process.wait()


class Stack:
    """Broker, topics, ingest and streamer; an async context manager that stops what it started.

    Args:
        settings: Where ports are 0, free ones are taken. None: from the environment, with free ports.
        kafka: ``host:port`` of a real Kafka; None: the embedded broker.
        environment: Further DEPTHCAST_* settings for the child processes.
    """

    def __init__(
        self, settings: Settings | None = None, kafka: str | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        base = settings or load_settings()
        self.broker = EmbeddedBroker() if kafka is None else None
        self._kafka = kafka
        self._base = base
        self.environment = dict(environment or {})
        self.directory = Path(tempfile.mkdtemp(prefix="depthcast-"))
        self.children: list[Child] = []
        self.settings = base
        self.ingest: Child
        self.streamer: Child

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def _start(self) -> None:
        bootstrap = self._kafka or self._base.kafka_bootstrap
        if self.broker is not None:
            bootstrap = await asyncio.to_thread(self.broker.start)
        self.settings = self._base.model_copy(
            update={
                "kafka_bootstrap": bootstrap,
                **(_EMBEDDED if self.broker else {}),
                "http_port": self._base.http_port or free_port(),
            }
        )
        self.environment.update(
            DEPTHCAST_KAFKA_BOOTSTRAP=bootstrap,
            DEPTHCAST_KAFKA_FETCH_MAX_WAIT_MS=str(self.settings.kafka_fetch_max_wait_ms),
            DEPTHCAST_KAFKA_LINGER_MS=str(self.settings.kafka_linger_ms),
            DEPTHCAST_TOPIC_PREFIX=self.settings.topic_prefix,
            DEPTHCAST_INGEST_GROUP=self.settings.ingest_group,
            DEPTHCAST_PARTITIONS=str(self.settings.partitions),
            DEPTHCAST_HTTP_HOST=self.settings.http_host,
            DEPTHCAST_HTTP_PORT=str(self.settings.http_port),
        )
        await self._create_topics()
        self.ingest = await self.spawn("ingest", free_port())
        self.streamer = await self.spawn("streamer", self._base.admin_port or free_port())
        await asyncio.gather(self.ingest.ready(), self.streamer.ready())

    async def _create_topics(self) -> None:
        if self.broker is None:
            await create_topics(self.settings)
            return
        topics = Topics(self.settings.topic_prefix)
        for name in (topics.ticks, topics.market, topics.snapshots, topics.dlq):
            self.broker.create_topic(name, self.settings.partitions)

    async def spawn(self, command: str, admin_port: int, environment: Mapping[str, str] | None = None) -> Child:
        """Start one more process of the stack, for example a second streamer."""
        log = self.directory / f"{command.split(maxsplit=1)[0]}-{len(self.children)}.log"
        child = Child(command, {**self.environment, **(environment or {})}, admin_port, log)
        self.children.append(child)
        await child.start()
        return child

    @property
    def url(self) -> str:
        return f"ws://{self.settings.http_host}:{self.settings.http_port}/v1/stream"

    @property
    def http_url(self) -> str:
        return f"http://{self.settings.http_host}:{self.settings.http_port}"

    async def stop(self) -> None:
        await asyncio.gather(*(child.stop() for child in reversed(self.children)))
        if self.broker is not None:
            await asyncio.to_thread(self.broker.stop)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
