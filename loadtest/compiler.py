"""C programs of a load test, built when they are needed."""

import shutil
import subprocess
from pathlib import Path

from loadtest.errors import LoadTestError


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
