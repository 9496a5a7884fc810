"""Mutation testing of the modules in which a mistake would lose data or let somebody in.

Each mutant is the module with one operator, number or branch changed; a mutant that all tests let pass is a survivor.
Prints the table of CONTRIBUTING.md, and each survivor that `equivalent` does not explain; fails if there is one.
Works on a copy: the checkout is never changed. Takes most of an hour; `--seconds` bounds it, and the next
run in the same `--folder` goes on where it stopped; with `--again` it first tries once more what survived.
"""

import argparse
import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import TestOutcome, WorkerOutcome

from tests.mutation.equivalent import OPERATORS, reason_of

ROOT = Path(__file__).parents[2]
COPIED = ("protos", "ingest", "streamer", "services", "loadtest", "tests", "docs", "pyproject.toml")
STREAMER = ("hub_queues", "hub_resume", "hub", "hub_model")
TESTS = {  # the quickest first: the first failure ends a mutant
    "protos/book.py": ["tests/protos/test_book.py"],
    "ingest/sequence.py": ["tests/ingest/test_sequence.py", "tests/ingest/test_instrument.py"],
    "streamer/outbox.py": ["tests/streamer/test_outbox.py", *(f"tests/streamer/test_{name}.py" for name in STREAMER)],
    "streamer/session.py": [f"tests/streamer/test_session{name}.py" for name in ("", "_marks", "_drawing")],
}
TIMEOUT_S = 20
"""Of the tests of one mutant, by a command of its own: an endless loop must not outlive whoever ends the run."""
OPTIONS = "-x -q -c /dev/null --rootdir=. -p no:cacheprovider -p tests.mutation.quick"
CONFIG = """
[cosmic-ray]
module-path = "{module}"
timeout = {twice}
excluded-modules = []
test-command = "timeout --signal=KILL {timeout} {python} -m pytest {options} --confcutdir={folder} {tests}"
distributor.name = "local"
filters.operators-filter.exclude-operators = {operators}
"""


def copy_to(folder: Path) -> None:
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.rmtree(folder / name, ignore_errors=True)
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            shutil.copy(source, folder / name)


def run(module: str, folder: Path, until: float, again: bool) -> Path:
    """Returns the session's file. What there was no time for is left open in it."""
    version = hashlib.sha256((ROOT / module).read_bytes()).hexdigest()[:8]  # a changed module has other mutants
    config, session = (folder / f"{Path(module).stem}-{version}.{kind}" for kind in ("toml", "sqlite"))
    tests = TESTS[module]
    conftest = Path(tests[0]).parent  # without the brokers of tests/conftest.py, which take a second to import
    config.write_text(
        CONFIG.format(
            module=module,
            timeout=TIMEOUT_S,
            twice=2 * TIMEOUT_S,
            python=sys.executable,
            options=OPTIONS,
            folder=conftest,
            tests=" ".join(tests),
            operators=list(OPERATORS),
        )
    )
    tools = Path(sys.executable).parent
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    if session.exists() and again:
        with sqlite3.connect(session) as database:
            database.execute("delete from work_results where test_outcome = ?", (TestOutcome.SURVIVED.name,))
    if not session.exists():
        for command in (["cosmic-ray", "init", config, session], ["cr-filter-operators", session, config]):
            subprocess.run([tools / command[0], *command[1:]], cwd=folder, check=True, capture_output=True)
    execute = subprocess.Popen([tools / "cosmic-ray", "exec", config, session], cwd=folder, env=environment)
    try:
        execute.wait(max(1, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        execute.terminate()
        execute.wait()
    shutil.copy(ROOT / module, folder / module)
    return session


def report(module: str, session: Path) -> tuple[str, list[str]]:
    """The module's row, and its survivors without an explanation."""
    counts, unexplained = dict.fromkeys(("killed", "equivalent", "survived"), 0), []
    with use_db(session, WorkDB.Mode.open) as database:
        results = {
            job: result for job, result in database.results if result.worker_outcome is not WorkerOutcome.SKIPPED
        }
        excluded = len(list(database.results)) - len(results)
        total = len(list(database.work_items)) - excluded
    for result in results.values():
        if result.test_outcome is not TestOutcome.SURVIVED:
            counts["killed"] += 1
            continue
        old, new = changed_lines(result.diff or "")
        if reason_of(module, new):
            counts["equivalent"] += 1
        else:
            counts["survived"] += 1
            unexplained.append(f"{module}\n  - {old}\n  + {new}")
    row = f"| `{module}` | {total} | {' | '.join(map(str, counts.values()))} | {total - len(results)} |"
    return row, unexplained


def changed_lines(diff: str) -> tuple[str, str]:
    lines = [line for line in diff.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    old = " ".join(line[1:].strip() for line in lines if line[0] == "-")
    return old, " ".join(line[1:].strip() for line in lines if line[0] == "+")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation")
    parser.add_argument("--seconds", type=float, default=3_600, help="in all; what is not reached is counted")
    parser.add_argument("modules", nargs="*", default=list(TESTS), metavar="module")
    parser.add_argument("--folder", type=Path, help="to work in, and to go on in; without it, one that is removed")
    parser.add_argument("--again", action="store_true", help="try survivors of earlier runs in the folder once more")
    given = parser.parse_args()
    until = time.monotonic() + given.seconds
    rows, unexplained = [], []
    os.nice(10)
    with tempfile.TemporaryDirectory(prefix="depthcast-mutation-") as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        copy_to(folder)
        for i, module in enumerate(given.modules):
            now = time.monotonic()
            share = now + (until - now) / (len(given.modules) - i)
            row, survivors = report(module, run(module, folder, share, given.again))
            rows.append(row)
            unexplained += survivors
    print("| module | mutants | killed | equivalent | survived | not reached |\n|---|---|---|---|---|---|")
    print("\n".join([*rows, *unexplained]))
    sys.exit(bool(unexplained))


if __name__ == "__main__":
    main()
