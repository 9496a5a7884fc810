"""What is installed is what was locked: every package pinned with hashes, from wherever the user installs from."""

import ast
import re
import subprocess
import tomllib
from collections.abc import Iterator
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKS = {name: (ROOT / name).read_text() for name in ("requirements.txt", "requirements-dev.txt")}
PACKAGES = ("protos", "ingest", "streamer", "services", "loadtest")


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned(lock: str) -> dict[str, int]:
    """Name -> number of hashes of every entry."""
    entries = re.sub(r" *\\\n +", " ", lock)
    lines = [line for line in entries.splitlines() if line and not line.lstrip().startswith("#")]
    found = {}
    for line in lines:
        match = re.match(r"([A-Za-z0-9._-]+)==[^\s;]+", line)
        assert match, f"{line[:60]} is not one exact version"
        found[normal(match[1])] = len(re.findall(r"--hash=sha256:[0-9a-f]{64}", line))
    return found


def required(requirements: list[str]) -> set[str]:
    return {normal(re.split(r"[\s\[<>=;]", requirement)[0]) for requirement in requirements}


@pytest.mark.parametrize("name", LOCKS)
def test_every_package_is_pinned_with_its_hashes_and_no_address(name: str) -> None:
    hashes = pinned(LOCKS[name])
    assert len(hashes) > 40
    assert [package for package, count in hashes.items() if not count] == []
    assert re.findall(r"--(?:extra-)?index-url|--find-links|--trusted-host|://| @ ", LOCKS[name]) == []


def test_what_the_project_needs_is_locked() -> None:
    extras = PROJECT["optional-dependencies"]
    assert required(PROJECT["dependencies"]) | required(extras["build"]) <= pinned(LOCKS["requirements.txt"]).keys()
    everything = [*PROJECT["dependencies"], *extras["build"], *extras["dev"]]
    assert required(everything) <= pinned(LOCKS["requirements-dev.txt"]).keys()


def test_both_locks_have_the_same_versions() -> None:
    versions = [dict(re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", lock, re.MULTILINE)) for lock in LOCKS.values()]
    assert {name: v for name, v in versions[0].items() if versions[1].get(name, v) != v} == {}


def _imported() -> Iterator[str]:
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    yield from (alias.name.split(".")[0] for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    yield (node.module or "").split(".")[0]


def test_what_the_program_imports_is_locked() -> None:
    """Not only what the development environment happens to have."""
    distributions = packages_distributions()
    needed = {normal(name) for module in set(_imported()) for name in distributions.get(module, ())}
    assert needed - pinned(LOCKS["requirements.txt"]).keys() - {"depthcast"} == set()


def test_the_classifiers_are_the_supported_versions() -> None:
    low, high = re.findall(r"3\.(\d+)", PROJECT["requires-python"])
    named = re.findall(r"Python :: 3\.(\d+)", "\n".join(PROJECT["classifiers"]))
    assert list(map(int, named)) == list(range(int(low), int(high)))
    makefile = (ROOT / "Makefile").read_text()
    assert f"(3, {low}) <= sys.version_info[:2] < (3, {high})" in makefile
    assert [f"python3.{minor}" in makefile for minor in named] == [True] * len(named)


def test_it_is_typed_and_has_its_command() -> None:
    assert [package for package in PACKAGES if not (ROOT / package / "py.typed").is_file()] == []
    (command,) = (point for point in distribution("depthcast").entry_points if point.group == "console_scripts")
    assert (command.name, command.value) == ("depthcast", "services.cli:main")


def test_every_folder_of_tests_runs() -> None:
    assert "\nmake test\n" in (ROOT / ".ci" / "run").read_text()
    command = ["make", "--dry-run", "--always-make", "PYTHON=python3", "test"]
    recipes = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    named = {word.split("/")[1] for word in recipes.split() if word.startswith("tests/")}
    folders = {path.parent.relative_to(ROOT / "tests").parts[0] for path in (ROOT / "tests").glob("*/**/test_*.py")}
    assert folders | {path.name for path in (ROOT / "tests").glob("test_*.py")} <= named
