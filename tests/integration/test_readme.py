"""What README.md and the banner of `depthcast dev` tell a person to type does what they say, line by line."""

import gzip
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from fcntl import ioctl
from pathlib import Path
from select import select
from struct import pack
from termios import TIOCSWINSZ

import httpx
import pytest

from services.stack import free_port
from tests.support.brokers import TestBroker
from tests.support.captures import CAPTURES, FILES

README = (Path(__file__).parents[2] / "README.md").read_text()
BLOCKS = re.findall(r"^ *```sh\n(.*?)^ *```", README, re.MULTILINE | re.DOTALL)
LINES = [line for block in BLOCKS for line in block.splitlines()]
PATIENCE_S = 60
ROWS, COLUMNS = 40, 120
CAPTURE_LINES = 1_500
STARTED: list[subprocess.Popen[str]] = []
ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07]*\x07|[@-Z\\-_])")


def lines(start: str) -> list[str]:
    """Lines of the README that begin so, without what is said about them."""
    return [re.sub(r" +#.*", "", line.strip()) for line in LINES if line.strip().startswith(start)]


def spawned(line: str, settings: Mapping[str, object], cwd: Path, **how: int) -> subprocess.Popen[str]:
    """A line that runs depthcast, as a process of its own."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("DEPTHCAST_")}
    _, *arguments = shlex.split(line)
    process = subprocess.Popen(
        (sys.executable, "-m", "services", *arguments),
        env={
            **inherited,
            "TERM": "xterm-256color",
            "PYTHONPATH": str(Path(__file__).parents[2]),
            **{f"DEPTHCAST_{name}": str(value) for name, value in settings.items()},
        },
        cwd=cwd,
        text=True,
        start_new_session=True,
        **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **how},
    )
    STARTED.append(process)
    return process


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """A test that fails leaves no process behind."""
    yield
    while STARTED:
        if (process := STARTED.pop()).poll() is None:
            process.kill()
            process.communicate()


class Terminal:
    """What a person sees of a process: everything it has drawn."""

    def __init__(self, line: str, settings: Mapping[str, object], cwd: Path) -> None:
        self._fd, theirs = pty.openpty()
        ioctl(theirs, TIOCSWINSZ, pack("HHHH", ROWS, COLUMNS, 0, 0))
        self.process = spawned(line, settings, cwd, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        self.text = ""

    def until(self, pattern: str) -> str:
        """Wait until it has drawn this; returns all since the last time."""
        deadline = time.monotonic() + PATIENCE_S
        while not re.search(pattern, self.text):
            assert time.monotonic() < deadline, f"no {pattern!r} in {self.text[-3000:]}"
            if select([self._fd], [], [], 0.1)[0]:
                self.text += ESCAPES.sub("", os.read(self._fd, 65_536).decode(errors="replace"))
        seen, self.text = self.text, ""
        return seen

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        with suppress(OSError):
            while os.read(self._fd, 65_536):
                pass
        os.close(self._fd)
        return self.process.wait(PATIENCE_S)


@contextmanager
def demo(settings: Mapping[str, object], cwd: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`depthcast dev`, which is what `make demo` runs, and its banner."""
    process = spawned("depthcast dev", settings, cwd)
    try:
        banner = ""
        while "Stop: Ctrl-C" not in banner:
            assert process.stderr is not None
            line = process.stderr.readline()
            assert line, banner
            banner += line
        yield process, banner
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE_S)


def child(parent: int, word: str) -> int:
    """The process of this parent that has the word in its command line."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdecimal() and f"\nPPid:\t{parent}\n" in (entry / "status").read_text():
                words = (entry / "cmdline").read_text().split("\0")
                found += [int(entry.name)] if word in words else []
    (pid,) = found
    return pid


def test_three_things_to_try_and_what_is_seen_when_the_server_dies(tmp_path: Path) -> None:
    port, admin = free_port(), free_port()
    settings = {"HTTP_PORT": port, "ADMIN_PORT": admin}
    with demo(settings, tmp_path) as (process, banner):
        assert f"http://127.0.0.1:{port}/" in banner
        assert "<title>depthcast</title>" in httpx.get(f"http://127.0.0.1:{port}/").text
        (watch,) = lines(".venv/bin/depthcast watch")
        (banners,) = re.findall(r"python -m services (watch .*)", banner)
        assert banners.split()[1] == shlex.split(watch)[2], "both name the same instrument"
        asked = [line.replace(":8080", f":{port}") for line in lines("curl")]
        shown = re.findall(r"^ *(curl .*)$", banner, re.MULTILINE)
        assert (len(asked), len(shown)) == (2, 2)
        for line in (*asked, *shown):
            (url,) = re.findall(r"http://[^\s']+", line)
            answer = httpx.get(url)
            assert answer.status_code == 200, line
            for wanted in re.findall(r"grep (\S+)", line):
                assert wanted in answer.text
        terminal = Terminal(watch, settings, tmp_path)
        seen = terminal.until(r"digests [1-9]\d* ok")
        assert re.search(r"sim:spot:BTCUSDT +LIVE", seen)
        assert re.search(r"█+ +[\d.]+ +6\d{4}\.\d\d", seen), "a size bar, a size, a price"
        for pattern in (r"spread \d", r"last \d+\.\d+ x \d", r"[1-9]\d*\.\d updates/s", r"age \d", r"latency \d"):
            assert re.search(pattern, seen), pattern
        os.kill(child(process.pid, "streamer"), signal.SIGKILL)
        assert re.search(r"STALE +connection lost", terminal.until(r"reconnecting in \d+ s"))
        assert terminal.interrupt() == 130


def test_proof_on_ones_own_capture(tmp_path: Path) -> None:
    with gzip.open(CAPTURES / FILES["binance.spot"]) as whole, gzip.open(tmp_path / "capture.gz", "wb") as part:
        for _ in range(CAPTURE_LINES):
            part.write(whole.readline())
    (verify,), (dev,) = lines("depthcast verify"), lines("depthcast dev")
    done = spawned(verify, {}, tmp_path)
    out, err = done.communicate(timeout=PATIENCE_S)
    assert (done.returncode, out.split()[-1], err) == (0, "holds", "")
    replay = spawned(f"{dev} --seconds 3", {"HTTP_PORT": 0, "ADMIN_PORT": 0}, tmp_path)
    out, err = replay.communicate(timeout=PATIENCE_S)
    assert (replay.returncode, out.count("\n")) == (0, 1), err


@pytest.mark.kafka
def test_run_it_for_real(kafka: TestBroker, tmp_path: Path) -> None:
    create, config = lines("depthcast topics create"), lines("depthcast config")
    settings = {
        "KAFKA_BOOTSTRAP": kafka.bootstrap,
        "TOPIC_PREFIX": kafka.settings.topic_prefix,
        "INGEST_GROUP": kafka.settings.topic_prefix,
        "HTTP_PORT": free_port(),
    }
    for line in (*create, *config):
        done = spawned(line, settings, tmp_path)
        out, err = done.communicate(timeout=PATIENCE_S)
        assert (done.returncode, err) == (0, "")
        assert kafka.settings.topic_prefix in out
    running = []
    for line in (*lines("depthcast ingest"), *lines("depthcast streamer")):
        admin = free_port()
        running.append((spawned(line, {**settings, "ADMIN_PORT": admin}, tmp_path, stdout=-3, stderr=-3), admin))
    assert len(running) == 2
    deadline = time.monotonic() + PATIENCE_S
    for process, admin in running:
        ready = 0
        while ready != 200:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
            with suppress(httpx.TransportError):
                ready = httpx.get(f"http://127.0.0.1:{admin}/readyz").status_code
    for process, _ in running:
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
