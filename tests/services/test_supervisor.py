"""Several workers on one port: real processes, real signals, the embedded broker."""

import asyncio
import json
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from protos.codec import CODECS
from protos.messages import BookUpdate, Channel, Notice, NoticeCode, Subscribe
from protos.records import encode_market
from protos.topics import Topics, partition_for
from services.config import Settings, environment_of
from services.errors import UserError
from services.kafka import Producer
from services.serving import bind
from services.stack import local_http
from services.streamer.supervisor import Worker, run_supervisor
from tests.services.test_streamer import BTC, snapshot
from tests.support.brokers import TestBroker

CODEC = CODECS["depthcast.v1.proto"]
PROGRAM = (sys.executable, "-m", "services", "streamer", "--workers", "2")


class Supervised:
    """`depthcast streamer --workers 2` as a process."""

    def __init__(self, settings: Settings, log: Path) -> None:
        self.settings, self._log = settings, log
        self.process: asyncio.subprocess.Process

    async def start(self) -> None:
        with self._log.open("wb") as out:
            self.process = await asyncio.create_subprocess_exec(
                *PROGRAM, env=environment_of(self.settings), stderr=out, start_new_session=True
            )
        await asyncio.gather(self.ready(0), self.ready(1))

    async def ready(self, index: int) -> None:
        async with asyncio.timeout(15), local_http() as http:
            while True:
                with suppress(httpx.TransportError):
                    answer = await http.get(f"http://127.0.0.1:{self.settings.admin_port + index}/readyz")
                    if answer.status_code == httpx.codes.OK:
                        return
                await asyncio.sleep(0.02)

    async def open(self, index: int) -> float:
        """Connections of one worker."""
        async with local_http() as http:
            text = (await http.get(f"http://127.0.0.1:{self.settings.admin_port + index}/metrics")).text
        return float(re.search(r"^depthcast_connections (.+)$", text, re.MULTILINE)[1])  # type: ignore[index]

    def said(self) -> list[dict[str, str]]:
        return [json.loads(line) for line in self._log.read_text().splitlines() if line.startswith("{")]

    def pids(self) -> list[tuple[str, int]]:
        """(worker, process id), in the order of their starts."""
        found = [re.fullmatch(r"(worker \d) is process (\d+)", line["event"]) for line in self.said()]
        return [(match[1], int(match[2])) for match in found if match]

    def alive(self) -> list[int]:
        return [pid for _, pid in self.pids() if Path(f"/proc/{pid}/cmdline").exists()]

    async def gone(self) -> None:
        """Wait until no worker is left."""
        async with asyncio.timeout(10):
            while self.alive():  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def client(self, stack: AsyncExitStack) -> ClientConnection:
        """A client that has the book."""
        url = f"ws://127.0.0.1:{self.settings.http_port}/v1/stream"
        ws = await stack.enter_async_context(connect(url, subprotocols=[Subprotocol(CODEC.name)]))
        await ws.send(CODEC.encode_command(Subscribe(1, BTC, Channel.BOOK)))
        async with asyncio.timeout(5):
            while not any(isinstance(message, BookUpdate) for message in CODEC.decode(await ws.recv(decode=False))):
                pass
        return ws

    async def clients(self, stack: AsyncExitStack) -> list[ClientConnection]:
        """As many as it takes that each worker has some."""
        clients = []
        while not clients or not (await self.open(0) and await self.open(1)):
            assert len(clients) < 40, "the kernel spreads them"
            clients.append(await self.client(stack))
        return clients


def free_ports(count: int) -> int:
    """The first of so many neighbouring ports that are free now."""
    for first in range(20_000 + os.getpid() % 8_000, 32_000, count):
        with suppress(UserError):
            for port in range(first, first + count):
                bind("127.0.0.1", port, "").close()
            return first
    raise AssertionError


@pytest.fixture
async def supervised(embedded: TestBroker, tmp_path: Path) -> AsyncIterator[Supervised]:
    await embedded.create_topics()
    first = free_ports(3)
    settings = embedded.settings.model_copy(update={"http_port": first, "admin_port": first + 1, "drain_ms": 500})
    producer = Producer(settings)
    await producer.start()
    key = BTC.encode()
    partition = partition_for(key, settings.partitions)
    await producer.deliver(Topics(settings.topic_prefix).market, partition, key, encode_market(snapshot(1, 1)))
    await producer.stop()
    one = Supervised(settings, tmp_path / "log")
    await one.start()
    yield one
    if one.process.returncode is None:
        one.process.kill()
        await one.process.wait()
    for pid in one.alive():
        os.kill(pid, signal.SIGKILL)


async def read_to_the_end(ws: ClientConnection) -> tuple[int | None, set[NoticeCode]]:
    notices = set()
    with suppress(ConnectionClosed):
        while True:
            messages = CODEC.decode(await ws.recv(decode=False))
            notices |= {message.code for message in messages if isinstance(message, Notice)}
    return ws.close_code, notices


async def test_a_dead_worker_is_replaced_while_the_others_serve_and_all_drain_at_sigterm(
    supervised: Supervised,
) -> None:
    async with AsyncExitStack() as stack:
        clients = await supervised.clients(stack)
        victim = dict(supervised.pids())["worker 1"]
        lost = await supervised.open(1)
        os.kill(victim, signal.SIGKILL)
        async with asyncio.timeout(5):
            while sum(ws.close_code is not None for ws in clients) < lost:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        for _ in range(30):  # none is refused, not while worker 1 is away and not while it catches up
            clients.append(await supervised.client(stack))
            await asyncio.sleep(0.05)
        await supervised.ready(1)
        assert sum(ws.close_code is not None for ws in clients) == lost
        assert [name for name, _ in supervised.pids()].count("worker 1") == 2
        assert "worker 1 ended with SIGKILL; restart in 0.5 s" in [line["event"] for line in supervised.said()]

        living = [ws for ws in clients if ws.close_code is None]
        supervised.process.send_signal(signal.SIGTERM)
        for ended in await asyncio.gather(*map(read_to_the_end, living)):
            assert ended == (1012, {NoticeCode.SHUTDOWN})
    async with asyncio.timeout(5):
        assert await supervised.process.wait() == 0
    assert supervised.alive() == []


async def test_a_second_sigterm_kills(supervised: Supervised) -> None:
    async with AsyncExitStack() as stack:
        await supervised.clients(stack)
        supervised.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.1)
        supervised.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(5):
            assert await supervised.process.wait() == -signal.SIGTERM
        await supervised.gone()


async def test_workers_drain_when_the_supervisor_is_killed(supervised: Supervised) -> None:
    async with AsyncExitStack() as stack:
        clients = await supervised.clients(stack)
        supervised.process.kill()
        for ended in await asyncio.gather(*map(read_to_the_end, clients)):
            assert ended == (1012, {NoticeCode.SHUTDOWN})
    await supervised.gone()


async def test_a_public_port_that_is_taken_is_said_before_any_worker_starts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} is taken; .* set DEPTHCAST_HTTP_PORT"):
            await run_supervisor(Settings(http_port=port, workers=2))


# ---- one worker, with other programs in its place


def worker(program: str, pause_min_s: float = 0.1) -> Worker:
    return Worker(1, Settings(admin_port=5_000, workers=2), (sys.executable, "-c", program), pause_min_s)


async def keeping(one: Worker, until: Callable[[], bool]) -> bool:
    """Keep it until then; returns whether it ended well."""
    stop = asyncio.Event()
    task = asyncio.create_task(one.keep(stop))
    async with asyncio.timeout(20):
        while not until():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        stop.set()
        return await task


async def test_a_crash_loop_is_one_clear_line_each_time_with_longer_pauses(caplog: pytest.LogCaptureFixture) -> None:
    await keeping(worker("raise SystemExit(3)"), lambda: "ended 4 times" in caplog.text)
    ends = [re.sub("after [0-9.]+ s", "after T s", line) for line in caplog.messages]
    assert ends[:4] == [
        "worker 1 ended with exit code 3; restart in 0.1 s",
        "worker 1 ended with exit code 3; restart in 0.2 s",
        "worker 1 is in a crash loop: ended 3 times in a row, now with exit code 3 after T s; restart in 0.4 s",
        "worker 1 is in a crash loop: ended 4 times in a row, now with exit code 3 after T s; restart in 0.8 s",
    ]


@pytest.mark.parametrize(
    ("program", "well"),
    [("sys.exit(0)", True), ("sys.exit(1)", False), ("os.kill(os.getpid(), signal.SIGKILL)", False)],
)
async def test_stop_ends_well_when_the_worker_does(
    program: str, well: bool, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    up = tmp_path / "up"
    program = (
        f"import os, signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: {program}); "
        f"open({str(up)!r}, 'w')\nwhile True: time.sleep(0.01)"
    )
    assert await keeping(worker(program), up.exists) is well
    assert ("worker 1 did not drain" in caplog.text) is not well


async def test_a_worker_has_the_settings_of_the_supervisor_and_the_next_admin_port(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    out = tmp_path / "environment"
    program = f"import json, os; json.dump(dict(os.environ), open({str(out)!r}, 'w'))"
    well = await keeping(worker(program, pause_min_s=5), lambda: "restart in 5.0 s" in caplog.text)
    assert not well, "nothing runs during the pause"
    environment = json.loads(out.read_text())
    assert environment["DEPTHCAST_ADMIN_PORT"] == "5001"
    assert environment["DEPTHCAST_WORKERS"] == "2"
    assert environment["PATH"] == os.environ["PATH"]
