"""Build hook: with ``DEPTHCAST_COMPILE=1`` mypyc compiles the pure packages and `SERVICES`, and cc the native modules.

Without it the wheel is Python alone and fits every platform. The modules stay in the wheel beside their extensions,
which Python prefers to them, so that tracebacks show their lines.
"""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGES = ("protos", "ingest", "streamer")
NATIVE = (*PACKAGES, "services")
"""Where modules in C are. Each has its contract, and its fallback, in Python beside it."""
SERVICES = (
    "services/kafka/fetch.py",
    "services/kafka/fetcher.py",
    "services/kafka/follower.py",
    "services/streamer/market.py",
)
"""What else is compiled: the way of a record from Kafka's socket to the hub."""
INTERPRETED = {
    "protos/depthcast_pb2.py",  # generated; nothing but calls of protobuf's own C
    "protos/messages.py",  # users copy and pickle these classes; compiled, they are no faster to read
}


class CompileHook(BuildHookInterface):
    """Adds the extensions to a wheel; an editable install stays pure."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """For builds in isolation."""
        return list(self.metadata.core.optional_dependencies["compile"]) if wanted() else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if not wanted() or version == "editable":
            return
        self._directory = tempfile.mkdtemp(prefix="depthcast-compile-")
        library = compile_into(Path(self.root), Path(self._directory))
        for path in library.rglob("*.so"):
            build_data["force_include"][str(path)] = str(path.relative_to(library))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        if hasattr(self, "_directory"):
            shutil.rmtree(self._directory)


def wanted() -> bool:
    return os.environ.get("DEPTHCAST_COMPILE") == "1"


def compile_into(root: Path, directory: Path) -> Path:
    """Compile; returns the folder that holds the extensions as they lie in the wheel. Takes about a minute."""
    from mypyc.build import mypycify
    from setuptools import Distribution, Extension

    os.chdir(root)  # mypy names modules by their path from here
    modules = [str(path.relative_to(root)) for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]
    modules = [name for name in modules if name not in INTERPRETED and not name.endswith("__init__.py")] + [*SERVICES]
    extensions = mypycify(
        [
            "--config-file=",
            "--ignore-missing-imports",
            *modules,
        ],  # its checks are `make check`'s, with plugins and stubs
        opt_level="2",  # 3 takes half as long again and gains nothing
        debug_level="0",
        multi_file=True,  # one file of all takes 2 GB
        target_dir=str(directory / "c"),
        group_name="depthcast",
    )
    sources = [path.relative_to(root) for package in NATIVE for path in sorted((root / package).rglob("*.c"))]
    extensions += [
        Extension(".".join(path.with_suffix("").parts), [str(path)], py_limited_api=True) for path in sources
    ]
    builder = Distribution({"name": "depthcast", "ext_modules": extensions}).get_command_obj("build_ext")
    builder.build_lib = str(directory / "lib")
    builder.build_temp = str(directory / "o")
    builder.ensure_finalized()
    builder.run()
    return directory / "lib"
