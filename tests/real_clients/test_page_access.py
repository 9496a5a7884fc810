"""The page at `/` of a streamer that asks for tokens, in a real browser."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from services.auth.api_keys import new_key
from tests.real_clients.programs import browser
from tests.support.accounts import token
from tests.support.endpoint import Rig
from tests.support.guests import asking

if TYPE_CHECKING:
    from playwright.async_api import Page

pytestmark = [pytest.mark.security, pytest.mark.timeout(120)]
PATIENCE_MS = 20_000


async def shows(page: "Page", element: str, text: str) -> None:
    """Wait until an element of the page holds the text."""
    await page.wait_for_function(
        "([element, text]) => { const it = document.querySelector(element);"
        " return it && it.checkVisibility() && it.textContent.includes(text); }",
        arg=[element, text],
        timeout=PATIENCE_MS,
    )


async def give(page: "Page", secret: str) -> None:
    await page.fill("#secret", secret)
    await page.click("#access button")


async def live(page: "Page", rig: Rig) -> None:
    await shows(page, "#state", "live")
    await page.wait_for_selector("#access", state="hidden", timeout=PATIENCE_MS)
    assert rig.sample("tickets_issued_total") >= 1


async def test_a_person_shows_a_token_or_an_api_key_and_is_told_when_another_is_needed(tmp_path: Path) -> None:
    key, sha256 = new_key()
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps([{"subject": "desk-1", "sha256": sha256, "grant": {"instruments": ["*"]}}]))
    async with asking(auth_api_keys_file=keys, auth_leeway_ms=0) as rig, browser() as chrome:
        page = await chrome.new_page()
        addresses: list[str] = []
        page.on("request", lambda request: addresses.append(request.url))
        page.on("websocket", lambda socket: addresses.append(socket.url))
        await page.goto(f"http://127.0.0.1:{rig.port}/")
        await shows(page, "#asked", "This server asks who you are. Paste a token, or an API key.")
        await give(page, "dck_wrong")
        await shows(page, "#asked", "The token is wrong, or has expired.")
        brief = token(ttl_s=8)
        await give(page, brief)
        await live(page, rig)
        await shows(page, "#asked", "The token expires in")
        await shows(page, "#asked", "The token has expired.")
        await shows(page, "#state", "locked")
        await give(page, key)
        await live(page, rig)
        await page.reload()
        await live(page, rig)
        assert not [address for address in addresses if key in address or brief in address], "in no address"
