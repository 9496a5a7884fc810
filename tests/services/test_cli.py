import asyncio
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress

import pytest
import typer

from services import cli
from services.config import load_settings
from services.errors import UserError

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def depthcast(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process: (exit code, stdout, stderr)."""
    load_settings.cache_clear()

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["depthcast", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return run


def paths(command: object, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every command of the command line, with its parents."""
    below = getattr(command, "commands", {})
    return [path, *(deeper for name, child in below.items() for deeper in paths(child, (*path, name)))]


@pytest.mark.parametrize("path", paths(typer.main.get_command(cli.app)), ids=" ".join)
def test_every_command_explains_itself(depthcast: Run, path: tuple[str, ...]) -> None:
    code, out, _ = depthcast(*path, "--help")
    assert code == 0
    assert "Usage: depthcast" in re.sub(r"\s+", " ", out)


def test_commands_of_the_readme_exist() -> None:
    names = {" ".join(path) for path in paths(typer.main.get_command(cli.app))}
    assert {"config", "topics create", "topics describe", "ingest", "streamer", "dev", "verify", "watch"} <= names
    assert {"feed replay", "feed simulate"} <= names


def test_config_prints_settings_with_secrets_masked(depthcast: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPTHCAST_KAFKA_SASL_PASSWORD", "hunter2")
    monkeypatch.setenv("DEPTHCAST_PARTITIONS", "12")
    code, out, err = depthcast("config")
    assert (code, err) == (0, "")
    assert re.match(r"# depthcast \S+, (compiled|pure Python)\n", out)
    assert "DEPTHCAST_PARTITIONS=12\n" in out
    assert "DEPTHCAST_KAFKA_SASL_PASSWORD=****" in out
    assert "hunter2" not in out


def test_config_as_json_warns_of_a_typing_error_apart(depthcast: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPTHCAST_PARTITONS", "12")
    code, out, err = depthcast("config", "--json")
    assert code == 0
    assert json.loads(out)["DEPTHCAST_PARTITIONS"] == "8"
    assert "DEPTHCAST_PARTITONS is set, but it is no setting" in err


def test_wrong_setting_is_a_line_and_exit_code_2(depthcast: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPTHCAST_HTTP_PORT", "80800")
    code, out, err = depthcast("config")
    assert (code, out) == (2, "")
    assert err == "depthcast: wrong settings:\n  DEPTHCAST_HTTP_PORT: must be less than or equal to 65535\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("dev", "--replay", "x.gz"), "--replay needs --feed"),
        (("feed", "replay", "x.gz", "--feed", "kraken", "--speed", "fast"), "--speed fast: say max, or a factor"),
    ],
)
def test_wrong_option_is_one_line_and_exit_code_2(depthcast: Run, arguments: tuple[str, ...], said: str) -> None:
    code, out, err = depthcast(*arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_unexpected_error_is_one_line_without_a_traceback(depthcast: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_overrides: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(cli, "load_settings", broken)
    code, _, err = depthcast("config")
    assert code == 1
    assert err.startswith("depthcast: unexpected ZeroDivisionError: division by zero;")
    assert err.count("\n") == 1
    monkeypatch.setattr(sys, "argv", ["depthcast", "--debug", "config"])
    with pytest.raises(ZeroDivisionError):
        cli.main()


@pytest.mark.parametrize(("text", "factor"), [("max", 0.0), ("1", 1.0), ("0.5", 0.5), ("1e3", 1000.0)])
def test_speed_factor(text: str, factor: float) -> None:
    assert cli.speed_factor(text) == factor


@pytest.mark.parametrize("text", ["", "0", "-1", "nan", "inf", "fast", "1e7"])
def test_speed_that_is_none(text: str) -> None:
    with pytest.raises(UserError, match="say max, or a factor"):
        cli.speed_factor(text)


def test_interrupt_cancels_cleans_up_and_exits_with_130() -> None:
    cleaned: list[bool] = []

    async def work() -> None:
        with suppress(asyncio.CancelledError):
            signal.raise_signal(signal.SIGINT)
            await asyncio.sleep(60)
        cleaned.append(True)
        raise asyncio.CancelledError

    with pytest.raises(typer.Exit) as ended:
        cli.run(work())
    assert ended.value.exit_code == 130
    assert cleaned == [True]


def test_result_of_a_coroutine_comes_back() -> None:
    async def answer() -> int:
        await asyncio.sleep(0)
        return 42

    assert cli.run(answer()) == 42


def test_as_a_program() -> None:
    done = subprocess.run([sys.executable, "-m", "services", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", done.stdout)
