"""The page's modules, run by Node: the same protocol as the Python client, step by step."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from random import Random
from typing import Any

from protos.book import Book
from protos.codec import CODECS
from protos.fixed import to_text
from protos.messages import BookUpdate, Channel, CloseCode, Flag
from services.client.core import ClientCore
from services.client.events import FrameError
from services.client.reconnect import Backoff, Reconnect
from tests.support.model_streamer import OPERATIONS, SCALE, ModelStreamer, Step
from tests.support.needs import need

ROOT = Path(__file__).parents[2]
STATIC = ROOT / "services" / "web" / "static"
INSTRUMENT = "sim:spot:BTCUSDT"
JSON = CODECS["depthcast.v1.json"]
CODES = [*(int(code) for code in CloseCode), 1005, 1006, 4000, 4499]


def in_node(**task: object) -> dict[str, Any]:
    """What the page's modules make of it."""
    need("" if shutil.which("node") else "node is missing (Debian: apt-get install nodejs)")
    defaults = {"directory": str(STATIC), "instrument": INSTRUMENT, "transcripts": [], "books": [], "codes": []}
    command = ["node", str(ROOT / "tests" / "support" / "page_replay.mjs")]
    given = json.dumps({**defaults, **task})
    done = subprocess.run(command, check=False, input=given, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def history(seed: int) -> list[Step]:
    """What a client saw of a streamer that loses, repeats, corrupts, gaps and disconnects."""
    rng = Random(seed)
    peer = ModelStreamer(JSON, rng)
    peer.core.subscribe(INSTRUMENT, Channel.BOOK)
    peer.connect()
    for _ in range(40):
        try:
            OPERATIONS[rng.choice(sorted(OPERATIONS))](peer)
        except FrameError:
            peer.reconnect()
    return peer.transcript


def replay(steps: list[Step]) -> list[dict[str, Any]]:
    """The same through the Python client."""
    core = ClientCore(JSON)
    book = core.subscribe(INSTRUMENT, Channel.BOOK)
    seen: list[dict[str, Any]] = []
    for kind, data in steps:
        error, commands = False, []
        try:
            if kind == "connected":
                core.connected(0)
            elif kind == "closed":
                core.closed(None, 0, Random(1))
                list(core.stale())
            elif kind == "frame":
                list(core.receive(data[0].encode(), 0))
            else:
                commands = [json.loads(command) for command in core.commands()]
        except FrameError:
            error = True
        left_out = ("slow_policy", None)
        position = book.position and {"epoch": book.position.epoch, "seq": book.position.seq}
        seen.append(
            {
                "error": error,
                "commands": [{k: v for k, v in c.items() if k not in left_out and v is not None} for c in commands],
                "state": book.state.value,
                "position": position,
                "digest": book.book.digest(),
                "counts": [book.broken, book.digests_passed, book.digests_failed, book.conflated],
            }
        )
    return seen


def test_the_page_and_the_python_client_agree_on_every_step() -> None:
    transcripts = [history(seed) for seed in range(60)]
    found = in_node(transcripts=transcripts)["transcripts"]
    for steps, theirs in zip(transcripts, found, strict=True):
        ours = replay(steps)
        for i, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
            assert other == mine, steps[: i + 1]
    assert {seen["state"] for run in found for seen in run} == {"waiting", "live", "gapped", "stale"}
    assert all(sum(run[-1]["counts"][i] for run in found) > 10 for i in range(4))


def test_books_beyond_the_numbers_of_javascript() -> None:
    rng = Random(5)
    updates = [
        BookUpdate(
            flags=Flag.SNAPSHOT,
            bids=sorted({rng.randrange(-(10**17), 10**17): rng.randrange(1, 10**18) for _ in range(40)}.items()),
            asks=sorted({rng.randrange(-(10**17), 10**17): rng.randrange(1, 10**18) for _ in range(n)}.items()),
        )
        for n in (0, 10, 40)
    ]
    found = in_node(books=[json.loads(JSON.encode(update, SCALE)) for update in updates])["books"]
    for update, theirs in zip(updates, found, strict=True):
        book = Book()
        book.apply(update)
        bids, asks = book.top(0)
        assert theirs["digest"] == book.digest()
        assert theirs["levels"] == [[to_text(ticks, -2), str(ticks)] for ticks, _ in bids + asks]


def test_the_page_comes_back_when_the_python_client_does() -> None:
    for code, delay in zip(CODES, in_node(codes=CODES)["delays"], strict=True):
        comes_back = isinstance(Backoff().closed(code, 0, 0, Random(1)), Reconnect)
        assert delay == (2000 if comes_back else None), code


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.inline = 0
        self.feed((STATIC / "index.html").read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids |= {found["id"] or ""} if "id" in found else set()
        self.links += [value for name, value in attrs if name in ("src", "href") and value]
        self.inline += "style" in found or any(name.startswith("on") for name in found)
        self.inline += tag in ("script", "style") and "src" not in found


def test_the_page_asks_nobody_else_for_anything() -> None:
    page = Page()
    assert all(link.startswith("/") for link in page.links)
    assert page.inline == 0, "a strict content security policy must be possible"
    for link in page.links:
        if link.startswith("/static/"):
            assert (STATIC / link.removeprefix("/static/")).is_file()
    for path in STATIC.iterdir():
        addresses = set(re.findall(r"https?://[^\s\"'`$]+", path.read_text()))
        assert addresses <= {"http://www.w3.org/2000/svg"}, path


def test_the_script_and_the_page_name_the_same_elements() -> None:
    script = (STATIC / "app.js").read_text()
    assert set(re.findall(r"\$\(\"(\w+)\"\)", script)) == Page().ids
