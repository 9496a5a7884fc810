"""Hundreds of clients of the SDK in a process of their own, so that their work does not delay the test that watches."""

import asyncio
import multiprocessing
from contextlib import suppress
from multiprocessing.connection import Connection
from random import Random
from typing import NamedTuple

from services.client.events import TerminalError
from services.client.subscription import Subscription
from tests.support.scenario import View, Wanted, Watcher, top_of, until

_context = multiprocessing.get_context("forkserver")
_CONNECTING = 50
"""At once: a listener's queue is not what is tested."""
_ATTEMPTS = 10


class Member(NamedTuple):
    """What one client says of itself."""

    jumps: list[str]
    lost: list[tuple[float, str, int]]  # when (monotonic), why, and the delay in ms before the next attempt
    started: list[float]  # when a subscription was accepted
    resumed: list[bool]
    retry_after_ms: list[int]  # of SHUTDOWN notices
    views: list[View]
    live: bool
    top: int  # of its first subscription's book


class Crowd:
    """Start, wait for ``subscribed``, ask for ``members``, stop.

    Args:
        wanted: Each client subscribes to one of these, in turn.
    """

    def __init__(self, url: str, wanted: list[Wanted], size: int) -> None:
        self.size = size
        self._ours, theirs = _context.Pipe()
        self._process = _context.Process(target=_run, args=(theirs, url, wanted, size), daemon=True)

    async def start(self) -> None:
        """Returns when all are subscribed."""
        self._process.start()
        assert await self._ask("subscribed", 120.0) == "subscribed"

    async def members(self) -> list[Member]:
        found: list[Member] = await self._ask("members", 60.0)
        return found

    async def stop(self) -> None:
        self._ours.send("stop")
        await asyncio.to_thread(self._process.join, 20)
        if self._process.is_alive():
            self._process.kill()

    async def _ask(self, what: str, timeout_s: float) -> object:
        self._ours.send(what)
        assert await asyncio.to_thread(self._ours.poll, timeout_s), f"the crowd does not answer to {what}"
        return self._ours.recv()


def _run(pipe: Connection, url: str, wanted: list[Wanted], size: int) -> None:
    asyncio.run(_answer(pipe, [Watcher(url, [wanted[i % len(wanted)]], Random(i)) for i in range(size)]))


async def _answer(pipe: Connection, watchers: list[Watcher]) -> None:
    for start in range(0, len(watchers), _CONNECTING):
        await asyncio.gather(*(_enter(watcher) for watcher in watchers[start : start + _CONNECTING]))
    while (question := await asyncio.to_thread(pipe.recv)) != "stop":
        if question == "subscribed":
            await until(lambda: all(watcher.resumed for watcher in watchers), "subscribed")
            pipe.send("subscribed")
        else:
            pipe.send([_member(watcher) for watcher in watchers])
    await asyncio.gather(*(watcher.__aexit__() for watcher in watchers))


async def _enter(watcher: Watcher) -> None:
    """The first attempt of a client does not try again by itself."""
    for _ in range(_ATTEMPTS):
        with suppress(TerminalError):
            await watcher.__aenter__()
            return
    raise AssertionError(f"no connection in {_ATTEMPTS} attempts")


def _member(watcher: Watcher) -> Member:
    first: Subscription = watcher.subscriptions[0]
    return Member(
        watcher.jumps,
        watcher.lost,
        watcher.started,
        [resumed for _, resumed in watcher.resumed],
        watcher.retry_after_ms,
        watcher.views,
        first.live,
        top_of(first.book, first.depth),
    )
