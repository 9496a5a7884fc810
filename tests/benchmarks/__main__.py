"""All figures of docs/benchmarks.md: `make bench`, or `python -m tests.benchmarks NAME ...` for some of them.

Nothing else should run meanwhile. Exit code 1 if a figure is not what it must be.
"""

import importlib
import platform
import re
import sys
from pathlib import Path

from tests.benchmarks.common import Row

NAMES = (
    *("bytes_per_event", "ingest_rate", "latency", "startup", "demo"),
    *("fanout", "highest_rate", "connections", "mix", "growth"),
)
DOCUMENT = Path(__file__).parents[2] / "docs" / "benchmarks.md"


def machine() -> str:
    """Processor, cores, memory, Python."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    cores = Path("/proc/cpuinfo").read_text().count("processor\t")
    kib = int(Path("/proc/meminfo").read_text().split()[1])
    return f"{cores} cores of {cpu}, {kib / 2**20:.0f} GiB, {platform.system()}, Python {platform.python_version()}"


def main(names: list[str]) -> int:
    sections: dict[str, list[Row]] = {}
    for name in names or NAMES:
        print(f"{name} ...", flush=True)
        sections[name] = importlib.import_module(f"tests.benchmarks.{name}").measure()
        for row in sections[name]:
            print(f"  {'ok ' if row.good else 'BAD'} {row.what}: {row.figure} ({row.must})", flush=True)
    DOCUMENT.write_text(document(DOCUMENT.read_text(), sections))
    return 0 if all(row.good for rows in sections.values() for row in rows) else 1


def document(before: str, sections: dict[str, list[Row]]) -> str:
    """docs/benchmarks.md with these sections anew; the others stay as they are."""
    kept = dict(
        re.findall(r"^## `python -m tests.benchmarks (\w+)`\n(.*?)(?=^## |\Z)", before, re.MULTILINE | re.DOTALL)
    )
    lines = [
        "# Benchmarks",
        "",
        f"Written by `make bench` on {machine()}, shared by all processes, Kafka too. Such figures",
        "are noisy; short runs are medians of three.",
        "",
    ]
    for name in NAMES:
        rows, module = sections.get(name), importlib.import_module(f"tests.benchmarks.{name}")
        lines.append(f"## `python -m tests.benchmarks {name}`")
        if rows is None:
            lines.append(kept.get(name, "\nNot measured yet.\n").rstrip("\n"))
        else:
            lines += ["", (module.__doc__ or "").strip(), "", "| what | figure | must be |", "|---|---|---|"]
            lines += [f"| {row.what.strip()} | {row.figure} | {row.must} |" for row in rows]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
