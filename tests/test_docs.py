"""The documents agree with the code: commands, settings, metrics, close codes, links."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from protos.messages import CloseCode
from services.cli import app
from services.config import NOT_SETTINGS, PREFIX, Settings
from services.metrics import Metrics

ROOT = Path(__file__).parents[1]
DOCUMENTS = {str(path.relative_to(ROOT)): path.read_text() for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))}
OPERATIONS = DOCUMENTS["docs/operations.md"]
ENVIRONMENT = {PREFIX + name.upper() for name in Settings.model_fields}


def settings_rows() -> list[str]:
    """The table of settings, as it must be in docs/operations.md."""
    defaults = {name: field.get_default() for name, field in Settings.model_fields.items()}
    return [
        f"| `{PREFIX}{name.upper()}` | {'' if defaults[name] is None else defaults[name]} | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]


def metric_rows() -> list[str]:
    """The table of metrics, as it must be in docs/operations.md."""
    metrics = Metrics()
    rows = []
    for family in metrics.registry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        if name.startswith("depthcast_"):
            labels = ", ".join(metrics.labels[name])
            rows.append(f"| `{name}` | {family.type} | {labels} | {family.documentation} |")
    return rows


def close_code_rows() -> list[str]:
    """How each row of the table of close codes in docs/operations.md must begin."""
    return [f"| {code.value} | {code.name} |" for code in CloseCode]


def commands() -> Iterator[tuple[str, str]]:
    """(document, line) of every ``depthcast`` command in a code block."""
    for name, text in DOCUMENTS.items():
        for block in re.findall(r"^```(?:sh|console)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            for line in block.splitlines():
                if found := re.match(r"(?:\.venv/bin/)?depthcast (.*?)(?: *[#|].*)?$", line):
                    yield name, found[1]


def table(title: str) -> list[str]:
    """The rows of the first table under a heading of docs/operations.md."""
    below = OPERATIONS.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"^\|.*\|$", below[below.index("|---") :].split("\n\n", 1)[0], re.MULTILINE)[1:]


def test_settings_are_documented() -> None:
    assert table("Settings") == settings_rows()


def test_metrics_are_documented() -> None:
    assert table("Metrics") == metric_rows()


def test_close_codes_are_documented() -> None:
    assert [" | ".join(row.split(" | ")[:2]) + " |" for row in table("Close codes")] == close_code_rows()


@pytest.mark.parametrize(("document", "line"), list(commands()))
def test_commands_are_understood(document: str, line: str) -> None:
    command = typer.main.get_command(app)
    arguments = shlex.split(line)
    while subcommands := getattr(command, "commands", None):
        assert arguments, f"{document}: `depthcast {line}` names no command"
        command = subcommands[arguments.pop(0)]
    command.make_context("depthcast", arguments)


def test_readme_shows_commands() -> None:
    assert len([line for name, line in commands() if name == "README.md"]) >= 5


def test_readme_lists_every_document() -> None:
    assert [name for name in DOCUMENTS if name != "README.md" and f"]({name})" not in DOCUMENTS["README.md"]] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    here = (ROOT / document).parent
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)[^)]*\)", DOCUMENTS[document])
    assert [link for link in links if not (here / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_variables_and_targets_exist(document: str) -> None:
    text = DOCUMENTS[document]
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(rf"{PREFIX}[A-Z_]+[A-Z]", text)) - ENVIRONMENT - NOT_SETTINGS == set()
    assert set(re.findall(r"`make ([a-z]+)`|^make ([a-z]+)", text, re.MULTILINE)) <= {
        pair for target in targets for pair in ((target, ""), ("", target))
    }


def test_every_metric_is_measured() -> None:
    sources = {path: path.read_text() for path in (ROOT / "services").rglob("*.py") if path.name != "metrics.py"}
    names = [name for name in vars(Metrics()) if name not in {"registry", "labels", "disconnects"}]
    used = {name for name in names for text in sources.values() if re.search(rf"metrics\.{name}\b", text)}
    assert sorted(set(names) - used) == []


def test_every_promise_has_a_test_that_exists() -> None:
    text = DOCUMENTS["docs/guarantees.md"]
    missing = []
    for path, name in re.findall(r"`(tests/[a-z_/]+\.py)::(\w+)`", text):
        source = ROOT / path
        if not source.is_file() or not re.search(rf"^(?:async )?def {name}\(", source.read_text(), re.MULTILINE):
            missing.append(f"{path}::{name}")
    assert missing == []
    promises = [
        row for row in re.findall(r"^\|.*\|$", text, re.MULTILINE) if not re.match(r"\|(-|.* \| test \|$)", row)
    ]
    assert len(promises) > 20
    assert [row for row in promises if "::test_" not in row] == []
