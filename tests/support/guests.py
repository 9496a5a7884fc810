"""Clients that show what they have, and the streamers that ask for it."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
from websockets.asyncio.client import connect
from websockets.typing import Origin, Subprotocol

from protos.codec import CODECS
from protos.messages import Auth, Pong, Welcome
from tests.support.accounts import SETTINGS, token
from tests.support.endpoint import PROTO, Client, Rig, running


@asynccontextmanager
async def asking(**overrides: object) -> AsyncIterator[Rig]:
    """A streamer that asks for tokens."""
    async with running(**{**SETTINGS, **overrides}) as rig:
        yield rig


@asynccontextmanager
async def guest(
    rig: Rig, bearer: str = "", query: str = "", offers: Sequence[str] = (PROTO.name,), origin: str | None = None
) -> AsyncIterator[Client]:
    """A connection after its Welcome.

    Args:
        bearer: Token for the Authorization header.
    """
    options: dict[str, Any] = {"ping_interval": None, "max_size": None, "compression": None}
    async with connect(
        f"ws://127.0.0.1:{rig.port}/v1/stream{query}",
        subprotocols=[Subprotocol(name) for name in offers],
        additional_headers={"Authorization": f"Bearer {bearer}"} if bearer else {},
        origin=None if origin is None else Origin(origin),
        **options,
    ) as ws:
        one = Client(ws, CODECS[str(ws.subprotocol)])
        assert isinstance(await one.next(), Welcome)
        yield one


async def show(one: Client, text: str) -> None:
    """Send `auth`, and wait until it is accepted."""
    await one.send(Auth(99, text))
    assert (await one.until(Pong)).id == 99


def http(rig: Rig, bearer: str = "") -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{rig.port}", headers=headers, timeout=10)


async def ticket(rig: Rig, bearer: str | None = None) -> str:
    async with http(rig, bearer or token()) as web:
        answer = await web.post("/v1/ticket")
    assert answer.status_code == 200, answer.text
    found: str = answer.json()["ticket"]
    return found
