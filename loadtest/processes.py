"""Processes of a load test: started on a core of their own, measured from /proc, ended by their id."""

import asyncio
import ctypes
import os
import resource
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from loadtest.errors import LoadTestError

_PR_SET_PDEATHSIG = 1
_STOP_S = 10.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
ROOT = Path(__file__).parents[1]


_OURS = sorted(os.sched_getaffinity(0))  # before `pin_generator`


def cores() -> tuple[set[int], set[int]]:
    """(server's, generator's): the first core we may use, and the second; both the same when there is only one."""
    mine = _OURS
    return ({mine[0]}, {mine[1]}) if len(mine) > 1 else (set(mine), set(mine))


def raise_descriptor_limit(wanted: int = 0) -> None:
    """Allow as many open files as ``wanted`` connections need, to us and to the servers that we start from now on.

    Raises:
        LoadTestError: The hard limit is lower.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if wanted and hard != resource.RLIM_INFINITY and hard < wanted + 256:
        raise LoadTestError(f"{wanted} connections need more open files than the {hard} allowed; raise ulimit -n")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@dataclass(slots=True, frozen=True)
class Usage:
    """A process at one moment."""

    cpu_s: float
    rss_kib: int


def usage(pid: int) -> Usage:
    """CPU seconds and resident KiB of a process and its children, from /proc; zeros when it is gone."""
    cpu_s, rss_kib = 0.0, 0
    with suppress(FileNotFoundError, ProcessLookupError):
        proc = Path(f"/proc/{pid}")
        fields = (proc / "stat").read_text().rpartition(")")[2].split()
        cpu_s = (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
        for line in (proc / "status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                rss_kib = int(line.split()[1])
        for task in (proc / "task").iterdir():
            for child in (task / "children").read_text().split():
                of_child = usage(int(child))
                cpu_s += of_child.cpu_s
                rss_kib += of_child.rss_kib
    return Usage(cpu_s, rss_kib)


def descriptors(pid: int) -> int:
    """Open files of a process."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


class Child:
    """A process whose standard output we read line by line, and whose errors go to a file.

    Args:
        name: What it is, for people.
        core: The CPUs it may use.
    """

    def __init__(
        self, name: str, command: Sequence[str], core: set[int], log: Path, environment: Mapping[str, str]
    ) -> None:
        self.name = name
        self._command = list(command)
        self._core = core
        self._log = log
        self._environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        def prepare() -> None:
            os.sched_setaffinity(0, self._core)
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

        with self._log.open("ab") as errors:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                env=self._environment,
                preexec_fn=prepare,
                start_new_session=True,
                limit=1 << 20,
            )

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def line(self, timeout_s: float = 30.0) -> str:
        """The next line it prints.

        Raises:
            LoadTestError: It ended, or said nothing in time.
        """
        assert self._process is not None
        assert self._process.stdout is not None
        try:
            data = await asyncio.wait_for(self._process.stdout.readline(), timeout_s)
        except TimeoutError:
            raise LoadTestError(f"{self.name} said nothing for {timeout_s:.0f} s; see {self._log}") from None
        if not data:
            raise LoadTestError(f"{self.name} ended: {self.last_words()}")
        return data.decode().strip()

    async def ended(self) -> None:
        """Wait for its end.

        Raises:
            LoadTestError: It failed.
        """
        assert self._process is not None
        if await self._process.wait():
            raise LoadTestError(f"{self.name} failed: {self.last_words()}")

    def tell(self, line: str) -> None:
        """Write a line to its standard input."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")

    def last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "without a word"

    def send_signal(self, sig: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(sig)

    async def stop(self) -> None:
        process = self._process
        if process is None:
            return
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), _STOP_S)
        except TimeoutError:
            process.kill()
            await process.wait()


def child_running(pid: int, *words: str) -> int:
    """The child of ``pid`` whose command line has all of these words; 0 when there is none."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            with suppress(FileNotFoundError, ProcessLookupError):
                if {*words} <= {*Path(f"/proc/{child}/cmdline").read_text().split("\0")}:
                    return int(child)
    return 0


def pin(pid: int, core: set[int]) -> None:
    """Move a running process to other CPUs, with all its threads."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), core)


def python(*arguments: str) -> list[str]:
    """The command line of one of our own programs."""
    return [sys.executable, *arguments]


def pin_generator() -> None:
    """Keep this process off the server's core."""
    os.sched_setaffinity(0, cores()[1])
