"""Thousands of clients of the SDK's core, in processes of their own, so that their work does not delay who watches."""

import asyncio
import multiprocessing
import os
from multiprocessing.connection import Connection
from random import Random
from typing import NamedTuple, cast

from tests.support.lean_client import LeanClient
from tests.support.scenario import Wanted, until
from tests.support.witness import View, top_of

PROCESSES = 2
ARRIVALS_PER_S = 400
"""Of each process in the beginning, when nobody tests how they come."""
_context = multiprocessing.get_context("forkserver")
_CONNECTED_S = 60.0


class Member(NamedTuple):
    """What one client says of itself."""

    jumps: list[str]
    faults: list[str]
    lost: list[tuple[float, str, int]]  # when (monotonic), why, and the delay in ms before the next attempt
    started: list[float]  # when a subscription was accepted
    resumed: list[bool]
    retry_after_ms: list[int]  # of SHUTDOWN notices
    views: list[View]
    live: bool
    top: int  # of its book


class Crowd:
    """Start, ask for ``members``, stop.

    Args:
        wanted: Each client subscribes to one of these, in turn.
        nice: A crowd has machines of its own: where it shares that of the streamer it comes to, 10 lets that go first.
            But then it sees late what happens to it.
    """

    def __init__(self, url: str, wanted: list[Wanted], size: int, nice: int = 0) -> None:
        self.size = size
        self._parts: list[tuple[multiprocessing.context.ForkServerProcess, Connection]] = []
        for part in range(PROCESSES):
            ours, theirs = _context.Pipe()
            numbers = range(part, size, PROCESSES)
            process = _context.Process(target=_run, args=(theirs, url, wanted, numbers, nice), daemon=True)
            self._parts.append((process, ours))

    async def start(self) -> None:
        """Returns when all are subscribed."""
        for process, _ in self._parts:
            process.start()
        assert await self._ask("subscribed", 2 * _CONNECTED_S) == ["subscribed"] * PROCESSES

    async def members(self) -> list[Member]:
        return [member for part in await self._ask("members", 60.0) for member in cast("list[Member]", part)]

    async def stop(self) -> None:
        for process, pipe in self._parts:
            pipe.send("stop")
            await asyncio.to_thread(process.join, 20)
            if process.is_alive():
                process.kill()

    async def _ask(self, what: str, timeout_s: float) -> list[object]:
        for _, pipe in self._parts:
            pipe.send(what)
        answers = []
        for _, pipe in self._parts:
            assert await asyncio.to_thread(pipe.poll, timeout_s), f"the crowd does not answer to {what}"
            answers.append(await asyncio.to_thread(pipe.recv))
        return answers


def _run(pipe: Connection, url: str, wanted: list[Wanted], numbers: range, nice: int) -> None:
    os.nice(nice)
    asyncio.run(_answer(pipe, url, wanted, numbers))


async def _answer(pipe: Connection, url: str, wanted: list[Wanted], numbers: range) -> None:
    clients = [LeanClient(url, Random(number)) for number in numbers]
    for place, (number, client) in enumerate(zip(numbers, clients, strict=True)):
        client.core.subscribe(*wanted[number % len(wanted)])
        client.start(place / ARRIVALS_PER_S)
    while (question := await asyncio.to_thread(pipe.recv)) != "stop":
        if question == "subscribed":
            await until(lambda: all(client.resumed for client in clients), "all subscribed", _CONNECTED_S)
            pipe.send("subscribed")
        else:
            pipe.send([_member(client) for client in clients])
    for client in clients:
        client.stop()


def _member(client: LeanClient) -> Member:
    first = client.subscriptions[0]
    return Member(
        client.jumps,
        client.faults,
        client.lost,
        client.started,
        [resumed for _, resumed in client.resumed],
        client.retry_after_ms,
        client.views,
        first.live,
        top_of(first.book, first.depth),
    )
