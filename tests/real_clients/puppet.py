"""What all real clients can do, and how a program does it."""

import asyncio
import base64
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

PUPPETS = Path(__file__).parent / "puppets"
CACHE = Path(__file__).parents[2] / ".cache" / "real_clients"


@dataclass(frozen=True)
class Closed:
    """The connection ended."""

    code: int
    reason: str


class Puppet(Protocol):
    """A client that does what the test says. One connection at a time."""

    async def open(self, url: str, subprotocol: str) -> str:
        """Connect; returns the subprotocol that was agreed."""
        ...

    async def send(self, data: str | bytes) -> None: ...

    async def receive(self) -> str | bytes | Closed:
        """The next message, as text or binary as it came."""
        ...

    async def close(self) -> None:
        """Start the closing handshake with 1000."""
        ...


class Program:
    """A puppet in another language, on its stdin and stdout."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def _say(self, *fields: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\t".join(fields).encode() + b"\n")
        await self._process.stdin.drain()

    async def _hear(self) -> list[str]:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        assert line, "the program has ended"
        return line.decode().rstrip("\n").split("\t")

    async def open(self, url: str, subprotocol: str) -> str:
        await self._say("open", url, subprotocol)
        what, agreed = await self._hear()
        assert what == "open"
        return agreed

    async def send(self, data: str | bytes) -> None:
        kind, payload = ("text", data.encode()) if isinstance(data, str) else ("binary", data)
        await self._say(kind, base64.b64encode(payload).decode())

    async def receive(self) -> str | bytes | Closed:
        what, *fields = await self._hear()
        payload = base64.b64decode(fields[-1])
        if what == "closed":
            return Closed(int(fields[0]), payload.decode())
        return payload.decode() if what == "text" else payload

    async def close(self) -> None:
        await self._say("close")


@asynccontextmanager
async def program(*command: str | Path) -> AsyncIterator[Program]:
    process = await asyncio.create_subprocess_exec(
        *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, limit=1 << 22
    )
    try:
        yield Program(process)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()
