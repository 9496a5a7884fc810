"""An ingest worker that ends itself by SIGKILL at an exact moment of its work, in a process of its own.

A kill from outside hits the interesting microseconds once in a thousand times. Processes are forked from a server that
has everything imported, so that fifty of them take seconds.
"""

import asyncio
import multiprocessing
import os
import signal
from collections import Counter
from multiprocessing.process import BaseProcess
from random import Random
from typing import Any, NamedTuple

import services.ingest
from protos.topics import Topics
from services.config import Settings
from services.kafka import GroupReader, Producer

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([__name__])


class Moment(NamedTuple):
    """The ``nth`` time that a worker comes to ``what``."""

    what: str
    nth: int


MOMENTS = {
    "before a market record": 120,
    "before a state": 3,
    "market flushed": 2,
    "states flushed": 2,
    "checkpoint flushed, not committed": 2,
    "committed": 2,
}
"""What there is, and up to which time of it we go: the first has many."""


def moments(rng: Random, count: int) -> list[Moment]:
    """Each kind equally often, the order and the time by chance."""
    kinds = [list(MOMENTS)[i % len(MOMENTS)] for i in range(count)]
    rng.shuffle(kinds)
    return [Moment(kind, rng.randint(1, MOMENTS[kind])) for kind in kinds]


def start(settings: Settings, moment: Moment) -> BaseProcess:
    """A worker that dies at ``moment``; before it comes there it works."""
    process = _context.Process(target=_run, args=(settings.model_dump(), moment), daemon=True)
    process.start()
    return process


def _run(settings: dict[str, Any], moment: Moment) -> None:
    reached: Counter[str] = Counter()

    def reach(what: str) -> None:
        reached[what] += 1
        if moment == (what, reached[what]):
            os.kill(os.getpid(), signal.SIGKILL)

    services.ingest.Producer = lambda of: _Producer(of, reach)  # type: ignore[misc,assignment]
    services.ingest.GroupReader = lambda *args: _Reader(reach, *args)  # type: ignore[misc,assignment]
    asyncio.run(services.ingest.run_ingest(Settings(**settings)))


class _Producer(Producer):
    def __init__(self, settings: Settings, reach: Any) -> None:  # noqa: ANN401
        super().__init__(settings)
        self._topics, self._reach, self._flushes = Topics(settings.topic_prefix), reach, 0

    def send(self, topic: str, *args: Any, **options: Any) -> None:  # noqa: ANN401
        if topic == self._topics.market:
            self._reach("before a market record")
        elif not args[1].startswith(b"checkpoint/"):
            self._reach("before a state")
        super().send(topic, *args, **options)

    async def flush(self) -> None:
        await super().flush()
        flushed = ("market flushed", "states flushed", "checkpoint flushed, not committed")[self._flushes % 3]
        self._flushes += 1
        self._reach(flushed)


class _Reader(GroupReader):
    def __init__(self, reach: Any, *args: Any) -> None:  # noqa: ANN401
        super().__init__(*args)
        self._reach, self._commits = reach, 0

    async def commit(self, offsets: Any) -> bool:  # noqa: ANN401
        ours = await super().commit(offsets)
        self._commits += 1
        if self._commits % 2 == 0:  # the odd ones ask whether the partitions are still ours
            self._reach("committed")
        return ours
