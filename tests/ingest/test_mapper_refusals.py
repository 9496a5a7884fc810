"""What mappers do with records that should not be there: no events from what is no market data, and a named refusal
of what is broken."""

import orjson
import pytest

from ingest.events import MapError
from ingest.mappers import mapper_for
from ingest.mappers.fields import TRADE_ID_MAX, load_exact
from tests.support.mapping import refused

NO_MARKET_DATA = {
    "binance.spot": ("binance:spot:BTCUSDT", {"result": None, "id": 1}),
    "bybit.linear": ("bybit:linear:BTCUSDT", {"op": "subscribe", "success": True}),
    "kraken": ("kraken:spot:A/B", {"channel": "heartbeat"}),
    "kraken, version 1": ("kraken:spot:A/B", [5, {"c": []}, "ohlc-5", "A/B"]),
    "kraken, trades again": ("kraken:spot:A/B", {"channel": "trade", "type": "snapshot", "data": [{"symbol": "A/B"}]}),
    "coinbase, trades again": (
        "coinbase:spot:BTC-USD",
        {
            "channel": "market_trades",
            "timestamp": "2026-08-09T21:05:48Z",
            "events": [{"type": "snapshot", "trades": [{"product_id": "BTC-USD"}]}],
        },
    ),
    "deribit": ("deribit:spot:BTC_USDC", {"jsonrpc": "2.0", "id": 1, "result": ["book.BTC_USDC.raw"]}),
    "okx": ("okx:spot:BTC-USDT", {"event": "subscribe", "arg": {"channel": "books", "instId": "BTC-USDT"}}),
}


@pytest.mark.parametrize("case", NO_MARKET_DATA)
def test_a_record_of_no_market_data_has_no_events(case: str) -> None:
    """A feed does not write one; another program may."""
    feed = case.partition(",")[0]
    instrument, message = NO_MARKET_DATA[case]
    assert mapper_for(feed).parse(feed, instrument, orjson.dumps(message)) == []


BYBIT_BOOK = {"s": "BTCUSDT", "b": [], "a": [], "u": 7}
OKX_BOOK = {"bids": [], "asks": [], "ts": "7"}
BROKEN = {
    "bybit.linear, type": (
        "bybit:linear:BTCUSDT",
        {"topic": "orderbook.50.BTCUSDT", "type": "rebuild", "ts": 5, "data": BYBIT_BOOK},
    ),
    "coinbase, type": (
        "coinbase:spot:BTC-USD",
        {
            "channel": "l2_data",
            "timestamp": "2026-08-09T21:05:48Z",
            "sequence_num": 5,
            "events": [{"type": "rebuild", "product_id": "BTC-USD", "updates": []}],
        },
    ),
    "kraken, type": (
        "kraken:spot:A/B",
        {"channel": "book", "type": "rebuild", "data": [{"symbol": "A/B", "bids": [], "asks": []}]},
    ),
    "kraken, no levels": ("kraken:spot:A/B", [1, {"c": "974942666"}, "book-25", "A/B"]),
    "okx, action": (
        "okx:spot:BTC-USDT",
        {"arg": {"channel": "books", "instId": "BTC-USDT"}, "action": "rebuild", "data": [OKX_BOOK]},
    ),
    "okx, kind": (
        "okx:spot:BTC-USDT",
        {"arg": {"channel": "books", "instId": "BTC-USD-1-2"}, "action": "update", "data": [OKX_BOOK]},
    ),
    "binance.spot, long trade id": (
        "binance:spot:BTCUSDT",
        {
            "e": "trade",
            "E": 5,
            "s": "BTCUSDT",
            "p": "0.01",
            "q": "3",
            "T": 4,
            "m": False,
            "t": "9" * (TRADE_ID_MAX + 1),
        },
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_a_venue_never_sends_is_refused(case: str) -> None:
    assert refused(case.partition(",")[0], *BROKEN[case]) == "bad-field"


@pytest.mark.parametrize("text", [b"NaN", b"Infinity", b"-Infinity"])
def test_what_is_no_number_is_not_json(text: bytes) -> None:
    with pytest.raises(MapError, match="is not a number") as caught:
        load_exact(b'{"price": ' + text + b"}")
    assert caught.value.reason == "bad-json"
