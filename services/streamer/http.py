"""The HTTP API: instruments, books and last trades as JSON, and the page at `/`.

Prices and sizes are decimal strings, exact. Errors are problem details (RFC 9457). This is for a look, a
script or a start; what changes is better read from the stream.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import orjson
from fastapi import FastAPI, Query, Request
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, Response

from protos.codec import CODECS
from protos.fixed import to_text
from protos.messages import BookState, Channel, Flag, Levels, Scale
from services.auth.exchange import Exchange
from services.auth.gate import Gate
from services.streamer.accounts import AddressCheck, Cors, add_accounts, caller
from services.streamer.problems import add_errors, described, problem
from streamer.access import Access
from streamer.hub import Hub
from streamer.streams import StreamKey

STATIC = Path(__file__).parents[1] / "web" / "static"
DEPTH_MAX = 5_000
TRADES_MAX = 256


class Instrument(BaseModel):
    instrument: str = Field(description="venue:market:symbol", examples=["binance:spot:BTCUSDT"])
    state: str = Field(description="waiting, synced, gapped or stale; only synced is live.", examples=["synced"])
    tick_size: str | None = Field(description="The step of prices; absent until the first price.", examples=["0.01"])
    lot_size: str | None = Field(description="The step of sizes.", examples=["0.00001"])


class InstrumentList(BaseModel):
    instruments: list[Instrument]


class BookSnapshot(BaseModel):
    instrument: str = Field(examples=["binance:spot:BTCUSDT"])
    state: str = Field(examples=["synced"])
    epoch: int = Field(description="Sequences compare only within one epoch.", examples=[1653350400000])
    seq: int = Field(description="Give epoch and seq as `resume` to go on from here.", examples=[184467])
    flags: list[str] = Field(description="Of crossed, stale, gapped; empty is live and sane.", examples=[[]])
    bids: list[tuple[str, str]] = Field(
        description="[price, size], best first.", examples=[[["29093.79", "1.19930"], ["29093.78", "0.12000"]]]
    )
    asks: list[tuple[str, str]] = Field(
        description="[price, size], best first.", examples=[[["29093.80", "0.42100"], ["29094.01", "2.00000"]]]
    )


class PublicTrade(BaseModel):
    price: str = Field(examples=["29093.80"])
    size: str = Field(examples=["0.01000"])
    side: str = Field(description="Of the aggressor: buy, sell or unknown.", examples=["buy"])
    trade_id: str = Field(description="The venue's.", examples=["1387212"])
    ts_event_ns: str = Field(
        description="Nanoseconds since 1970 as text: more than a JavaScript number holds.",
        examples=["1653350400123000000"],
    )


class TradeList(BaseModel):
    instrument: str = Field(examples=["binance:spot:BTCUSDT"])
    trades: list[PublicTrade] = Field(description="Oldest first.")


def _json(content: dict[str, Any]) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")


class _Reader:
    """What the API reads of the hub."""

    def __init__(self, hub: Hub, why_not_ready: Callable[[], str], gate: Gate) -> None:
        self.hub = hub
        self._why_not_ready = why_not_ready
        self._gate = gate

    def check(self, request: Request, key: StreamKey | None = None) -> Access:
        """What the caller may have.

        Raises:
            HTTPException: 401 or 403 for who may not, 503 before the books have caught up, 404 for an instrument that
                is not known.
        """
        access, instrument = caller(self._gate, request), None if key is None else key.instrument
        if key is not None and (refused := access.refuses(key)):
            raise HTTPException(403, refused)
        if reason := self._why_not_ready():
            raise HTTPException(503, reason, {"Retry-After": "2"})
        if instrument is not None and self.hub.status(instrument) is None:
            raise HTTPException(404, f"there is no instrument {instrument[:128]}; see /v1/instruments")
        return access

    def scale(self, instrument: str) -> Scale | None:
        book = self.hub.book(instrument)
        return None if book is None else book.scale

    def summary(self, instrument: str) -> dict[str, Any]:
        scale, status = self.scale(instrument), self.hub.status(instrument)
        return {
            "instrument": instrument,
            "state": BookState.WAITING.name.lower() if status is None else status.state.name.lower(),
            "tick_size": None if scale is None else to_text(1, scale.price_exponent),
            "lot_size": None if scale is None else to_text(1, scale.size_exponent),
        }

    def book(self, instrument: str, depth: int) -> dict[str, Any]:
        book, status = self.hub.book(instrument), self.hub.status(instrument)
        if book is None or book.scale is None or status is None:
            raise HTTPException(503, f"{instrument} has no book yet; try again soon", {"Retry-After": "2"})
        flags = Flag.CROSSED if book.crossed else Flag.NONE
        flags |= {BookState.GAPPED: Flag.GAPPED, BookState.STALE: Flag.STALE}.get(status.state, Flag.NONE)
        bids, asks = book.top(depth)
        return {
            "instrument": instrument,
            "state": status.state.name.lower(),
            "epoch": book.epoch,
            "seq": book.seq,
            "flags": [str(flag.name).lower() for flag in flags],
            "bids": _texts(bids, book.scale),
            "asks": _texts(asks, book.scale),
        }

    def trades(self, instrument: str, limit: int) -> dict[str, Any]:
        scale = self.scale(instrument)
        trades = [] if scale is None else self.hub.last_trades(instrument)[-limit:]
        return {
            "instrument": instrument,
            "trades": [
                {
                    "price": to_text(trade.ticks, scale.price_exponent),
                    "size": to_text(trade.lots, scale.size_exponent),
                    "side": trade.side.name.lower(),
                    "trade_id": trade.trade_id,
                    "ts_event_ns": str(trade.ts_event_ns),
                }
                for trade in trades
                if scale is not None
            ],
        }


def _texts(levels: Levels, scale: Scale) -> list[tuple[str, str]]:
    price, size = scale.price_exponent, scale.size_exponent
    return [(to_text(ticks, price), to_text(lots, size)) for ticks, lots in levels]


def create_api(hub: Hub, why_not_ready: Callable[[], str], gate: Gate, exchange: Exchange) -> FastAPI:
    """The application.

    Args:
        why_not_ready: Empty when the books have caught up, else the reason; asked at each request.
    """
    api = FastAPI(
        title="depthcast",
        version="1",
        description="Order books and trades. Live updates: WebSocket at `/v1/stream`, with one of the subprotocols "
        + ", ".join(f"`{name}`" for name in CODECS),
        redoc_url=None,
    )
    reader = _Reader(hub, why_not_ready, gate)
    add_errors(api)
    add_accounts(api, gate, exchange)
    _add_routes(api, reader)
    api.add_middleware(AddressCheck)
    api.add_middleware(Cors, origins=gate.origins)
    if (STATIC / "index.html").is_file():
        api.mount("/static", StaticFiles(directory=STATIC))
        api.add_route("/", lambda _request: FileResponse(STATIC / "index.html"), include_in_schema=False)
    return api


def _add_routes(api: FastAPI, reader: _Reader) -> None:
    @api.get("/v1/instruments", response_model=InstrumentList, responses=described(401, 403, 503))
    async def list_instruments(request: Request) -> Response:
        """All instruments that this server has seen, and the caller may see, with their state."""
        access = reader.check(request)
        names = [name for name in sorted(reader.hub.instruments()) if access.covers(name)]
        return _json({"instruments": [reader.summary(name) for name in names]})

    @api.get(
        "/v1/instruments/{instrument:path}/book",
        response_model=BookSnapshot,
        responses=described(401, 403, 404, 422, 503),
    )
    async def get_book(
        request: Request,
        instrument: str,
        depth: Annotated[int, Query(ge=0, le=DEPTH_MAX, description="Levels of each side; 0 is the full book.")] = 50,
    ) -> Response:
        """The book now."""
        reader.check(request, StreamKey(instrument, Channel.BOOK, depth))
        return _json(reader.book(instrument, depth))

    @api.get(
        "/v1/instruments/{instrument:path}/trades",
        response_model=TradeList,
        responses=described(401, 403, 404, 422, 503),
    )
    async def get_trades(
        request: Request,
        instrument: str,
        limit: Annotated[int, Query(ge=1, le=TRADES_MAX, description="Trades at most.")] = 50,
    ) -> Response:
        """The last trades."""
        reader.check(request, StreamKey(instrument, Channel.TRADES))
        return _json(reader.trades(instrument, limit))

    @api.get("/v1/stream", include_in_schema=False)
    async def stream() -> Response:
        """A plain request where a WebSocket handshake belongs."""
        detail = f"connect with a WebSocket client that offers one of {', '.join(CODECS)}"
        return problem(426, detail, {"Upgrade": "websocket", "Connection": "Upgrade"})
