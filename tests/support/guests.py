"""Clients that show what they have, and the streamers that ask for it."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.typing import Origin, Subprotocol

from protos.codec import CODECS
from protos.messages import Auth, Pong, Welcome
from services.auth.store import Store
from tests.support.accounts import SETTINGS, token
from tests.support.endpoint import PROTO, Client, Rig, running


@asynccontextmanager
async def asking(store: Store | None = None, **overrides: object) -> AsyncIterator[Rig]:
    """A streamer that asks for tokens."""
    async with running(store, **{**SETTINGS, **overrides}) as rig:
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


def forgive(caplog: pytest.LogCaptureFixture, *texts: str) -> None:
    """Take the errors out of the log that a test is meant to cause: they begin with one of the texts."""
    records = caplog.get_records("call")
    records[:] = [one for one in records if not (one.name == "depthcast.auth" and one.getMessage().startswith(texts))]


async def show(one: Client, text: str) -> None:
    """Send `auth`, and wait until it is accepted."""
    await one.send(Auth(99, text))
    assert (await one.until(Pong)).id == 99


def http(rig: Rig, bearer: str = "") -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{rig.port}", headers=headers, timeout=10)


async def ticket(rig: Rig, bearer: str | None = None) -> str:
    """A ticket; asked for again while Redis is too slow for it, as clients do."""
    async with http(rig, bearer or token()) as web, asyncio.timeout(20):
        while (answer := await web.post("/v1/ticket")).status_code == 503:  # noqa: ASYNC110
            await asyncio.sleep(0.2)
    assert answer.status_code == 200, answer.text
    found: str = answer.json()["ticket"]
    return found
