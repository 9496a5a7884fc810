"""`depthcast dev`, whole and by itself, and `depthcast watch` beside it."""

import json
import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import pytest

from protos.codec import CODECS
from protos.messages import BookUpdate, Flag, ServerMessage
from tests.support.captures import CAPTURES, FILES
from tests.support.kafka_server import RealBroker

KEYS = (
    *("ticks", "updates", "deliveries", "p50_ms", "p99_ms", "gaps"),
    *("checksums_passed", "checksums_failed", "digests_passed", "digests_failed", "dlq"),
)
TIMEOUT_S = 60
SIMULATE = ("--symbols", "5", "--rate", "200", "--seed", "1")
REPLAY = ("--replay", str(CAPTURES / FILES["okx"]), "--feed", "okx", "--speed", "max")
OKX_TICKS, OKX_CHECKSUMS = 392, 290
LINES = 40
"""Of `watch --json` that are looked at."""
JSON = CODECS["depthcast.v1.json"]


class Dev(NamedTuple):
    """A running `depthcast dev`, and what its banner says."""

    process: subprocess.Popen[str]
    mark: str
    url: str
    instrument: str


def spawn(mark: str, *arguments: str) -> subprocess.Popen[str]:
    """A command with free ports, and ``mark`` as its topics, its group and in its environment and its children's."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("DEPTHCAST_")}
    fresh = {"HTTP_PORT": "0", "ADMIN_PORT": "0", "TOPIC_PREFIX": mark, "INGEST_GROUP": mark, "PARTITIONS": "2"}
    return subprocess.Popen(
        (sys.executable, "-m", "services", *arguments),
        env={**inherited, **{f"DEPTHCAST_{name}": value for name, value in fresh.items()}},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def marked(mark: str) -> list[int]:
    """Processes that live and have the mark in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and mark.encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue  # it ended meanwhile, or is not ours
    return found


@contextmanager
def running(*options: str) -> Iterator[Dev]:
    """`depthcast dev`, from its banner on; interrupted at the end, if it still runs."""
    mark = f"dev-{uuid.uuid4().hex[:8]}"
    process = spawn(mark, "dev", *options)
    try:
        banner = _read_until(process.stderr, "Stop: Ctrl-C")
        found = re.search(r"watch (\S+) --url (ws://\S+)", banner)
        assert found, banner
        yield Dev(process, mark, found[2], found[1])
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=TIMEOUT_S)


def _read_until(lines: IO[str] | None, end: str) -> str:
    text = ""
    for line in lines or ():
        text += line
        if end in line:
            break
    return text


def watch(dev: Dev, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `depthcast watch`."""
    process = spawn("watch", "watch", *arguments, "--url", dev.url)
    out, err = process.communicate(timeout=TIMEOUT_S)
    return process.returncode, out, err


@pytest.fixture(scope="module", params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def options(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Of the broker."""
    if request.param == "embedded":
        return ()
    server: RealBroker = request.getfixturevalue("kafka_server")
    return ("--kafka", server.bootstrap)


@pytest.fixture(scope="module")
def dev(options: tuple[str, ...]) -> Iterator[Dev]:
    """One that simulates."""
    with running(*SIMULATE, *options) as found:
        yield found


@pytest.mark.parametrize("source", [(*SIMULATE, "--seconds", "5"), (*REPLAY, "--seconds", "6")], ids=["sim", "replay"])
def test_it_ends_by_itself_and_says_how_it_went(source: tuple[str, ...], options: tuple[str, ...]) -> None:
    mark = f"dev-{uuid.uuid4().hex[:8]}"
    process = spawn(mark, "dev", *source, *options)
    out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    result = json.loads(out.splitlines()[-1])
    assert tuple(result) == KEYS
    assert {name: result[name] for name in ("digests_failed", "gaps", "dlq", "checksums_failed")} == {
        "digests_failed": 0,
        "gaps": 0,
        "dlq": 0,
        "checksums_failed": 0,
    }
    assert result["deliveries"] > 0
    assert result["digests_passed"] > 0
    if "--replay" in source:
        assert (result["ticks"], result["checksums_passed"]) == (OKX_TICKS, OKX_CHECKSUMS)
    else:
        assert result["ticks"] > 500
        assert 0 < result["p50_ms"] <= result["p99_ms"]
    assert marked(mark) == []


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM], ids=lambda sig: sig.name)
def test_interrupted_it_leaves_no_process(sig: signal.Signals) -> None:
    with running(*SIMULATE) as dev:
        assert len(marked(dev.mark)) == 4  # itself, ingest, streamer, simulator
        dev.process.send_signal(sig)
        out, err = dev.process.communicate(timeout=TIMEOUT_S)
    assert out == ""
    assert "Traceback" not in err
    assert dev.process.returncode == (130 if sig is signal.SIGINT else 143)
    assert marked(dev.mark) == []


def test_watch_once_prints_a_book(dev: Dev) -> None:
    code, out, err = watch(dev, dev.instrument, "--once", "--depth", "5")
    assert (code, err) == (0, "")
    title, header, *rows = out.splitlines()
    assert re.fullmatch(rf"{dev.instrument}  epoch \d+  seq \d+\s*", title)
    assert header.split() == ["size", "bid", "ask", "size"]
    numbers = [re.findall(r"\d+\.?\d*", row) for row in rows if row.strip()]
    assert [len(row) for row in numbers] == [4] * 5  # size, bid, ask, size
    bids, asks = [float(row[1]) for row in numbers], [float(row[2]) for row in numbers]
    assert bids == sorted(bids, reverse=True)
    assert asks == sorted(asks)
    assert bids[0] < asks[0]


def test_watch_once_as_json(dev: Dev) -> None:
    code, out, err = watch(dev, dev.instrument, "--once", "--json", "--depth", "5")
    assert (code, err) == (0, "")
    (book,) = JSON.decode(out.encode())
    assert isinstance(book, BookUpdate)
    assert book.flags & Flag.SNAPSHOT
    assert (len(book.bids), len(book.asks)) == (5, 5)
    assert max(book.bids) < min(book.asks)


def test_watch_prints_messages_as_lines(dev: Dev) -> None:
    """Until it is interrupted: book updates in an unbroken chain among them."""
    process = spawn("watch", "watch", dev.instrument, "--json", "--url", dev.url)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(LINES)]
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, err) == (130, "")
    types = {json.loads(line)["type"] for line in lines}
    assert {"welcome", "state", "book"} <= types, types
    assert "broken_chain" not in types
    messages: list[ServerMessage] = [m for line in lines if '"book"' in line for m in JSON.decode(line.encode())]
    books = [message for message in messages if isinstance(message, BookUpdate)]
    assert len(books) > 1
    assert books[0].flags & Flag.SNAPSHOT
    assert [book.prev_seq for book in books[1:]] == [book.seq for book in books[:-1]]


def test_watch_of_an_unknown_instrument_says_which_there_are(dev: Dev) -> None:
    for how in ("--once", "--json"):
        code, out, err = watch(dev, "sim:spot:NOSUCH", how)
        assert (code, out) == (2, "") if how == "--once" else code == 2
        (line,) = err.splitlines()
        assert line.startswith("depthcast: there is no instrument sim:spot:NOSUCH; there is sim:spot:")
