"""The C modules of the compiled build, built for one test from the sources: a checkout has none."""

import importlib.machinery
import importlib.util
import sysconfig
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from loadtest.compiler import compile_c
from tests.support.needs import need_compiler

ROOT = Path(__file__).parents[2]


@cache
def native(name: str) -> Any:  # noqa: ANN401 - a module that mypy knows by its stub
    """The module of that dotted name, as in ``services.streamer.native``. Skips the test without a compiler."""
    need_compiler()
    source = ROOT.joinpath(*name.split(".")).with_suffix(".c")
    library = Path(tempfile.mkdtemp(prefix="depthcast-native-"), "native.so")
    include = sysconfig.get_path("include")
    compile_c(source, library, "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", f"-I{include}")
    loader = importlib.machinery.ExtensionFileLoader("native", str(library))
    spec = importlib.util.spec_from_loader("native", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module
