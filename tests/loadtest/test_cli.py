"""The commands as a user runs them, against a server that already runs. No failure hangs or shows a traceback."""

import asyncio
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import trustme
from websockets.asyncio.server import ServerConnection, serve

from loadtest import swarm as swarm_module
from loadtest.connect import measure_connections
from loadtest.errors import LoadTestError
from loadtest.fanout import Load, chosen, connected, measure
from loadtest.servers import Depthcast, Running
from loadtest.swarm import Swarm
from services.stack import Stack, free_port

GIVE_UP_S = 100
SMALL = ("--clients", "20", "--instruments", "8", "--per-client", "4")
RATED = (*SMALL, "--rate", "200", "--seconds", "1")
FANOUT_KEYS = {
    *("deliveries_per_s", "expected_per_s", "lost", "p50_ms", "p99_ms", "p999_ms", "max_ms", "worst_client_p99_ms"),
    *("server_cpu_s_per_million", "server_rss_mib", "frames_per_send"),
}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "services", "loadtest", *arguments]


async def run(*arguments: str) -> tuple[int, str, str]:
    """(exit code, output, errors)"""
    process = await asyncio.create_subprocess_exec(
        *command(*arguments), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(GIVE_UP_S):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack() -> AsyncIterator[Stack]:
    async with Stack() as running:
        await running.spawn("feed simulate --symbols 8 --rate 400", free_port())
        yield running


def there(stack: Stack, *, publish: bool) -> tuple[str, ...]:
    """Options that point a command at the running server."""
    assert stack.streamer.process is not None
    options = ("--url", stack.url, "--pid", str(stack.streamer.process.pid))
    options += ("--admin-port", str(stack.streamer.admin_port))
    if publish:
        options += ("--kafka", stack.settings.kafka_bootstrap, "--topic-prefix", stack.settings.topic_prefix)
    return options


CASES = {
    "fanout": (RATED, FANOUT_KEYS),
    "connect": (SMALL, {"kib_per_connection", "connects_per_s"}),
    "slow": (
        RATED,
        {"offered", "delivered", "conflated", "skipped", "lost_with_closed", "unaccounted", "server_unaccounted"},
    ),
    "churn": ((*RATED, "--per-s", "10"), {"replaced", "flipped", "rss_slope_kib_per_minute", "files_left"}),
    "storm": (RATED, {"seconds_until_all_have_books", "connects_per_s"}),
    "soak": ((*RATED, "--per-s", "5"), {"replaced", "flipped", "rss_slope_kib_per_minute", "files_left"}),
}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", CASES)
async def test_each_command_measures_a_server_that_already_runs(stack: Stack, tmp_path: Path, name: str) -> None:
    options, keys = CASES[name]
    result, report = tmp_path / "result.json", tmp_path / "report.md"
    files = ("--json", str(result), "--report", str(report))
    code, out, err = await run(name, *options, *there(stack, publish=True), *files)
    assert (code, err) == (0, "")
    found = json.loads(result.read_text())
    assert keys <= found.keys()
    assert found["scenario"] == name
    assert name in report.read_text()
    pictures = {file for file in os.listdir(tmp_path) if file.endswith(".svg")}  # noqa: PTH208
    expected = {"fanout": {"report.svg"}, "churn": {"report-memory.svg"}, "soak": {"report-memory.svg"}}
    assert pictures == expected.get(name, set())
    assert all(picture in report.read_text() for picture in pictures)
    assert "server" in out
    assert (found.get("lost", 0), found.get("unaccounted", 0), found.get("broken_chains", 0)) == (0, 0, 0)
    if name in ("churn", "soak"):
        assert found["flipped"] > 0


@pytest.mark.asyncio(loop_scope="module")
async def test_the_mix_takes_what_the_server_has_anyway(stack: Stack, tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    options = ("fanout", "--mix", *RATED, *there(stack, publish=False), "--json", str(result))
    code, _, err = await run(*options)
    assert (code, err) == (0, "")
    found = json.loads(result.read_text())
    assert (found["expected_per_s"], found["lost"], found["closed"]) == (None, 0, {})
    assert 0 < found["p50_ms"] <= found["p99_ms"]
    assert 0 < found["tier_p50_ms"] <= found["tier_p99_ms"]
    assert found["deliveries_per_s"] > 0
    assert found["checks"]["updates"] > 0


@pytest.mark.asyncio(loop_scope="module")
async def test_the_highest_rate_is_searched(stack: Stack, tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    options = ("fanout", *SMALL, "--rate", "200", "--seconds", "0.5", "--p99-max-ms", "0.001")
    options += ("--tries", "2")
    options += (*there(stack, publish=True), "--json", str(result), "--report", str(tmp_path / "report.md"))
    code, _, err = await run(*options)
    assert (code, err) == (0, "")
    assert "report-rates.svg" in (tmp_path / "report.md").read_text()
    found = json.loads(result.read_text())
    assert found["max_deliveries_per_s"] == 0  # nothing is that quick
    rates = [step["rate"] for step in found["steps"]]
    assert rates == [12.5, 12.5, 25, 25, 50, 50, 100, 100, 200, 200]
    assert not any(step["good"] for step in found["steps"])


async def fails(*arguments: str, environment: dict[str, str] | None = None) -> str:
    """The one line that a command says when it fails."""
    process = await asyncio.create_subprocess_exec(
        *command(*arguments), env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(GIVE_UP_S):
        out, err = await process.communicate()
    lines = err.decode().splitlines()
    assert (process.returncode, out, len(lines)) == (2, b"", 1), lines
    assert lines[0].startswith("depthcast: ")
    return lines[0]


async def test_what_a_user_can_mend_is_one_line() -> None:
    nobody = f"127.0.0.1:{free_port()}"
    lines = await asyncio.gather(
        fails("fanout", *RATED, "--reference", "c", environment={**os.environ, "PATH": "/nowhere"}),
        fails("connect", *SMALL, "--url", f"ws://{nobody}/v1/stream"),
        fails("fanout", *RATED, "--url", f"ws://{nobody}/", "--feed-port", str(free_port())),
        fails("storm", *RATED, "--url", f"ws://{nobody}/v1/stream", "--kafka", nobody),
        fails("slow", *RATED, "--url", "http://127.0.0.1/"),
        fails("fanout", *RATED, "--url", "wss://127.0.0.1:1/", "--ca-file", "/nowhere.pem"),
    )
    for line, expected in zip(
        lines,
        ("needs a C compiler", "does not list", "nobody takes the feed", "no Kafka at", "say ws://", "/nowhere.pem"),
        strict=True,
    ):
        assert expected in line


async def test_too_few_open_files_are_noticed_before_anything_starts() -> None:
    limited = ("prlimit", "--nofile=200:200", *command("connect", "--clients", "500"))
    started = time.monotonic()
    done = await asyncio.to_thread(subprocess.run, limited, capture_output=True, text=True, timeout=GIVE_UP_S)
    assert (done.returncode, done.stdout) == (2, "")
    assert "raise ulimit -n" in done.stderr
    assert time.monotonic() - started < GIVE_UP_S / 2


async def test_a_server_that_dies_ends_the_run() -> None:
    server, load = Depthcast(), Load(10, 8, 4, 100)
    try:
        target, source = await server.start(load.instruments)
        assert target.pid
        swarm = Swarm(target, chosen(load, target))
        async with connected(swarm):
            run = asyncio.create_task(swarm.while_alive(source, load.rate, 3_600))
            os.kill(target.pid, signal.SIGKILL)
            with pytest.raises(LoadTestError, match="depthcast ended all 10 connections"):
                await asyncio.wait_for(run, GIVE_UP_S)
    finally:
        await server.stop()


async def test_a_peer_that_takes_connections_and_says_nothing_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swarm_module, "STALLED_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as mute, socket.create_server(("127.0.0.1", 0)) as feed:
        url, feed_port = f"ws://127.0.0.1:{mute.getsockname()[1]}/", feed.getsockname()[1]
        with pytest.raises(LoadTestError, match="stands still"):
            await asyncio.wait_for(measure(Running(url, {"feed": feed_port}), Load(3, 8, 4, 100, 1)), GIVE_UP_S)


async def test_a_peer_that_refuses_the_handshake_is_quoted() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        await reader.read()
        writer.close()

    with socket.create_server(("127.0.0.1", 0)) as feed:
        peer = await asyncio.start_server(refuse, "127.0.0.1", 0)
        async with peer:
            url = f"ws://127.0.0.1:{peer.sockets[0].getsockname()[1]}/nowhere"
            with pytest.raises(LoadTestError, match="404 Not Found"):
                await measure(Running(url, {"feed": feed.getsockname()[1]}), Load(3, 8, 4, 100, 1))


async def test_a_peer_is_measured_over_tls_when_its_authority_is_trusted(tmp_path: Path) -> None:
    authority, ca_file = trustme.CA(), tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)

    async def hold(connection: ServerConnection) -> None:
        await connection.wait_closed()

    with socket.create_server(("127.0.0.1", 0)) as feed:
        async with serve(hold, "127.0.0.1", 0, ssl=tls, compression=None) as peer:
            url = f"wss://127.0.0.1:{peer.sockets[0].getsockname()[1]}/"
            options = {"feed": feed.getsockname()[1]}
            result = await measure_connections(Running(url, options, ca_file=ca_file), 5, 4, 1)
            assert result["connects_per_s"] > 0
            with pytest.raises(LoadTestError, match="--ca-file"):
                await measure_connections(Running(url, options), 5, 4, 1)


async def test_a_streamer_of_ours_is_measured_over_tls(tmp_path: Path) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    issued = trustme.CA().issue_cert("depthcast.example")
    issued.cert_chain_pems[0].write_to_path(str(certificate))
    issued.private_key_pem.write_to_path(str(key))
    result = tmp_path / "result.json"
    options = ("fanout", *RATED, "--ssl-certfile", str(certificate), "--ssl-keyfile", str(key), "--json", str(result))
    code, _, err = await run(*options)
    assert (code, err) == (0, "")
    found = json.loads(result.read_text())
    assert (found["lost"], found["closed"], found["checks"]["broken_chains"]) == (0, {}, 0)
    assert found["deliveries_per_s"] > 0
