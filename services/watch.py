"""`depthcast watch`: an order book in the terminal, as lines of JSON, or once."""

import asyncio
import sys
import time
from collections import deque
from contextlib import suppress
from difflib import get_close_matches
from urllib.parse import urlsplit, urlunsplit

import httpx
import orjson
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from protos.codec import CODECS
from protos.fixed import to_text
from protos.messages import (
    DEPTHS,
    BookUpdate,
    Channel,
    ErrorCode,
    Flag,
    Levels,
    Scale,
    Side,
    Trade,
    TradesUpdate,
)
from services.client.aio import Client, connect
from services.client.events import (
    BrokenChain,
    DigestChecked,
    Disconnected,
    Event,
    Noticed,
    Opened,
    Refused,
    StateChanged,
    StreamState,
    TerminalError,
    Updated,
)
from services.client.subscription import Subscription
from services.client.tokens import from_text
from services.errors import UserError

REFRESH_S = 0.1
RATE_WINDOW_S = 5.0
ONCE_TIMEOUT_S = 10.0
BAR_CELLS = 18
LINES_BESIDE = 7
"""Of a screen, beside its levels: title, heads, market, and two each for health and connection, which may wrap."""
_SHOW = "show a token or an API key with --token or DEPTHCAST_TOKEN"
_JSON = CODECS["depthcast.v1.json"]
_STATE_STYLE = {
    StreamState.WAITING: "black on yellow",
    StreamState.LIVE: "black on green",
    StreamState.GAPPED: "white on red",
    StreamState.STALE: "black on yellow",
}


async def run_watch(url: str, instrument: str, depth: int, json_lines: bool, once: bool, token: str = "") -> None:
    """Show one instrument until interrupted, or print its book and return (``once``).

    Args:
        url: Of a streamer's endpoint.
        depth: Levels of each side shown; 0 is as many as there are.
        json_lines: Print messages, one JSON object per line, prices and sizes as decimal strings.
        token: Token or API key; "" for a streamer that asks for none.

    Raises:
        UserError: No streamer answers there, there is no such instrument, or stdout is no terminal.
    """
    console = Console()
    if not (json_lines or once or console.is_terminal):
        raise UserError("the ladder needs a terminal; add --json or --once to write to a file or a pipe")
    try:
        async with connect(url, token=from_text(token, url)) as client:
            book = await client.subscribe(instrument, Channel.BOOK, stream_depth(depth))
            if once:
                await asyncio.wait_for(_until_live(client, book, url), ONCE_TIMEOUT_S)
                _print_once(console, book, depth, json_lines)
                return
            trades = await client.subscribe(instrument, Channel.TRADES)
            view = View(book, trades, url, depth)
            await (_print_lines(client, url) if json_lines else _show(client, view, console))
    except TimeoutError:
        raise UserError(f"{instrument} had no live book within {ONCE_TIMEOUT_S:.0f} s; is its feed running?") from None
    except TerminalError as error:
        start = "start one with `depthcast dev`, or say where it is with --url"
        raise UserError(f"{error}; {_SHOW if 'token' in str(error) else start}") from None


def stream_depth(depth: int) -> int:
    """The smallest depth that a server offers and that shows ``depth`` levels; 0 is the full book."""
    return min((offered for offered in DEPTHS if offered >= depth > 0), default=0)


async def _until_live(client: Client, book: Subscription, url: str) -> None:
    async for event in client:
        await _check_refused(event, url)
        if book.live:
            return


async def _check_refused(event: Event, url: str) -> None:
    if isinstance(event, Refused):
        wanted = event.subscription.instrument if event.subscription else ""
        if event.error.code is ErrorCode.UNKNOWN_INSTRUMENT:
            raise UserError(f"there is no instrument {wanted}; {await _existing(url, wanted)}")
        hint = f"; {_SHOW}" if event.error.code is ErrorCode.FORBIDDEN else ""
        raise UserError(f"the server refuses {wanted}: {event.error.message}{hint}")


async def _existing(url: str, wanted: str) -> str:
    """What there is instead, in words."""
    parts = urlsplit(url)
    address = urlunsplit(("https" if parts.scheme == "wss" else "http", parts.netloc, "/v1/instruments", "", ""))
    try:
        async with httpx.AsyncClient(timeout=2.0) as http:
            names = [item["instrument"] for item in (await http.get(address)).json()["instruments"]]
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return f"see {address}"
    if not names:
        return "the server has none yet; is a feed running?"
    near = get_close_matches(wanted, names, 5, 0.5) or names[:5]
    more = f" and {len(names) - len(near)} more, see {address}" if len(names) > len(near) else ""
    return f"there is {', '.join(near)}{more}"


# ---- lines of JSON


async def _print_lines(client: Client, url: str) -> None:
    async for event in client:
        await _check_refused(event, url)
        if line := json_line(event):
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()


def json_line(event: Event) -> bytes:
    """A message as the server's JSON codec writes it; what only the client knows as an object of its own type."""
    match event:
        case Updated(subscription, message):
            return _JSON.encode(message, subscription.scale)
        case Noticed(_, notice):
            return _JSON.encode(notice)
        case Opened(welcome):
            return _JSON.encode(welcome)
        case Refused(_, error):
            return _JSON.encode(error)
        case StateChanged(subscription, state, why):
            return _line("state", instrument=subscription.instrument, state=state.value, why=why)
        case DigestChecked(subscription, seq, passed):
            return _line("digest_checked", instrument=subscription.instrument, seq=seq, passed=passed)
        case BrokenChain(subscription, _, message):
            return _line("broken_chain", instrument=subscription.instrument, seq=message.seq, prev_seq=message.prev_seq)
        case Disconnected(why, delay_ms):
            return _line("disconnected", why=why, reconnect_in_ms=delay_ms)
    return b""


def _line(kind: str, **fields: object) -> bytes:
    return orjson.dumps({"type": kind, **fields}) + b"\n"


# ---- once


def _print_once(console: Console, book: Subscription, depth: int, as_json: bool) -> None:
    bids, asks = book.book.top(depth)
    if as_json:
        message = BookUpdate(
            epoch=book.book.epoch,
            seq=book.book.seq,
            flags=Flag.SNAPSHOT,
            bids=sorted(bids),
            asks=asks,
            scale=book.scale,
        )
        sys.stdout.buffer.write(_JSON.encode(message, book.scale))
        return
    console.print(Text(f"{book.instrument}  epoch {book.book.epoch}  seq {book.book.seq}"))
    console.print(ladder(bids, asks, book.scale))


# ---- the live ladder


class View:
    """What the terminal shows, kept up to date by events."""

    def __init__(self, book: Subscription, trades: Subscription, url: str, depth: int) -> None:
        self.book, self.trades, self.url, self.depth = book, trades, url, depth
        self.connection = f"connected to {url}"
        self.retry_at_ns = 0
        self.last_trade: Trade | None = None
        self.updated_ns = 0
        self.latency_ns: int | None = None
        self.notice = ""
        self._arrivals: deque[int] = deque(maxlen=50_000)

    def take(self, event: Event, now_ns: int) -> None:
        """Learn from an event."""
        match event:
            case Updated(_, BookUpdate() as update):
                self.updated_ns = now_ns
                self._arrivals.append(now_ns)
                self.latency_ns = now_ns - update.ts_received_ns if update.ts_received_ns else None
            case Updated(_, TradesUpdate(trades=[*_, last])):
                self.last_trade = last
            case Opened():
                self.connection, self.retry_at_ns = f"connected to {self.url}", 0
            case Disconnected(why, delay_ms):
                self.connection, self.retry_at_ns = why, now_ns + delay_ms * 1_000_000
            case Noticed(_, notice):
                self.notice = f"server says {notice.code.name.lower()}"

    def rate(self, now_ns: int) -> float:
        """Updates per second over the last seconds."""
        while self._arrivals and self._arrivals[0] < now_ns - RATE_WINDOW_S * 1e9:
            self._arrivals.popleft()
        return len(self._arrivals) / RATE_WINDOW_S

    def render(self, now_ns: int, height: int) -> RenderableType:
        """The whole screen, on a terminal with so many lines."""
        rows = max(1, height - LINES_BESIDE)
        depth = min(self.depth or rows, rows)
        bids, asks = self.book.book.top(depth)
        return Group(
            self._title(),
            ladder(bids, asks, self.book.scale),
            self._market(bids, asks),
            self._health(now_ns),
            self._line(now_ns),
        )

    def _title(self) -> Text:
        state = self.book.state
        title = Text.assemble((self.book.instrument, "bold"), "  ", (f" {state.value.upper()} ", _STATE_STYLE[state]))
        if self.book.why:
            title.append(f"  {self.book.why}", "dim")
        return title

    def _market(self, bids: Levels, asks: Levels) -> Text:
        scale = self.book.scale
        text = Text()
        if scale is not None and bids and asks:
            exponent = scale.price_exponent
            spread = asks[0][0] - bids[0][0]
            text.append(f"spread {to_text(spread, exponent)}", "bold red" if spread <= 0 else "bold")
            text.append(f"   mid {to_text((asks[0][0] + bids[0][0]) * 5, exponent - 1)}")
        trade, scale = self.last_trade, self.trades.scale
        if trade is not None and scale is not None:
            style = {Side.BUY: "green", Side.SELL: "red"}.get(trade.side, "white")
            size = to_text(trade.lots, scale.size_exponent)
            text.append("   last ")
            text.append(f"{to_text(trade.ticks, scale.price_exponent)} x {size} {trade.side.name.lower()}", style)
        return text

    def _health(self, now_ns: int) -> Text:
        book = self.book
        text = Text(f"{self.rate(now_ns):.1f} updates/s")
        if self.updated_ns:
            text.append(f"   age {(now_ns - self.updated_ns) / 1e9:.1f} s")
        if self.latency_ns is not None:
            known = self.latency_ns >= 0
            text.append(f"   latency {self.latency_ns / 1e6:.1f} ms" if known else "   latency unknown: clocks differ")
        if book.digests_failed:
            text.append(f"   digests {book.digests_passed} ok, {book.digests_failed} FAILED", "bold red")
        else:
            text.append(f"   digests {book.digests_passed} ok", "green" if book.digests_passed else "dim")
        text.append(f"   broken {book.broken}   conflated {book.conflated}", "dim")
        return text

    def _line(self, now_ns: int) -> Text:
        if self.retry_at_ns:
            wait_s = max(0, -((now_ns - self.retry_at_ns) // 1_000_000_000))
            return Text(f"{self.connection}, reconnecting in {wait_s} s", "bold yellow")
        return Text(self.connection + (f"   {self.notice}" if self.notice else ""), "dim")


def ladder(bids: Levels, asks: Levels, scale: Scale | None) -> Table:
    """Bids left, asks right, best on top, with bars as long as the sizes are large."""
    table = Table(box=None, padding=(0, 1), show_header=True, header_style="dim")
    for name, justify in (("", "right"), ("size", "right"), ("bid", "right"), ("ask", "left"), ("size", "left")):
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    table.add_column("", justify="left", no_wrap=True)
    largest = max((lots for _, lots in bids + asks), default=1)
    for i in range(max(len(bids), len(asks))):
        left = _cells(bids, i, scale, largest, "green")
        right = _cells(asks, i, scale, largest, "red")
        table.add_row(*left, *reversed(right))
    return table


def _cells(levels: Levels, i: int, scale: Scale | None, largest: int, style: str) -> list[Text]:
    """Bar, size, price."""
    if i >= len(levels) or scale is None:
        return [Text(), Text(), Text()]
    ticks, lots = levels[i]
    eighths = max(1, round(lots * BAR_CELLS * 8 / largest))
    bar = "█" * (eighths // 8) + ("▌" if eighths % 8 >= 4 else "" if eighths >= 8 else "▏")
    price = Text(to_text(ticks, scale.price_exponent), f"bold {style}" if i == 0 else style)
    return [Text(bar, style), Text(to_text(lots, scale.size_exponent)), price]


async def _show(client: Client, view: View, console: Console) -> None:
    with Live(console=console, screen=True, auto_refresh=False, transient=True) as live:
        painter = asyncio.create_task(_paint(live, view, console))
        try:
            async for event in client:
                await _check_refused(event, view.url)
                view.take(event, time.time_ns())
        finally:
            painter.cancel()
            with suppress(asyncio.CancelledError):
                await painter


async def _paint(live: Live, view: View, console: Console) -> None:
    while True:
        live.update(view.render(time.time_ns(), console.size.height), refresh=True)
        await asyncio.sleep(REFRESH_S)
