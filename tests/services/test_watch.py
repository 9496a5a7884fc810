"""`depthcast watch`: once, as lines, and what the terminal shows."""

import asyncio
import json
from contextlib import suppress

import pytest
from rich.console import Console

from protos.codec import CODECS
from protos.messages import (
    BookState,
    BookUpdate,
    Channel,
    Digest,
    Error,
    ErrorCode,
    Flag,
    Notice,
    NoticeCode,
    Reason,
    Scale,
    ServerMessage,
    Side,
    Subscribed,
    Trade,
    TradesUpdate,
    Welcome,
)
from services.client.core import ClientCore
from services.client.events import BrokenChain, Disconnected, Refused
from services.errors import UserError
from services.watch import View, json_line, ladder, run_watch, stream_depth
from tests.support.mini_streamer import KNOWN, streamer

PROTO = CODECS["depthcast.v1.proto"]
SCALE = Scale(-2, -4)
S = 1_000_000_000


@pytest.mark.parametrize(("depth", "stream"), [(1, 1), (2, 10), (20, 50), (50, 50), (200, 200), (201, 0), (0, 0)])
def test_the_smallest_offered_depth_that_shows_enough(depth: int, stream: int) -> None:
    assert stream_depth(depth) == stream


async def test_once_prints_the_book(capsys: pytest.CaptureFixture[str]) -> None:
    async with streamer() as peer:
        peer.seq = 3
        await run_watch(peer.url, KNOWN, 2, json_lines=False, once=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{KNOWN}  epoch 1  seq 3"
    words = [line.replace("█", "").replace("▏", "").replace("▌", "").split() for line in lines[1:]]
    assert words == [["size", "bid", "ask", "size"], ["0.0001", "0.03", "10000.00", "0.0001"], ["0.0001", "0.02"]]


async def test_once_as_json_is_one_snapshot(capsys: pytest.CaptureFixture[str]) -> None:
    async with streamer() as peer:
        await run_watch(peer.url, KNOWN, 20, json_lines=True, once=True)
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert found["type"] == "book"
    assert found["bids"] == [["0.01", "0.0001"]]
    assert found["asks"] == [["10000.00", "0.0001"]]


async def test_lines_of_json_decode_again(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    async with streamer() as peer:
        watching = asyncio.create_task(run_watch(peer.url, KNOWN, 20, json_lines=True, once=False))
        out = b""
        async with asyncio.timeout(5):
            while b'"trades"' not in out:
                await asyncio.sleep(0.01)
                out += capsysbinary.readouterr().out
            await peer.push(peer.delta(), peer.digest())
            while b"digest_checked" not in out:
                await asyncio.sleep(0.01)
                out += capsysbinary.readouterr().out
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["type"] for line in lines] == ["welcome", "book", "state", "trades", "state", "book", "digest_checked"]
    assert lines[-1]["passed"] is True
    assert lines[2] == {"type": "state", "instrument": KNOWN, "state": "live", "why": ""}
    updates = [CODECS["depthcast.v1.json"].decode(json.dumps(line).encode())[0] for line in lines if "prev_seq" in line]
    assert [type(update) for update in updates] == [BookUpdate, TradesUpdate, BookUpdate]
    assert isinstance(updates[2], BookUpdate)
    assert updates[2].bids == [(2, 1)]


@pytest.mark.parametrize(
    ("instruments", "says"),
    [
        (["sim:spot:BTCUSDT", "sim:spot:ETHUSDT"], "there is sim:spot:BTCUSDT, sim:spot:ETHUSDT$"),
        ([f"sim:spot:X{i}USDT" for i in range(9)], r"there is sim:spot:X.*and 4 more, see http://.*/v1/instruments$"),
        ([], r"the server has none yet; is a feed running\?$"),
    ],
)
async def test_an_unknown_instrument_is_a_line_that_says_what_exists(instruments: list[str], says: str) -> None:
    async with streamer() as peer:
        peer.instruments = instruments
        with pytest.raises(UserError, match=f"^there is no instrument sim:spot:BTC; {says}"):
            await run_watch(peer.url, "sim:spot:BTC", 20, json_lines=False, once=True)


async def test_nobody_there_is_a_line() -> None:
    with pytest.raises(UserError, match="nothing listens there; start one with `depthcast dev`"):
        await run_watch("ws://127.0.0.1:1/v1/stream", KNOWN, 20, json_lines=True, once=False)


async def test_a_ladder_without_a_terminal_is_a_line() -> None:
    with pytest.raises(UserError, match="add --json or --once"):
        await run_watch("ws://127.0.0.1:1/v1/stream", KNOWN, 20, json_lines=False, once=False)


async def test_no_live_book_in_time_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.watch.ONCE_TIMEOUT_S", 0.2)
    async with streamer() as peer:
        peer.flags = Flag.GAPPED
        with pytest.raises(UserError, match="had no live book within"):
            await run_watch(peer.url, KNOWN, 20, json_lines=False, once=True)


class Terminal:
    """A view fed through the real core and codec."""

    def __init__(self) -> None:
        self.core = ClientCore(PROTO)
        self.core.connected(0)
        book = self.core.subscribe(KNOWN, Channel.BOOK, 50)
        trades = self.core.subscribe(KNOWN, Channel.TRADES)
        self.view = View(book, trades, "ws://here", 20)
        self.push(
            0,
            Welcome("s", 15_000, 4096, 10),
            Subscribed(1, 1, KNOWN, Channel.BOOK, 50, scale=SCALE, state=BookState.SYNCED),
            Subscribed(2, 2, KNOWN, Channel.TRADES, scale=SCALE, state=BookState.SYNCED),
        )

    def push(self, now_ns: int, *messages: ServerMessage) -> None:
        for event in self.core.receive(b"".join(PROTO.encode(m, SCALE) for m in messages), now_ns):
            self.view.take(event, now_ns)

    def snapshot(self, now_ns: int, received_ns: int = 0, ask: int = 10_003) -> None:
        bids = [(9_999, 20_000), (10_001, 5_000)]
        update = BookUpdate(1, 1, 5, 0, Flag.SNAPSHOT, ts_received_ns=received_ns, scale=SCALE)
        update.bids, update.asks = bids, [(ask, 10_000)]
        self.push(now_ns, update)

    def screen(self, now_ns: int, width: int = 100, height: int = 40) -> str:
        console = Console(width=width, height=height, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
        with console.file:
            console.print(self.view.render(now_ns, height))
        return console.export_text()


def test_the_screen_of_a_live_book() -> None:
    terminal = Terminal()
    terminal.snapshot(100 * S, received_ns=100 * S - 2_500_000)
    digest = terminal.view.book.book.digest()
    trade = TradesUpdate(2, 1, 6, 0, 0, trades=[Trade(10_002, 15_000, Side.BUY)])
    terminal.push(100 * S, Digest(1, 1, 5, digest), trade)
    screen = terminal.screen(101 * S)
    for text in (
        f"{KNOWN}   LIVE",
        "100.01  100.03  1.0000",
        "spread 0.02   mid 100.020   last 100.02 x 1.5000 buy",
        "0.2 updates/s   age 1.0 s   latency 2.5 ms   digests 1 ok",
        "connected to ws://here",
    ):
        assert text in screen
    bars = [line.count("█") for line in screen.splitlines() if "99.99" in line or "100.01" in line]
    assert bars == [4 + 9, 18], "a quarter and a half of the largest size, then the largest"


def test_the_screen_of_a_book_that_is_not_live() -> None:
    terminal = Terminal()
    assert "WAITING" in terminal.screen(0)
    terminal.snapshot(100 * S)
    terminal.push(100 * S, Notice(NoticeCode.GAP, 1, 1, 5, 5, reason=Reason.CHECKSUM_MISMATCH))
    screen = terminal.screen(100 * S)
    assert "GAPPED   checksum mismatch" in screen
    assert "server says gap" in screen
    terminal.view.take(Disconnected("connection lost", 3_000), 100 * S)
    assert "connection lost, reconnecting in 3 s" in terminal.screen(100 * S)
    assert "connection lost, reconnecting in 1 s" in terminal.screen(102 * S)


def test_a_full_screen_of_80_columns_says_when_it_reconnects() -> None:
    terminal = Terminal()
    levels = [(ticks, 10_000) for ticks in range(10_000, 10_050)]
    update = BookUpdate(1, 1, 5, 0, Flag.SNAPSHOT, ts_received_ns=90 * S, bids=levels, scale=SCALE)
    terminal.push(99 * S, update)
    terminal.push(99 * S, TradesUpdate(2, 1, 6, 0, 0, trades=[Trade(10_002, 15_000, Side.BUY)]))
    refused = "cannot connect to ws://127.0.0.1:40485/v1/stream: nothing listens there"
    terminal.view.take(Disconnected(refused, 3_000), 100 * S)
    screen = terminal.screen(100 * S, width=80, height=24).splitlines()
    assert len(screen) <= 24, "the rest is cut off"
    assert "".join(screen).endswith("reconnecting in 3 s")


def test_honest_about_clocks_crossed_books_and_failed_digests() -> None:
    terminal = Terminal()
    terminal.snapshot(100 * S, received_ns=101 * S, ask=10_000)
    screen = terminal.screen(100 * S)
    assert "latency unknown: clocks differ" in screen
    assert "spread -0.01" in screen
    terminal.push(100 * S, Digest(1, 1, 5, 1))
    assert "digests 0 ok, 1 FAILED" in terminal.screen(100 * S)


def test_the_rate_forgets_what_is_old() -> None:
    terminal = Terminal()
    for i in range(10):
        terminal.snapshot(i * S // 10)
    assert terminal.view.rate(1 * S) == 2.0
    assert terminal.view.rate(20 * S) == 0.0


def test_an_empty_ladder_is_no_error() -> None:
    assert ladder([], [], None).row_count == 0
    assert ladder([(1, 1)], [], SCALE).row_count == 1


def test_lines_of_what_only_the_client_knows() -> None:
    terminal = Terminal()
    book = terminal.view.book
    refused = json.loads(json_line(Refused(book, Error(1, ErrorCode.LIMIT, "too many"))))
    assert (refused["type"], refused["code"]) == ("error", "limit")
    broken = json.loads(json_line(BrokenChain(book, None, BookUpdate(1, 1, 9, 8))))
    assert broken == {"type": "broken_chain", "instrument": KNOWN, "seq": 9, "prev_seq": 8}
    lost = json.loads(json_line(Disconnected("connection lost", 3_000)))
    assert lost == {"type": "disconnected", "why": "connection lost", "reconnect_in_ms": 3_000}
