"""What `depthcast dev` tells a person to type; the rest is in tests/integration."""

import sys
from pathlib import Path

import pytest

from services.dev import own_name


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / ".venv" / "bin" / "depthcast"
    path.parent.mkdir(parents=True)
    path.touch(mode=0o755)
    return path


def test_a_program_that_is_not_on_the_path_is_named_with_its_directory(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `make demo` starts it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [".venv/bin/depthcast", "dev"])
    monkeypatch.setenv("PATH", "/usr/bin")
    assert own_name() == ".venv/bin/depthcast"
    monkeypatch.setenv("PATH", str(program.parent))
    assert own_name() == "depthcast"


def test_another_program_of_that_name_is_not_meant(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "depthcast").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", [str(program), "dev"])
    assert own_name() == str(program)


def test_started_as_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/services/__main__.py", "dev"])
    assert own_name() == "python -m services"
