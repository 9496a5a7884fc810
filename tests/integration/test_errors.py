"""What goes wrong at a command line: one clear line that says what to do, exit code 2, no traceback, no noise."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from services.stack import free_port
from services.topics import topic_specs
from tests.support.brokers import TestBroker
from tests.support.captures import CAPTURES, FILES

TIMEOUT_S = 60
OKX = str(CAPTURES / FILES["okx"])
REPLAY = ("feed", "replay", OKX, "--feed", "okx")
VERIFY = ("verify", OKX, "--feed", "okx")


def depthcast(arguments: Iterable[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, with these settings alone: DEPTHCAST_ is put before each."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("DEPTHCAST_")}
    settings = {f"DEPTHCAST_{name}": value for name, value in environment.items()}
    command = (sys.executable, "-m", "services", *arguments)
    return subprocess.run(
        command,
        env={**inherited, **settings},
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
        stdin=subprocess.DEVNULL,
    )


WARNED = "AUTHENTICATION IS OFF"
"""A streamer says it whatever comes next."""


def complaint(*arguments: str, settings: Mapping[str, str] = MappingProxyType({}), progress: int = 0) -> str:
    """The one line of stderr, behind ``progress`` lines that say what is being done."""
    done = depthcast(arguments, settings)
    assert done.returncode == 2, done
    assert "Traceback" not in done.stderr
    *before, line = [line for line in done.stderr.splitlines() if WARNED not in line]
    assert len(before) == progress, done.stderr
    assert not any(said.startswith("{") for said in before), "log lines"
    assert line.startswith("depthcast: ")
    return line.removeprefix("depthcast: ")


@pytest.fixture
def taken_port() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield str(server.getsockname()[1])


def of(broker: TestBroker, changes: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """Settings that lead to the broker."""
    settings = broker.settings
    return {
        "KAFKA_BOOTSTRAP": settings.kafka_bootstrap,
        "KAFKA_FETCH_MAX_WAIT_MS": str(settings.kafka_fetch_max_wait_ms),
        "TOPIC_PREFIX": settings.topic_prefix,
        "PARTITIONS": str(settings.partitions),
        "HTTP_PORT": "0",
        "ADMIN_PORT": "0",
        **changes,
    }


@pytest.mark.parametrize(
    "command",
    [
        ("ingest",),
        ("streamer",),
        ("feed", "simulate"),
        REPLAY,
        ("topics", "create"),
        ("topics", "describe"),
        ("dev", "--kafka", "KAFKA", "--seconds", "5"),
        (*VERIFY, "--kafka", "KAFKA"),
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_unreachable_kafka(command: tuple[str, ...]) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    arguments = [nobody if argument == "KAFKA" else argument for argument in command]
    settings = {"KAFKA_BOOTSTRAP": nobody, "KAFKA_CONNECT_TIMEOUT_MS": "500", "ADMIN_PORT": "0"}
    line = complaint(*arguments, settings=settings, progress=command[0] == "dev")
    mend = "start it, or set DEPTHCAST_KAFKA_BOOTSTRAP to its HOST:PORT"
    assert line == f"cannot reach Kafka at {nobody}: connection refused; {mend}"


@pytest.mark.parametrize("command", [("ingest",), ("streamer",), ("feed", "simulate"), REPLAY], ids=" ".join)
def test_missing_topics(command: tuple[str, ...], broker: TestBroker) -> None:
    line = complaint(*command, settings=of(broker))
    assert line == (
        f"topic {broker.settings.topic_prefix}.ticks on {broker.bootstrap} is missing: run `depthcast topics create`"
        " (and 3 more: `depthcast topics describe`)"
    )


def test_describe_shows_which_topics_are_missing(broker: TestBroker) -> None:
    done = depthcast(("topics", "describe"), of(broker))
    topics = [spec.name for spec in topic_specs(broker.settings)]
    assert done.returncode == 2
    assert done.stdout.splitlines()[-4:] == [f"{topic} is missing: run `depthcast topics create`" for topic in topics]
    assert done.stderr.startswith(f"depthcast: topic {topics[0]} on {broker.bootstrap} is missing: run ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "command",
    [("ingest",), ("streamer",), ("feed", "simulate"), REPLAY, ("topics", "create"), ("topics", "describe")],
    ids=lambda command: " ".join(command[:2]),
)
async def test_wrong_partition_counts(command: tuple[str, ...], broker: TestBroker) -> None:
    await broker.create(topic_specs(broker.settings))
    line = complaint(*command, settings=of(broker, {"PARTITIONS": "5"}))
    assert line == (
        f"topic {broker.settings.topic_prefix}.ticks on {broker.bootstrap} has 2 partitions, not 5: set"
        " DEPTHCAST_PARTITIONS to 2 or choose another DEPTHCAST_TOPIC_PREFIX (and 3 more: `depthcast topics describe`)"
    )


async def test_wrong_partition_counts_of_dev(broker: TestBroker) -> None:
    await broker.create(topic_specs(broker.settings))
    line = complaint("dev", "--kafka", broker.bootstrap, settings=of(broker, {"PARTITIONS": "5"}), progress=1)
    assert line.startswith(
        f"topic {broker.settings.topic_prefix}.ticks on {broker.bootstrap} has 2 partitions, not 5: set"
    )


@pytest.mark.parametrize(
    ("command", "port"), [("ingest", "ADMIN_PORT"), ("streamer", "ADMIN_PORT"), ("streamer", "HTTP_PORT")]
)
async def test_a_taken_port(command: str, port: str, taken_port: str, embedded: TestBroker) -> None:
    await embedded.create_topics()
    line = complaint(command, settings=of(embedded, {port: taken_port}))
    assert line == f"port {taken_port} is taken; stop what uses it or set DEPTHCAST_{port} to another one"


@pytest.mark.parametrize("port", ["HTTP_PORT", "ADMIN_PORT"])
def test_a_taken_port_of_dev(taken_port: str, port: str) -> None:
    free = {"HTTP_PORT": "0", "ADMIN_PORT": "0"}
    line = complaint("dev", "--seconds", "5", settings={**free, port: taken_port})
    assert line == f"port {taken_port} is taken; stop what uses it or set DEPTHCAST_{port} to another one"


def test_a_capture_that_cannot_be_read(tmp_path: Path) -> None:
    missing, other = tmp_path / "missing.gz", tmp_path / "other.txt"
    other.write_text("not a capture\n")
    reason = f"cannot read the capture {missing}: No such file or directory"
    assert complaint("dev", "--replay", str(missing), "--feed", "okx") == reason
    assert complaint("verify", str(missing), "--feed", "okx") == reason
    line = complaint("feed", "replay", str(tmp_path), "--feed", "okx")
    assert line == f"cannot read the capture {tmp_path}: Is a directory"
    line = complaint("verify", str(other), "--feed", "okx")
    assert line == f"{other} is not a capture: neither of hftbacktest nor of cryptofeed, raw or JSON lines"


def test_a_capture_of_another_venue() -> None:
    """Seen only once all runs: some messages of another venue may be this one's acknowledgements."""
    done = depthcast(("dev", "--replay", OKX, "--feed", "kraken"), {"HTTP_PORT": "0", "ADMIN_PORT": "0"})
    assert done.returncode == 2
    said = done.stderr.splitlines()
    assert said[-1] == f"depthcast: none of the 410 messages in {OKX} is market data of kraken: is --feed right?"
    assert all("cannot be used" in line for line in said[1:-1]), "nothing but what is wrong with the first ones"


@pytest.mark.parametrize(
    "command",
    [("feed", "replay", OKX, "--feed", "nasdaq"), ("dev", "--replay", OKX, "--feed", "nasdaq")],
    ids=lambda command: command[0],
)
def test_an_unknown_feed(command: tuple[str, ...]) -> None:
    line = complaint(*command)
    assert line.startswith("unknown feed 'nasdaq'; --feed is one of binance.coinm, binance.spot, ")


@pytest.mark.parametrize("command", [("ingest",), VERIFY], ids=lambda command: command[0])
def test_bad_settings_are_told_all_at_once(command: tuple[str, ...]) -> None:
    wrong = {"PARTITIONS": "many", "HTTP_PORT": "99999", "KAFKA_BOOTSTRAP": "here", "LOG_LEVEL": "loud"}
    done = depthcast(command, wrong)
    assert (done.returncode, done.stdout) == (2, "")
    first, *faults = done.stderr.splitlines()
    assert first == "depthcast: wrong settings:"
    assert sorted(re.match(r"  (\w+): must be .", fault)[1] for fault in faults) == [  # type: ignore[index]
        "DEPTHCAST_HTTP_PORT",
        "DEPTHCAST_KAFKA_BOOTSTRAP",
        "DEPTHCAST_LOG_LEVEL",
        "DEPTHCAST_PARTITIONS",
    ]


@pytest.mark.parametrize("how", ["--once", "--json"])
def test_watch_without_a_server(how: str) -> None:
    url = f"ws://127.0.0.1:{free_port()}/v1/stream"
    assert complaint("watch", "binance:spot:BTCUSDT", how, "--url", url) == (
        f"cannot connect to {url}: nothing listens there; start one with `depthcast dev`, or say where it is with --url"
    )


def test_watch_without_a_terminal() -> None:
    line = complaint("watch", "binance:spot:BTCUSDT")
    assert line == "the ladder needs a terminal; add --json or --once to write to a file or a pipe"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("watch", "x:y:Z", "--depth", "-1"), "invalid value for '--depth': .*greater than or equal to 0"),
        (("watch", "x:y:Z", "--deep", "1"), "no such option: --deep.*"),
        (("watch",), "missing argument .*"),
        (("serve",), "no such command 'serve'.*"),
    ],
    ids=lambda value: value[-1],
)
def test_what_is_typed_wrong_is_a_line_too(arguments: tuple[str, ...], said: str) -> None:
    line = complaint(*arguments)
    assert re.fullmatch(rf"{said}; see depthcast(?: watch)? --help", line, re.IGNORECASE), line
