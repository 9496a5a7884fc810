"""Counts the updates of a frame and how late each was: the hottest loop, in C where there is a compiler.

At 6 million deliveries a second a Python loop over the chunks would need ten times the core that the generator has.
"""

import ctypes
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Protocol

from loadtest.errors import LoadTestError
from loadtest.histogram import BUCKETS, Histogram
from loadtest.wire import ALL, WireError, due_ns, updates

_CACHED_MAX = 20_000
_NOT_CHUNKS = "a frame is no sequence of chunks"


class Scanner(Protocol):
    """Reads frames of any client."""

    measured_max: int
    """Of how many clients the latencies can be taken, so that the generator is not what is measured."""

    def scan(self, frame: bytes, now_ns: int, latencies: Histogram | None, kinds: int = ALL) -> int:
        """Count the updates of these kinds; into ``latencies``, ``now_ns`` less the due time of each.

        Raises:
            WireError: The frame is not a sequence of chunks.
        """
        ...


class PythonScanner:
    """Without a compiler."""

    measured_max = 100

    def __init__(self) -> None:
        self._due: dict[bytes, int] = {}

    def scan(self, frame: bytes, now_ns: int, latencies: Histogram | None, kinds: int = ALL) -> int:
        if latencies is None:
            return sum(1 for _ in updates(frame, kinds))
        late = [now_ns - self._due_ns(chunk) for chunk in updates(frame, kinds)]
        latencies.record(late)
        return len(late)

    def _due_ns(self, chunk: bytes) -> int:
        """Clients share streams, so most chunks were seen before."""
        due = self._due.get(chunk)
        if due is None:
            if len(self._due) > _CACHED_MAX:
                self._due.clear()
            due = self._due[chunk] = due_ns(chunk)
        return due


class NativeScanner:
    """`scanner.c`, as a shared library."""

    measured_max = 1_000

    def __init__(self, library: Path) -> None:
        scan = ctypes.PyDLL(str(library)).scan  # it keeps the interpreter's lock: it is done in a microsecond
        whole = ctypes.c_int64
        scan.argtypes = (ctypes.c_char_p, whole, whole, ctypes.c_void_p, whole, whole)
        scan.restype = ctypes.c_int64
        self._scan = scan

    def scan(self, frame: bytes, now_ns: int, latencies: Histogram | None, kinds: int = ALL) -> int:
        address = None if latencies is None else latencies.address
        count: int = self._scan(frame, len(frame), now_ns, address, BUCKETS, kinds)
        if count < 0:
            raise WireError(_NOT_CHUNKS)
        return count


@cache
def scanner() -> Scanner:
    """The fastest there is on this machine."""
    if not has_compiler():
        return PythonScanner()
    with tempfile.TemporaryDirectory(prefix="depthcast-loadtest-") as directory:
        library = Path(directory, "scanner.so")
        try:
            compile_c(Path(__file__).with_name("scanner.c"), library, "-shared", "-fPIC")
        except LoadTestError:  # a compiler without a C library; the tool works, it only measures fewer clients
            return PythonScanner()
        return NativeScanner(library)


def has_compiler() -> bool:
    return shutil.which("cc") is not None


def compile_c(source: Path, program: Path, *options: str) -> None:
    """Build one C file.

    Raises:
        LoadTestError: It does not compile.
    """
    command = ["cc", "-O2", *options, "-o", str(program), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LoadTestError(f"cc could not compile {source}: {done.stderr.strip().splitlines()[-1]}")
