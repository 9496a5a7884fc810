"""What the machine around a process can do to it: full disks, blocked logs, no more descriptors, a clock that jumps."""

import asyncio
import contextlib
import mmap
import os
import resource
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx
import pytest

from loadtest.compiler import compile_c
from protos.messages import NoticeCode
from services.stack import Child, free_port
from tests.support.invariants import STREAMS, Scene, check_latency, check_p99, p99_s, scene
from tests.support.kafka_server import RealBroker
from tests.support.needs import need_compiler
from tests.support.scenario import Wanted, Watcher, until

CLOCK = Path(__file__).parents[1] / "support" / "clock.c"
STEP_S = 300
SPARE = 12
"""Descriptors that the streamer may still open."""
CROWD = 60
pytestmark = [pytest.mark.faults, pytest.mark.kafka, pytest.mark.timeout(180)]


async def updates(it: Scene, count: int = 40) -> None:
    seen = len(it.client.views)
    await until(lambda: len(it.client.views) >= seen + count, "updates")


async def answers(port: int) -> bool:
    async with httpx.AsyncClient(timeout=3.0) as http:
        with contextlib.suppress(httpx.HTTPError):
            return (await http.get(f"http://127.0.0.1:{port}/livez")).status_code == httpx.codes.OK
    return False


READ_ONLY = """
mount --make-rprivate /
for point in $(awk '$4 ~ /^rw/ && $2 !~ "^/(proc|sys|dev)" { print $2 }' /proc/mounts); do
    mount -o remount,ro,bind "$point" || exit 1
done
if touch "$0"; then exit 1; fi
exec "$@"
"""
"""Of a mount namespace: nothing can be written, a file beside ours neither, in what then is executed."""


def read_only(probe: Path) -> list[str]:
    """What a command begins with, for which each file system is read-only; [] where that is not permitted."""
    for unshare in (["unshare", "-m"], ["unshare", "-r", "-m"]):  # as root; as anybody, where the kernel allows
        prefix = [*unshare, "sh", "-c", READ_ONLY, str(probe)]
        if (
            shutil.which("unshare")
            and subprocess.run([*prefix, "true"], check=False, capture_output=True).returncode == 0
        ):
            return prefix
    return []


@contextlib.asynccontextmanager
async def logging_to(it: Scene, command: str, stderr: int, *prefix: str) -> AsyncIterator[tuple[Child, Watcher]]:
    """One more process of the stack, whose log goes to a file descriptor of ours, with everything logged; and a client
    whose updates go through it."""
    stack, port = it.stack, free_port() if command == "streamer" else it.stack.settings.http_port
    changed = {"DEPTHCAST_LOG_LEVEL": "debug", "DEPTHCAST_HTTP_PORT": str(port)}
    child = Child(command, {**stack.environment, **changed}, free_port(), stack.directory / "unused.log")
    child.process = await asyncio.create_subprocess_exec(
        *(*prefix, sys.executable, "-m", "services", command),
        env={**os.environ, **child._environment},
        stdout=stderr,
        stderr=stderr,
    )
    wanted: list[Wanted] = [(name, *stream) for name in it.feed.instruments for stream in STREAMS[:2]]
    try:
        await child.ready()
        async with Watcher(f"ws://127.0.0.1:{port}/v1/stream", wanted) as client:
            await until(lambda: len(client.resumed) == len(wanted), "subscribed")
            yield child, client
    finally:
        await child.stop()


@pytest.mark.parametrize("command", ["ingest", "streamer"])
async def test_a_log_that_nobody_reads_stops_nothing(kafka_server: RealBroker, command: str) -> None:
    """A pipe holds 64 KiB; the writer of the next line would wait for ever."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(write_end, b"x" * 4096)
    os.set_blocking(write_end, True)
    async with scene(kafka_server.bootstrap) as it:
        it.feed.flow()
        await updates(it)
        began = time.monotonic()
        await updates(it, 120)
        await it.feed.stop()
        before = p99_s(began, time.monotonic(), it.client)
        if command == "ingest":
            assert await it.stack.ingest.stop() == 0
        async with logging_to(it, command, write_end) as (child, client):
            fault = time.monotonic()
            it.feed.flow()
            await until(lambda: len(client.views) > 120, "updates")
            assert await answers(child.admin_port)
            lost = (await child.metrics())["depthcast_log_lines_lost_total"]
            assert lost > 0, "I6: lines that could not be written are counted"
            check_p99(before, p99_s(fault, time.monotonic(), client))
            await it.feed.stop()
            await it.invariants.hold(client)
            assert await child.stop() == 0
    os.close(read_end)
    os.close(write_end)


def files_written(pid: int) -> list[str]:
    """Regular files that a process has open for writing (proc(5), fdinfo)."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        flags = int(Path(f"/proc/{pid}/fdinfo/{entry.name}").read_text().split("flags:")[1].split()[0], 8)
        if flags & os.O_ACCMODE != os.O_RDONLY and entry.is_file():
            found.append(str(entry.readlink()))
    return found


async def test_a_full_disk_stops_nothing(kafka_server: RealBroker, tmp_path: Path) -> None:
    """/dev/full fails each write with ENOSPC, and all file systems are read-only. Where nobody may make them so, it is
    still seen that no file is open for writing."""
    full = os.open("/dev/full", os.O_WRONLY)
    prefix = read_only(tmp_path / "probe")
    print(f"read-only: {bool(prefix)}")
    async with scene(kafka_server.bootstrap) as it:
        assert await it.stack.ingest.stop() == 0
        async with (
            logging_to(it, "ingest", full, *prefix) as (ingest, _),
            logging_to(it, "streamer", full, *prefix) as (streamer, client),
        ):
            it.feed.flow()
            await until(lambda: len(client.views) > 40, "updates")
            for child in (ingest, streamer):
                assert (await child.metrics())["depthcast_log_lines_lost_total"] > 0
                assert child.process is not None
                assert files_written(child.process.pid) == []
            await it.feed.stop()
            await it.invariants.hold(client)
            assert [await ingest.stop(), await streamer.stop()] == [0, 0]
    os.close(full)


def cpu_s(pid: int) -> float:
    """Seconds of a process on the processor (proc(5), stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def highest_descriptor(pid: int) -> int:
    return max(int(fd.name) for fd in Path(f"/proc/{pid}/fd").iterdir())


async def test_without_descriptors_it_serves_who_is_there_and_takes_others_later(kafka_server: RealBroker) -> None:
    async with scene(kafka_server.bootstrap) as it:
        assert it.stack.streamer.process is not None
        pid = it.stack.streamer.process.pid
        limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        used = highest_descriptor(pid)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + SPARE, limits[1]))
        address = (it.stack.settings.http_host, it.stack.settings.http_port)
        it.feed.flow()
        began = time.monotonic()
        await updates(it, 120)
        fault = time.monotonic()
        sockets = [socket.create_connection(address, timeout=5) for _ in range(CROWD)]
        await updates(it)
        started, before = time.monotonic(), cpu_s(pid)
        for sock in sockets:  # those that are not accepted wait in the kernel, or were sent away
            with contextlib.suppress(OSError):
                sock.sendall(b"GET /v1/instruments HTTP/1.1\r\nHost: x\r\n\r\n")
        await asyncio.sleep(1.5)
        answered = sum(has_answer(sock) for sock in sockets)
        assert 0 < answered < CROWD - 2 * SPARE, f"{answered} of {CROWD} were answered: nobody ran out of descriptors"
        await updates(it)
        assert cpu_s(pid) - before < 0.8 * (time.monotonic() - started), "it spins"
        check_latency(began, fault, time.monotonic(), it.client)
        for sock in sockets:
            sock.close()
        wanted: list[Wanted] = [(name, *STREAMS[0]) for name in it.feed.instruments]
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)

        async def back() -> bool:
            return await answers(it.stack.streamer.admin_port)

        await until(back, "it accepts again")
        async with Watcher(it.stack.url, wanted) as late:
            await until(lambda: len(late.resumed) == len(wanted), "one more client")
        await it.feed.stop()
        await it.invariants.hold()
        metrics = await it.stack.streamer.metrics()
    assert metrics["process_open_fds"] < metrics["process_max_fds"]
    assert it.client.disconnects == 0
    assert it.client.faults == []


def has_answer(sock: socket.socket) -> bool:
    sock.setblocking(False)
    with contextlib.suppress(OSError):
        return sock.recv(64).startswith(b"HTTP/1.1 200")
    return False


@pytest.fixture(scope="module")
def clock_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need_compiler()
    library = tmp_path_factory.mktemp("clock") / "clock.so"
    compile_c(CLOCK, library, "-shared", "-fPIC", "-ldl")
    return library


async def test_the_wall_clock_jumps_by_five_minutes_and_back(
    kafka_server: RealBroker, clock_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For ingest and streamer: their CLOCK_REALTIME is shifted while they run."""
    shift = tmp_path / "shift"
    shift.write_bytes(bytes(8))
    with monkeypatch.context() as patch:  # what the children inherit; the clock of the test and of Kafka stay
        patch.setenv("LD_PRELOAD", str(clock_library))
        patch.setenv("CLOCK_SHIFT_FILE", str(shift))
        started = scene(kafka_server.bootstrap, stale_after_ms=4_000, heartbeat_interval_ms=1_000)
        it = await started.__aenter__()
    try:
        with shift.open("r+b") as file, mmap.mmap(file.fileno(), 8) as shared:
            it.feed.flow()
            await updates(it)
            began = time.monotonic()
            await updates(it, 60)
            fault = time.monotonic()
            for step_s in (STEP_S, -STEP_S, 0):
                shared[:8] = struct.pack("q", step_s)
                digests = it.client.digests
                await updates(it, 60)
                await until(lambda: it.client.digests > digests + 3, "digests")  # noqa: B023
                await until(lambda: shows(it, step_s), "its clock was shifted")  # noqa: B023
            check_latency(began, fault, time.monotonic(), it.client)
            await it.feed.stop()
            await it.invariants.hold()
            metrics = await it.stack.streamer.metrics()
    finally:
        await started.__aexit__(None, None, None)
    assert it.client.disconnects == 0, "no heartbeat was thought to be missing"
    assert it.client.faults == []
    assert it.client.notices[NoticeCode.STALE] == 0
    assert metrics["depthcast_connections"] == 1


async def shows(it: Scene, step_s: float) -> bool:
    """Not at once: the answers carry a date that is renewed once a second."""
    return abs(await shown_shift_s(it) - step_s) < STEP_S / 2


async def shown_shift_s(it: Scene) -> float:
    """The time in the streamer's HTTP answers, against ours."""
    async with httpx.AsyncClient(timeout=5.0) as http:
        date = (await http.get(f"{it.stack.http_url}/v1/instruments")).headers["date"]
    return (parsedate_to_datetime(date) - datetime.now(UTC)).total_seconds()
