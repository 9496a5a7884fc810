"""Fuzz the decoders and the public port with atheris: ``python -m tests.fuzz [TARGET ...] --seconds N``.

Several targets run one after the other, each in a process of its own. What is found stays in .cache/fuzz/TARGET, where
the next run goes on; an input that crashes is written to ``crash-*`` there.
"""

import argparse
import subprocess
import sys
from pathlib import Path

NAMES = ("command", "message", "tick", "frame", "request")
CACHE = Path(__file__).parents[2] / ".cache" / "fuzz"
SIZE_MAX = 4_096


def fuzz(name: str, seconds: int, corpus: Path) -> None:
    """Runs until the time is over or an input crashes; does not return."""
    import atheris

    with atheris.instrument_imports(include=["protos", "ingest", "streamer", "services", "websockets"]):
        from tests.fuzz.seeds import seeds
        from tests.fuzz.targets import TARGETS

    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds(name)):
        (corpus / f"seed-{number}").write_bytes(seed)
    target = TARGETS[name]
    options = (f"-max_total_time={seconds}", f"-max_len={SIZE_MAX}", f"-artifact_prefix={corpus}/", "-timeout=20")
    atheris.Setup([sys.argv[0], *options, str(corpus)], lambda data: target(data) if data else None)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz with atheris.")
    parser.add_argument("targets", nargs="*", choices=[*NAMES, []], help="all when none is named")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--corpus", type=Path, default=CACHE, help="directory of what was found")
    options = parser.parse_args()
    if len(options.targets) == 1:
        fuzz(options.targets[0], options.seconds, options.corpus / options.targets[0])
    for name in options.targets or NAMES:
        print(f"fuzzing {name} for {options.seconds} s", flush=True)
        command = [
            sys.executable,
            "-m",
            "tests.fuzz",
            name,
            f"--seconds={options.seconds}",
            f"--corpus={options.corpus}",
        ]
        if subprocess.run(command, check=False).returncode:
            sys.exit(f"{name}: an input crashes it; it is in {options.corpus / name}, and the traceback is above")


if __name__ == "__main__":
    main()
