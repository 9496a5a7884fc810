"""Where requests wait for their turn: when thousands come at once, those who are there already go first.

An event loop reads from every socket that has something before it does anything else. The handshakes of a crowd were
one turn of a second, in which no update was read or sent. So what arrives only waits here, and is answered in slices.
"""

import asyncio
import time
from collections import deque
from typing import Protocol

SLICE_S = 0.002
"""About eight handshakes."""
REST = 8
"""Turns of the event loop between two slices. The way of an update from Kafka's socket to the clients' takes several:
with a slice in each of them it would be late by as many slices. Turns in which nothing else is to do are quick."""
REST_S = 0.01
"""Longer than this nobody waits for the next slice: where each turn is full, a sixth of the time is still for them."""


class Caller(Protocol):
    """Whose request waits."""

    def serve(self) -> None:
        """Its turn has come; harmless when nothing waits any more."""
        ...


class Lobby:
    """First come, first served. Of one event loop."""

    def __init__(self) -> None:
        self._callers: deque[Caller] = deque()
        self._open = False
        self._rest_ends = 0.0

    def enter(self, caller: Caller) -> None:
        """Have ``caller`` served, in a later turn of the event loop."""
        self._callers.append(caller)
        if not self._open:
            self._open = True
            self._serve_after(0)

    def _serve_after(self, turns: int) -> None:
        asyncio.get_running_loop().call_soon(self._serve, turns)

    def _serve(self, turns: int) -> None:
        now = time.perf_counter()
        if turns and now < self._rest_ends:
            self._serve_after(turns - 1)
            return
        callers, until = self._callers, now + SLICE_S
        try:
            while callers:
                callers.popleft().serve()
                if time.perf_counter() >= until:
                    break
        finally:  # the error of one is not the end of all
            self._open = bool(callers)
            if callers:
                self._rest_ends = time.perf_counter() + REST_S
                self._serve_after(REST)
