"""The client and its tokens: fetched for each connection, renewed in time, and what happens when there is none."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from random import Random

import pytest

from services.auth.api_keys import new_key
from services.client.aio import Client, connect
from services.client.events import Disconnected, Event, Noticed, Opened, Refused, TerminalError, Updated
from services.client.tokens import NoTokenError, from_api_key, from_text
from services.errors import UserError
from services.watch import run_watch
from tests.support.accounts import token
from tests.support.endpoint import BTC, Rig
from tests.support.guests import asking


@pytest.fixture
def key(tmp_path: Path) -> tuple[str, Path]:
    """An API key, and the file that has its hash."""
    found, sha256 = new_key()
    path = tmp_path / "keys.json"
    path.write_text(json.dumps([{"subject": "desk-1", "sha256": sha256, "grant": {"instruments": ["binance:*"]}}]))
    return found, path


@pytest.fixture
async def rig(key: tuple[str, Path]) -> AsyncIterator[Rig]:
    async with asking(auth_api_keys_file=key[1], auth_leeway_ms=0) as one:
        yield one


def url(rig: Rig) -> str:
    return f"ws://127.0.0.1:{rig.port}/v1/stream"


async def until(client: Client, wanted: Callable[[Event], object], seconds: float = 15.0) -> list[Event]:
    events: list[Event] = []
    async with asyncio.timeout(seconds):
        async for event in client:
            events.append(event)
            if wanted(event):
                break
    return events


class Source:
    """Gives one token after the other; a failure is raised instead."""

    def __init__(self, *tokens: str | Exception) -> None:
        self.tokens = list(tokens)
        self.asked = 0

    async def __call__(self) -> str:
        self.asked += 1
        one = self.tokens.pop(0)
        if isinstance(one, Exception):
            raise one
        return one


async def test_a_token_and_an_api_key_open_the_stream(rig: Rig, key: tuple[str, Path]) -> None:
    for shown in (token(), key[0]):
        async with connect(url(rig), token=from_text(shown, url(rig))) as client:
            await client.subscribe(BTC)
            await until(client, lambda event: isinstance(event, Updated))
    assert rig.sample("tokens_issued_total", by="api_key") == 1


async def test_a_token_is_renewed_before_it_expires_and_the_stream_goes_on(rig: Rig) -> None:
    source = Source(token(ttl_s=3), token(ttl_s=300))
    async with connect(url(rig), token=source) as client:
        await until(client, lambda event: isinstance(event, Noticed))
        assert source.asked == 2
        await asyncio.sleep(3)
        await client.subscribe(BTC)
        events = await until(client, lambda event: isinstance(event, Updated))
        assert not [event for event in events if isinstance(event, Disconnected | Refused)]


async def test_who_could_not_renew_in_time_comes_back_with_another_token(rig: Rig) -> None:
    source = Source(token(ttl_s=2), NoTokenError("nobody answers"), token(ttl_s=300))
    async with connect(url(rig), token=source, rng=Random(1)) as client:
        await client.subscribe(BTC)
        events = await until(client, lambda event: isinstance(event, Disconnected))
        assert [event for event in events if isinstance(event, Updated)]
        await until(client, lambda event: isinstance(event, Opened))
        assert source.asked == 3


async def test_a_text_that_has_expired_is_the_end(rig: Rig) -> None:
    async with connect(url(rig), token=token(ttl_s=2)) as client:
        with pytest.raises(TerminalError, match="token"):
            await until(client, lambda _: False)


async def test_without_a_token_there_is_no_connection(rig: Rig) -> None:
    for source, said in (
        (Source(TerminalError("the key is refused")), "the key is refused"),
        (Source(NoTokenError("nobody answers")), "nobody answers"),
        (from_api_key("dck_unknown", url(rig)), "the API key is not known"),
        ("rubbish", "the token is missing or wrong"),
    ):
        with pytest.raises(TerminalError, match=said) as raised:
            async with connect(url(rig), token=source):
                pass
        assert "dck_unknown" not in str(raised.value)


async def test_nobody_who_gives_tokens_is_not_the_end_once_a_stream_was_open(rig: Rig) -> None:
    fetch = from_api_key("dck_any", "ws://127.0.0.1:1/v1/stream")
    with pytest.raises(NoTokenError, match="ConnectError"):
        await fetch()
    source = Source(token(), NoTokenError("nobody answers"), token())
    async with connect(url(rig), token=source, rng=Random(1)) as client:
        await until(client, lambda event: isinstance(event, Opened))
        for member in list(rig.endpoint.clients.members.values()):
            member.abort()
        events = await until(client, lambda event: isinstance(event, Opened))
        assert [event.why for event in events if isinstance(event, Disconnected)] == [
            "connection lost",
            "nobody answers",
        ]


async def test_watch_shows_a_key_and_says_when_one_is_needed(
    rig: Rig, key: tuple[str, Path], capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    await run_watch(url(rig), BTC, 10, json_lines=True, once=True, token=key[0])
    assert json.loads(capfdbinary.readouterr().out)["bids"] == [["1.00", "0.005"]]
    with pytest.raises(UserError, match="--token or DEPTHCAST_TOKEN"):
        await run_watch(url(rig), BTC, 10, json_lines=True, once=True)
    with pytest.raises(UserError, match="--token or DEPTHCAST_TOKEN"):
        await run_watch(url(rig), BTC, 10, json_lines=True, once=True, token="rubbish")
    with pytest.raises(UserError, match="does not allow 'kraken:spot:X'"):
        await run_watch(url(rig), "kraken:spot:X", 10, json_lines=True, once=True, token=key[0])
