"""What a load test knows of the server that it measures: where to connect, and what may be looked at."""

import asyncio
import json
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx

from loadtest.errors import LoadTestError
from loadtest.instruments import OURS
from loadtest.processes import Usage, usage

_UNSEEN_S = 1.0
"""For a server without metrics to read the snapshots."""


@dataclass(slots=True)
class Target:
    """Where clients connect, and what we may look at."""

    name: str
    host: str
    port: int
    path: str
    speaks_depthcast: bool
    """Subscriptions by command; otherwise by the path of the request, as in ``/?streams=1,2``."""
    names: Sequence[str]
    """The instruments to subscribe to."""
    pid: int | None = None
    admin_port: int | None = None
    tls: ssl.SSLContext | None = None

    def usage(self) -> Usage:
        return usage(self.pid) if self.pid else Usage(0.0, 0)

    async def metrics(self) -> dict[str, float]:
        """Samples by name with labels, as Prometheus reads them; {} when there is no admin port.

        Raises:
            LoadTestError: Nobody answers there.
        """
        if self.admin_port is None:
            return {}
        text = await _get(f"http://127.0.0.1:{self.admin_port}/metrics", f"{self.name} does not tell its metrics")
        samples = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}

    async def listed(self, instruments: int, wait_s: float = 0.0) -> list[str]:
        """The first so many instruments that it serves; all, when it has fewer after ``wait_s``.

        Raises:
            LoadTestError: It has none, or does not answer.
        """
        scheme = "https" if self.tls else "http"
        url, until = f"{scheme}://{self.host}:{self.port}/v1/instruments", time.monotonic() + wait_s
        while True:
            answer = json.loads(await _get(url, f"{self.name} does not list its instruments", self.tls))
            found = [str(item["instrument"]) for item in answer["instruments"]]
            found = [name for name in found if not name.startswith(OURS)]  # of an earlier test: nobody feeds them now
            if len(found) >= instruments or (found and time.monotonic() > until):
                return found[:instruments]
            if time.monotonic() > until:
                raise LoadTestError(f"{self.name} serves no instrument; feed it, or give --kafka")
            await asyncio.sleep(0.1)

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


async def _get(url: str, failed: str, tls: ssl.SSLContext | None = None) -> str:
    try:
        async with httpx.AsyncClient(timeout=10.0, verify=tls or True) as http:
            return (await http.get(url)).raise_for_status().text
    except httpx.HTTPError as error:
        raise LoadTestError(f"{failed} at {url}: {str(error) or type(error).__name__}") from None


class Source(Protocol):
    """Where a server's updates come from during a test."""

    async def run(self, rate: float, seconds: float) -> dict[str, Any]:
        """Let them come for so long; returns the fields of `loadtest.publisher.Run`.

        ``published`` is None when nobody counted them.
        """
        ...


class Server(Protocol):
    """Something to measure; started and stopped by the load test, and with it the source of its updates."""

    async def start(self, instruments: int) -> tuple[Target, Source]: ...

    async def stop(self) -> None: ...


def trusting(ca_file: Path | None) -> ssl.SSLContext:
    """Trust the authorities in a PEM file; the system's without one.

    Raises:
        LoadTestError: The file is not there, or is none.
    """
    try:
        tls = ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise LoadTestError(f"{ca_file}: {error.strerror or error}; give a PEM file") from None
    tls.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the server's own certificate may be given, too
    return tls


class Live:
    """The updates that a server has anyway: nobody can say how many there were."""

    async def run(self, rate: float, seconds: float) -> dict[str, Any]:  # noqa: ARG002
        started_ns = time.time_ns()
        await asyncio.sleep(seconds)
        late = {"late_p99_ms": 0.0, "cpu_percent": 0.0, "scheduling": ""}
        return {"published": None, "started_ns": started_ns, "seconds": seconds, **late}
