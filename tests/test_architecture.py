"""The rules of ARCHITECTURE.md, checked on the syntax trees of all modules. Each test lists every fault at once."""

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "protos": {"protos"},
    "ingest": {"ingest", "protos"},
    "streamer": {"streamer", "protos"},
    "services": {"services", "streamer", "ingest", "protos", "loadtest"},
    "loadtest": {"loadtest", "protos"},
}
PURE = ("protos", "ingest", "streamer")
IMPURE = {
    *("asyncio", "concurrent", "http", "logging", "multiprocessing", "os", "pathlib", "random", "secrets", "select"),
    *("selectors", "signal", "socket", "ssl", "subprocess", "threading", "time", "urllib", "uuid"),
    *("aiokafka", "confluent_kafka", "fastapi", "httpx", "prometheus_client", "starlette", "structlog", "uvicorn"),
    *("uvloop", "websockets"),
}
ONLY_IN = {
    "aiokafka": {"services.kafka"},
    "confluent_kafka": {"services.broker"},
    **{
        f"prometheus_client.{name}": {"services.metrics"}
        for name in ("Counter", "Gauge", "Histogram", "Summary", "core")
    },
    "pydantic_settings": {"services.config"},
    "uvloop": {"services.cli"},
    "loadtest": {"services.cli"},  # one command line for all
}
READS_ENVIRONMENT = {
    "services.config",
    "services.stack",  # hands it on to child processes
}
ENTRY_POINTS = {"services.__main__"}
LINES_MAX, FUNCTION_LINES_MAX = 400, 50
REGISTRIES = tuple(
    map(
        "".join,  # in two parts, so that this file names none either
        (
            *(("py", "pi."), ("python", "hosted"), ("npm", "js."), ("yarn", "pkg."), ("crates", ".io")),
            *(("proxy.", "golang"), ("docker", ".io"), ("ghcr", ".io"), ("quay", ".io")),
            *(("repo.", "maven"), ("repo1.", "maven"), ("maven", ".org")),
        ),
    )
)
FORBIDDEN = (*REGISTRIES, "unittest.mock", "MagicMock", "TODO", "FIXME")


def _name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


SOURCES = {
    _name(path): path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py") if "_pb2" not in path.name
}
TREES = {name: ast.parse(path.read_text()) for name, path in SOURCES.items()}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def _imports(name: str) -> Iterator[str]:
    """Everything that a module imports, and for ``from a import b`` both ``a`` and ``a.b``."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from (module, *(f"{module}.{alias.name}" for alias in node.names))


def _functions() -> Iterator[tuple[str, Function]]:
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, Function):
                yield f"{name}.{node.name}", node


def test_packages_import_only_what_they_may() -> None:
    faults = [
        f"{name} imports {other}"
        for name in TREES
        for other in _imports(name)
        if other.split(".")[0] in MAY_IMPORT and other.split(".")[0] not in MAY_IMPORT[name.split(".")[0]]
    ]
    assert faults == []


def test_pure_packages_do_no_io_and_read_no_clock() -> None:
    faults = [
        f"{name} imports {other}"
        for name in TREES
        for other in _imports(name)
        if name.startswith(PURE) and other.split(".")[0] in IMPURE
    ]
    clocks = [
        f"{name}:{node.lineno} reads the clock"
        for name in TREES
        for node in ast.walk(TREES[name])
        if name.startswith(PURE) and isinstance(node, ast.Attribute) and node.attr in {"now", "utcnow", "today"}
    ]
    assert faults + clocks == []


def test_libraries_with_one_home_stay_there() -> None:
    faults = [
        f"{name} imports {library}"
        for name in TREES
        for library, homes in ONLY_IN.items()
        if library in set(_imports(name)) and not name.startswith((*homes, "loadtest"))
    ]
    assert faults == []


def test_only_config_reads_the_environment() -> None:
    readers = {
        name
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in {"environ", "environb", "getenv"}
    }
    assert sorted(name for name in readers - READS_ENVIRONMENT if not name.startswith("loadtest")) == []


def test_every_module_is_imported_by_another() -> None:
    imported = {other for name in TREES for other in _imports(name) if other != name}
    runnable = {name for name in TREES if name.startswith("loadtest") and '"__main__"' in SOURCES[name].read_text()}
    modules = {name for name in TREES if SOURCES[name].name != "__init__.py"}
    assert sorted(modules - imported - ENTRY_POINTS - runnable) == []


def test_modules_and_functions_are_short() -> None:
    modules = {name: len(path.read_text().splitlines()) for name, path in SOURCES.items()}
    functions = {name: (node.end_lineno or 0) - node.lineno + 1 for name, node in _functions()}
    assert {name: lines for name, lines in modules.items() if lines > LINES_MAX} == {}
    assert {name: lines for name, lines in functions.items() if lines > FUNCTION_LINES_MAX} == {}


def test_files_of_tests_are_short() -> None:
    files = {path: len(path.read_text().splitlines()) for path in (ROOT / "tests").rglob("*.py")}
    assert {str(path.relative_to(ROOT)): lines for path, lines in files.items() if lines > LINES_MAX} == {}


def test_every_function_is_annotated() -> None:
    faults = []
    for name, node in _functions():
        given = node.args
        arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
        missing = [a.arg for a in arguments if a and a.annotation is None and a.arg not in {"self", "cls"}]
        faults += [f"{name} {missing}"] if missing or node.returns is None else []
    assert faults == []


def test_no_file_has_a_forbidden_word() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    paths = [path for name in listed.stdout.split("\0") if name and (path := ROOT / name) != Path(__file__)]
    faults = [
        f"{path.relative_to(ROOT)}: {word}"
        for path in paths
        if path.is_file()
        for word in FORBIDDEN
        if word in path.read_bytes().decode(errors="replace")
    ]
    assert faults == []
