"""What the benchmarks share: where the captures are, one row of the table, a real Kafka on one core."""

import os
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.kafka_server import RealBroker

CAPTURES = Path(os.environ.get("DEPTHCAST_CAPTURES", Path(__file__).parents[3] / "shared" / "data"))
ROOT = Path(__file__).parents[2]
BUILDS = {"pure Python": ROOT, "compiled": ROOT / "build" / "compiled"}
"""Where each build runs: Python takes the packages of the working directory. `make compile` makes the second."""
SERVER_CORE, OTHER_CORE = {0}, {max(os.sched_getaffinity(0))}


@dataclass(frozen=True)
class Row:
    """A figure: what, how much, how much it must be, whether it is."""

    what: str
    figure: str
    must: str
    good: bool


@contextmanager
def build(name: str) -> Iterator[None]:
    """Child processes run this one of BUILDS."""
    if not BUILDS[name].is_dir():
        raise RuntimeError(f"there is no {name} build: run `make compile`")
    with chdir(BUILDS[name]):
        yield


@contextmanager
def pinned(cores: set[int]) -> Iterator[None]:
    """This process, and all that it starts meanwhile, on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def kafka(cores: set[int] | None = None, java: tuple[str, ...] = ("-Xms1g", "-Xmx1g")) -> Iterator[str]:
    """A real Kafka, by default with both its compilers on; gives its bootstrap address."""
    broker = RealBroker(java=java)
    with pinned(cores or os.sched_getaffinity(0)):
        broker.start()
    try:
        yield broker.bootstrap
    finally:
        broker.stop()
