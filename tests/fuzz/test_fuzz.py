"""A few seconds of fuzzing for each target, from the seeds. `make fuzz` takes longer."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.fuzz.__main__ import NAMES
from tests.fuzz.seeds import seeds
from tests.fuzz.targets import TARGETS
from tests.support.needs import need

SECONDS = 3
RUNS_MIN = 500
ROOT = Path(__file__).parents[2]


def run(name: str, corpus: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *more, "-m", "tests.fuzz", name, f"--seconds={SECONDS}", f"--corpus={corpus}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=110)


@pytest.mark.security
@pytest.mark.parametrize("name", NAMES)
def test_no_input_makes_anything_but_documented_errors_escape(name: str, tmp_path: Path) -> None:
    need("" if find_spec("atheris") else "atheris is missing: it exists for Linux only")
    done = run(name, tmp_path)
    assert done.returncode == 0, done.stderr[-4_000:]
    found = re.search(r"Done (\d+) runs", done.stderr)
    assert found is not None, done.stderr[-2_000:]
    assert int(found[1]) >= RUNS_MIN


def test_every_target_has_a_name_and_seeds() -> None:
    assert tuple(TARGETS) == NAMES
    assert all(len(seeds(name)) >= 6 for name in NAMES)
