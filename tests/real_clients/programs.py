"""Clients outside Python: node's two, the JDK's, Chromium's."""

import asyncio
import base64
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from tests.real_clients.puppet import CACHE, PUPPETS, Closed, Program, program
from tests.support.needs import need

if TYPE_CHECKING:
    from playwright.async_api import Browser

JAVA_MIN = 17
PAGE = """([url, subprotocol]) => new Promise((resolve, reject) => {
    const socket = new WebSocket(url, subprotocol);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => resolve(socket.protocol);
    socket.onerror = () => reject(new Error("no connection"));
    socket.onmessage = ({ data }) => {
        if (typeof data === "string") return say("text", data, "");
        let octets = "";
        for (const octet of new Uint8Array(data)) octets += String.fromCharCode(octet);
        return say("binary", btoa(octets), "");
    };
    socket.onclose = ({ code, reason }) => say("closed", String(code), reason);
    window.socket = socket;
})"""


@asynccontextmanager
async def node_ws() -> AsyncIterator[Program]:
    """The library `ws`, which most of node's programs use."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        need("node or npm is missing (Debian: apt-get install nodejs npm)")
    library = CACHE / "node_modules" / "ws" / "wrapper.mjs"
    if not library.is_file():
        CACHE.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(PUPPETS.parent / name, CACHE)
        command = [str(npm), "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = await asyncio.to_thread(subprocess.run, command, cwd=CACHE, capture_output=True, text=True, timeout=100)
        if done.returncode:
            need(f"npm cannot install ws: {done.stderr[-500:]}")
    async with program(str(node), PUPPETS / "puppet.mjs", library) as one:
        yield one


@asynccontextmanager
async def node_own() -> AsyncIterator[Program]:
    """The WebSocket that node has built in since version 22; Playwright brings such a node along."""
    from playwright._impl._driver import compute_driver_executable

    async with program(compute_driver_executable()[0], PUPPETS / "puppet.mjs") as one:
        yield one


@asynccontextmanager
async def jdk() -> AsyncIterator[Program]:
    """HttpClient of the JDK, from its source."""
    if shutil.which("java") is None or shutil.which("javac") is None:
        need(f"a JDK {JAVA_MIN} is missing (Debian: apt-get install openjdk-17-jdk-headless)")
    source = PUPPETS / "Puppet.java"
    async with program("java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx128m", source) as one:
        yield one


class Page:
    """A page in Chromium. It comes from the endpoint, so that its origin is one that may connect."""

    def __init__(self, page: object, heard: "asyncio.Queue[tuple[str, str, str]]") -> None:
        self._page = page
        self._heard = heard
        self._at = ""

    async def open(self, url: str, subprotocol: str) -> str:
        if self._at != url:
            await self._page.goto(url.replace("ws://", "http://").replace("/v1/stream", "/v1/instruments"))
            self._at = url
        agreed: str = await self._page.evaluate(PAGE, [url, subprotocol])
        return agreed

    async def send(self, data: str | bytes) -> None:
        if isinstance(data, str):
            await self._page.evaluate("data => socket.send(data)", data)
        else:
            await self._page.evaluate("octets => socket.send(new Uint8Array(octets))", list(data))

    async def receive(self) -> str | bytes | Closed:
        what, data, reason = await self._heard.get()
        if what == "closed":
            return Closed(int(data), reason)
        return data if what == "text" else base64.b64decode(data)

    async def close(self) -> None:
        await self._page.evaluate("() => socket.close(1000)")


@asynccontextmanager
async def browser() -> AsyncIterator["Browser"]:
    """Debian's Chromium, without a window."""
    from playwright.async_api import async_playwright

    path = shutil.which("chromium")
    need("" if path else "Chromium is missing (Debian: apt-get install chromium)")
    async with async_playwright() as playwright:
        found = await playwright.chromium.launch(executable_path=str(path), args=["--no-sandbox"], timeout=60_000)
        try:
            yield found
        finally:
            await found.close()


@asynccontextmanager
async def chromium() -> AsyncIterator[Page]:
    """A page that does what the test says."""
    async with browser() as found:
        page = await found.new_page()
        heard: asyncio.Queue[tuple[str, str, str]] = asyncio.Queue()
        await page.expose_function("say", lambda *event: heard.put_nowait(event))
        yield Page(page, heard)
