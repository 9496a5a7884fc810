"""The HTTP API: what it says of books and trades, and how it says no."""

from collections.abc import AsyncIterator

import httpx
import pytest
from pydantic import TypeAdapter

from protos.fixed import scaled
from protos.messages import BookState, BookUpdate, Flag, Reason, Scale, Side, StatusUpdate, Trade, TradesUpdate
from services.streamer.http import BookSnapshot, InstrumentList, PublicTrade, TradeList
from services.streamer.problems import Problem
from tests.support.endpoint import BTC, Rig, running

CHF = "kraken:spot:XBT/CHF"


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with running() as one:
        yield one


@pytest.fixture
async def http(rig: Rig) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{rig.port}") as one:
        yield one


def problem(response: httpx.Response, status: int) -> Problem:
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    found = Problem.model_validate_json(response.content)
    assert found.status == status
    return found


async def test_the_book_is_exact_text_best_first(rig: Rig, http: httpx.AsyncClient) -> None:
    rig.apply(BookUpdate(epoch=1, seq=2, prev_seq=1, bids=[(98, 1_000), (99, 123)], asks=[(102, 1)]))
    book = BookSnapshot.model_validate_json((await http.get(f"/v1/instruments/{BTC}/book")).content)
    assert (book.instrument, book.state, book.epoch, book.seq, book.flags) == (BTC, "synced", 1, 2, [])
    assert book.bids == [("1.00", "0.005"), ("0.99", "0.123"), ("0.98", "1.000")]
    assert book.asks == [("1.01", "0.007"), ("1.02", "0.001")]
    assert [scaled(price, -2) for price, _ in book.bids] == [100, 99, 98]


async def test_depth_cuts_each_side_and_0_is_all_of_it(rig: Rig, http: httpx.AsyncClient) -> None:
    rig.apply(BookUpdate(epoch=1, seq=2, prev_seq=1, bids=[(i, 1) for i in range(1, 80)]))
    for depth, levels in ((1, 1), (50, 50), (0, 80), (None, 50)):
        params = {} if depth is None else {"depth": depth}
        book = (await http.get(f"/v1/instruments/{BTC}/book", params=params)).json()
        assert (len(book["bids"]), len(book["asks"])) == (levels, 1)


async def test_an_instrument_may_contain_a_slash(rig: Rig, http: httpx.AsyncClient) -> None:
    rig.hub.apply(CHF, BookUpdate(epoch=1, seq=1, flags=Flag.SNAPSHOT, bids=[(7, 1)], scale=Scale(0, 0)), 1)
    assert (await http.get(f"/v1/instruments/{CHF}/book")).json()["bids"] == [["7", "1"]]
    assert (await http.get(f"/v1/instruments/{CHF.replace('/', '%2F')}/trades")).json()["trades"] == []


async def test_what_is_wrong_with_a_book_is_in_state_and_flags(rig: Rig, http: httpx.AsyncClient) -> None:
    rig.apply(BookUpdate(epoch=1, seq=2, prev_seq=1, asks=[(100, 1)]))
    assert (await http.get(f"/v1/instruments/{BTC}/book")).json()["flags"] == ["crossed"]
    rig.apply(StatusUpdate(epoch=1, seq=3, state=BookState.GAPPED, reason=Reason.SEQUENCE_GAP))
    book = (await http.get(f"/v1/instruments/{BTC}/book")).json()
    assert (book["state"], book["flags"]) == ("gapped", ["crossed", "gapped"])


async def test_last_trades_oldest_first(rig: Rig, http: httpx.AsyncClient) -> None:
    for seq in (2, 3):
        trades = [Trade(100 + seq, seq, Side.SELL, f"t{seq}", 1_653_350_400_123_456_789)]
        rig.apply(TradesUpdate(epoch=1, seq=seq, prev_seq=0 if seq == 2 else 2, trades=trades, scale=Scale(-2, -3)))
    found = TradeList.model_validate_json((await http.get(f"/v1/instruments/{BTC}/trades")).content).trades
    assert [trade.trade_id for trade in found] == ["t2", "t3"]
    assert found[1].model_dump() == {
        "price": "1.03",
        "size": "0.003",
        "side": "sell",
        "trade_id": "t3",
        "ts_event_ns": "1653350400123456789",
    }
    last = (await http.get(f"/v1/instruments/{BTC}/trades", params={"limit": 1})).json()["trades"]
    assert [trade["trade_id"] for trade in last] == ["t3"]


async def test_instruments_are_listed_with_state_and_steps(rig: Rig, http: httpx.AsyncClient) -> None:
    rig.hub.apply(CHF, StatusUpdate(epoch=1, seq=1), 1)
    listed = InstrumentList.model_validate_json((await http.get("/v1/instruments")).content).instruments
    assert [tuple(one.model_dump().values()) for one in listed] == [
        (BTC, "synced", "0.01", "0.001"),
        (CHF, "waiting", None, None),
    ]
    unready = problem(await http.get(f"/v1/instruments/{CHF}/book"), 503)
    assert "has no book yet" in unready.detail


async def test_unknown_things_are_404_with_what_to_do(http: httpx.AsyncClient) -> None:
    assert "see /v1/instruments" in problem(await http.get("/v1/instruments/x:y:z/book"), 404).detail
    problem(await http.get("/v1/nothing"), 404)
    problem(await http.post("/v1/instruments"), 405)


@pytest.mark.parametrize(
    "query", ["book?depth=-1", "book?depth=5001", "book?depth=x", "book?depth=", "trades?limit=0", "trades?limit=1e3"]
)
async def test_wrong_parameters_are_422_and_named(http: httpx.AsyncClient, query: str) -> None:
    name = query.partition("?")[2].partition("=")[0]
    assert problem(await http.get(f"/v1/instruments/{BTC}/{query}"), 422).detail.startswith(f"{name}: ")


async def test_before_the_books_have_caught_up_everything_is_503(rig: Rig, http: httpx.AsyncClient) -> None:
    rig.hub.ready = False
    for path in ("", f"/{BTC}/book", f"/{BTC}/trades", "/x:y:z/book"):
        response = await http.get(f"/v1/instruments{path}")
        assert "catching up" in problem(response, 503).detail
        assert response.headers["retry-after"] == "2"


async def test_a_plain_request_for_the_stream_says_how_to_connect(http: httpx.AsyncClient) -> None:
    response = await http.get("/v1/stream")
    assert "depthcast.v1.json" in problem(response, 426).detail
    assert response.headers["upgrade"] == "websocket"


async def test_openapi_has_models_examples_and_every_error(http: httpx.AsyncClient) -> None:
    spec = (await http.get("/openapi.json")).json()
    assert set(spec["paths"]) == {
        "/v1/instruments",
        "/v1/instruments/{instrument}/book",
        "/v1/instruments/{instrument}/trades",
        "/v1/token",
        "/v1/ticket",
    }
    for path, operations in spec["paths"].items():
        (operation,) = operations.values()
        responses = operation["responses"]
        own = {"/v1/instruments": set(), "/v1/token": {"400", "404"}, "/v1/ticket": {"400", "404"}}
        assert set(responses) == {"200", "401", "403", "503"} | own.get(path, {"404", "422"})
        for status, response in responses.items():
            media = "application/json" if status == "200" else "application/problem+json"
            assert list(response["content"]) == [media], (path, status)
            assert response["content"][media]["schema"]
    for model in (BookSnapshot, PublicTrade, Problem):
        properties = model.model_json_schema()["properties"]
        examples = {key: value["examples"][0] for key, value in properties.items()}
        TypeAdapter(model).validate_python(examples)
    assert {"BookSnapshot", "InstrumentList", "TradeList", "PublicTrade"} <= set(spec["components"]["schemas"])


async def test_many_requests_on_one_connection_and_then_a_stream(rig: Rig, http: httpx.AsyncClient) -> None:
    for _ in range(50):
        assert (await http.get("/v1/instruments")).status_code == 200
    assert rig.endpoint.clients.open == 0
