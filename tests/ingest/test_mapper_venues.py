"""What venues document and the captures do not hold: other channels, resets, several instruments in a message."""

import orjson
import pytest

from ingest.checksum import kraken_checksum
from ingest.events import BookEvent, MapError, QuoteEvent, TextTrade, TradesEvent
from ingest.mappers import mapper_for
from ingest.mappers.coinbase import SIDE_LEVELS_MAX, ConnectionSequence
from protos.book import Book
from protos.fixed import scaled
from protos.messages import BookUpdate, Flag, Scale, Side
from tests.support.mapping import book, only, refused

KRAKEN_V2 = b"""{"channel":"book","type":"snapshot","data":[{"symbol":"BTC/USD","bids":[
{"price":45283.5,"qty":0.10000000},{"price":45283.4,"qty":1.54582015},{"price":45282.1,"qty":0.10000000},
{"price":45281.0,"qty":0.10000000},{"price":45280.3,"qty":1.54592586},{"price":45279.0,"qty":0.07990000},
{"price":45277.6,"qty":0.03310103},{"price":45277.5,"qty":0.30000000},{"price":45277.3,"qty":1.54602737},
{"price":45276.6,"qty":0.15445238}],"asks":[
{"price":45285.2,"qty":0.00100000},{"price":45286.4,"qty":1.54571953},{"price":45286.6,"qty":1.54571109},
{"price":45289.6,"qty":1.54560911},{"price":45290.2,"qty":0.15890660},{"price":45291.8,"qty":1.54553491},
{"price":45294.7,"qty":0.04454749},{"price":45296.1,"qty":0.35380000},{"price":45297.5,"qty":0.09945542},
{"price":45299.5,"qty":0.18772827}],"checksum":3310070434}]}"""
"""The example of the venue's guide to the v2 checksum."""


DEPTH = {"e": "depthUpdate", "E": 5, "s": "BTCUSDT", "U": 1, "u": 2, "b": [["1.50", "2"]], "a": []}


class TestBinance:
    def test_a_snapshot_takes_its_symbol_from_the_hint(self) -> None:
        snapshot = {"lastUpdateId": 9, "bids": [["1.5", "2"]], "asks": []}
        event = book("binance.spot", "binance:spot:BTCUSDT", snapshot, hint="btcusdt")
        assert event == BookEvent(True, [["1.5", "2"]], [], last=9)
        with pytest.raises(MapError, match="symbol"):
            mapper_for("binance.spot").split("binance.spot", orjson.dumps(snapshot))

    def test_coin_margined_snapshots_name_theirs(self) -> None:
        snapshot = {
            "lastUpdateId": 9,
            "E": 3,
            "T": 2,
            "symbol": "BTCUSD_PERP",
            "pair": "BTCUSD",
            "bids": [],
            "asks": [],
        }
        event = book("binance.coinm", "binance:coinm:BTCUSD_PERP", snapshot)
        assert (event.last, event.ts_event_ns) == (9, 2_000_000)

    def test_futures_link_to_the_event_before(self) -> None:
        event = book("binance.usdm", "binance:usdm:BTCUSDT", {**DEPTH, "pu": 0, "T": 4})
        assert (event.first, event.last, event.prev, event.ts_event_ns) == (1, 2, 0, 4_000_000)

    @pytest.mark.parametrize("stream", ["btcusdt@depth20", "btcusdt@depth5@100ms", "btcusdt@depth10@500ms"])
    def test_a_partial_book_is_refused(self, stream: str) -> None:
        assert refused("binance.usdm", "binance:usdm:BTCUSDT", {"stream": stream, "data": DEPTH}) == "bad-field"

    def test_aggregated_trades(self) -> None:
        trade = {
            "e": "aggTrade",
            "E": 5,
            "s": "BTCUSDT",
            "a": 26129,
            "p": "0.01",
            "q": "3",
            "f": 1,
            "l": 2,
            "T": 4,
            "m": False,
        }
        event = only("binance.spot", "binance:spot:BTCUSDT", trade)
        assert event == TradesEvent([TextTrade("0.01", "3", Side.BUY, "26129", 4_000_000)], 4_000_000)

    @pytest.mark.parametrize(
        "message", [{"result": None, "id": 1}, {"e": "kline", "s": "BTCUSDT"}, {"error": {"code": 2}, "id": 1}]
    )
    def test_replies_and_other_streams_are_no_records(self, message: object) -> None:
        assert mapper_for("binance.spot").split("binance.spot", orjson.dumps(message)) == []

    @pytest.mark.parametrize(
        ("field", "value", "reason"),
        [
            ("b", [["-1.5", "2"]], "bad-price"),
            ("b", [["NaN", "2"]], "bad-price"),
            ("a", [["0.10", "2"], ["0.00", "2"], ["1.5", "0"]], "bad-price"),
            ("a", [["0", "2"]], "bad-price"),
            ("a", [["00", "2"]], "bad-price"),
            ("a", [["00.0", "2"]], "bad-price"),
            ("b", [["1.5", "-2"]], "bad-size"),
            ("b", [[1.5, "2"]], "bad-field"),
            ("b", [["1.5"]], "bad-field"),
            ("b", ["ab"], "bad-field"),
            ("b", [{"1": 2, "3": 4}], "bad-field"),
            ("b", {"1.5": "2"}, "bad-field"),
            ("u", "x", "bad-field"),
            ("u", -1, "bad-field"),
            ("u", True, "bad-field"),
            ("E", 2**62, "bad-field"),
            ("s", "ETHUSDT", "wrong-instrument"),
        ],
    )
    def test_what_cannot_be_is_refused(self, field: str, value: object, reason: str) -> None:
        assert refused("binance.spot", "binance:spot:BTCUSDT", {**DEPTH, field: value}) == reason

    def test_the_market_of_the_record_must_be_the_feeds(self) -> None:
        assert refused("binance.spot", "binance:usdm:BTCUSDT", DEPTH) == "wrong-instrument"


class TestKraken:
    def test_numbers_keep_the_decimals_as_written_and_so_the_checksum_holds(self) -> None:
        event = book("kraken", "kraken:spot:BTC/USD", KRAKEN_V2)
        scale = Scale(-1, -8)
        bids, asks = ([(scaled(p, -1), scaled(s, -8)) for p, s in side] for side in (event.bids, event.asks))
        ours = Book()
        ours.apply(BookUpdate(flags=Flag.SNAPSHOT, bids=bids, asks=asks))
        assert event.asks[0] == ["45285.2", "0.00100000"]
        assert kraken_checksum(ours, scale) == event.checksum == 3310070434

    @pytest.mark.parametrize(("levels", "depth"), [(1, 10), (10, 10), (11, 25), (500, 500), (501, 1000)])
    def test_the_depth_of_v2_is_that_of_the_snapshot(self, levels: int, depth: int) -> None:
        side = [{"price": 100 + i, "qty": 1} for i in range(levels)]
        data = [{"symbol": "BTC/USD", "bids": side, "asks": [], "checksum": 1}]
        message = {"channel": "book", "type": "snapshot", "data": data}
        assert book("kraken", "kraken:spot:BTC/USD", message).depth == depth
        assert book("kraken", "kraken:spot:BTC/USD", {**message, "type": "update"}).depth == 0

    def test_trades_and_quotes_of_v2_never_refine_the_scale(self) -> None:
        stamp = "2023-09-25T07:49:37.708706Z"
        trade = b'{"symbol":"A/B","side":"sell","price":0.51170,"qty":40.0,"trade_id":46,"timestamp":"%s"}'
        message = b'{"channel":"trade","type":"update","data":[' + trade % stamp.encode() + b"]}"
        ns = 1_695_628_177_708_706_000
        assert only("kraken", "kraken:spot:A/B", message) == TradesEvent(
            [TextTrade("0.5117", "40", Side.SELL, "46", ns)], ns
        )
        quote = b'{"symbol":"A/B","bid":10,"bid_qty":740.0,"ask":1.50,"ask_qty":0}'
        quote = b'{"channel":"ticker","type":"update","data":[' + quote + b"]}"
        assert only("kraken", "kraken:spot:A/B", quote) == QuoteEvent(("10", "740"), ("", ""))

    def test_a_message_with_several_symbols_is_cut_and_every_number_stays(self) -> None:
        trade = b'{"symbol":"%s","side":"buy","price":0.50,"qty":1e-7,"trade_id":%d,"timestamp":"2023-09-25T07:49:37Z"}'
        parts = [trade % (symbol, number) for number, symbol in enumerate((b"A/B", b"C/D", b"A/B"))]
        message = b'{"channel":"trade","type":"update","data":[' + b",".join(parts) + b"]}"
        first, second = mapper_for("kraken").split("kraken", message)
        assert [first.instrument, second.instrument] == ["kraken:spot:A/B", "kraken:spot:C/D"]
        assert first.value == b'{"channel":"trade","type":"update","data":[' + parts[0] + b"," + parts[2] + b"]}"
        (event,) = mapper_for("kraken").parse("kraken", *first)
        assert isinstance(event, TradesEvent)
        assert [(t.trade_id, t.price, t.size) for t in event.trades] == [("0", "0.5", "1e-7"), ("2", "0.5", "1e-7")]

    def test_trades_and_spread_of_v1(self) -> None:
        trade = [0, [["5541.2", "0.15", "1534614057.321597", "s", "l", ""]], "trade", "XBT/USD"]
        ns = 1_534_614_057_321_597_000
        expected = TradesEvent([TextTrade("5541.2", "0.15", Side.SELL, "", ns)], ns)
        assert only("kraken", "kraken:spot:XBT/USD", trade) == expected
        spread = [0, ["5698.4", "5700.0", "1542057299.545897", "1.5", "0.0"], "spread", "XBT/USD"]
        assert only("kraken", "kraken:spot:XBT/USD", spread) == QuoteEvent(
            ("5698.4", "1.5"), ("", ""), 1_542_057_299_545_897_000
        )

    def test_both_sides_of_v1_may_come_in_two_parts(self) -> None:
        ask, bid = ["2.10", "1.00", "1534614248.765567"], ["2.00", "0.00", "1534614248.765568", "r"]
        event = book("kraken", "kraken:spot:A/B", [1, {"a": [ask]}, {"b": [bid], "c": "974942666"}, "book-25", "A/B"])
        assert (event.bids, event.asks) == ([["2.00", "0.00"]], [["2.10", "1.00"]])
        assert (event.checksum, event.depth, event.ts_event_ns) == (974942666, 25, 1_534_614_248_765_568_000)

    @pytest.mark.parametrize(
        "message",
        [
            {"method": "subscribe", "success": True, "result": {"channel": "book", "depth": 10}},
            {"channel": "heartbeat"},
            {"channel": "status", "type": "update", "data": [{"system": "online"}]},
            {"channel": "instrument", "type": "snapshot", "data": {"assets": [], "pairs": []}},
            {"event": "heartbeat"},
            [5, {"c": []}, "ohlc-5", "XBT/USD"],
        ],
    )
    def test_other_messages_are_no_records(self, message: object) -> None:
        assert mapper_for("kraken").split("kraken", orjson.dumps(message)) == []


def okx(channel: str, *data: object, inst: str = "BTC-USDT", **more: object) -> dict[str, object]:
    return {"arg": {"channel": channel, "instId": inst}, **more, "data": list(data)}


OKX_BOOK = {"bids": [["1.5", "2", "0", "1"]], "asks": [], "ts": "7"}


class TestOkx:
    def test_sequences_link_and_a_maintenance_reset_shows(self) -> None:
        first = {**OKX_BOOK, "prevSeqId": -1, "seqId": 10, "checksum": 0}
        snapshot = book("okx", "okx:spot:BTC-USDT", okx("books", first, action="snapshot"))
        assert (snapshot.last, snapshot.prev, snapshot.checksum, snapshot.reset) == (10, None, None, False)
        second = {**OKX_BOOK, "prevSeqId": 10, "seqId": 15, "checksum": -855196043}
        update = book("okx", "okx:spot:BTC-USDT", okx("books", second, action="update"))
        assert (update.last, update.prev, update.checksum, update.reset) == (15, 10, 3439771253, False)
        reset = book(
            "okx", "okx:spot:BTC-USDT", okx("books", {**OKX_BOOK, "prevSeqId": 15, "seqId": 3}, action="update")
        )
        assert (reset.last, reset.prev, reset.reset) == (3, 15, True)

    def test_books5_is_a_snapshot_each_time(self) -> None:
        event = book("okx", "okx:spot:BTC-USDT", okx("books5", {**OKX_BOOK, "seqId": 3}))
        assert (event.snapshot, event.depth, event.last) == (True, 5, 3)

    def test_the_tick_by_tick_quote(self) -> None:
        event = only("okx", "okx:spot:BTC-USDT", okx("bbo-tbt", {**OKX_BOOK, "seqId": 3}))
        assert event == QuoteEvent(["1.5", "2"], ("", ""), 7_000_000)

    def test_several_entries_are_several_records(self) -> None:
        message = orjson.dumps(okx("books", OKX_BOOK, {**OKX_BOOK, "ts": "8"}, action="update"))
        records = mapper_for("okx").split("okx", message)
        times = [event.ts_event_ns for record in records for event in mapper_for("okx").parse("okx", *record)]
        assert times == [7_000_000, 8_000_000]
        assert refused("okx", "okx:spot:BTC-USDT", message) == "bad-field"

    def test_kinds_of_instruments(self) -> None:
        names = ("BTC-USD-220527", "BTC-USD-SWAP", "BTC-USD-220527-30000-C")
        routed = [
            mapper_for("okx").split("okx", orjson.dumps(okx("books", OKX_BOOK, inst=n)))[0].instrument for n in names
        ]
        assert routed == [f"okx:{kind}:{name}" for kind, name in zip(("futures", "swap", "option"), names, strict=True)]


class TestBybit:
    def message(self, **changes: object) -> dict[str, object]:
        data = {"s": "BTCUSDT", "b": [["1.5", "2"]], "a": [], "u": 7, "seq": 9}
        return {"topic": "orderbook.50.BTCUSDT", "type": "delta", "ts": 5, "cts": 4, "data": data, **changes}

    def test_the_number_one_is_a_restart_and_replaces_the_book(self) -> None:
        data = {"s": "BTCUSDT", "b": [], "a": [], "u": 1, "seq": 9}
        event = book("bybit.linear", "bybit:linear:BTCUSDT", self.message(data=data))
        assert (event.snapshot, event.reset, event.last) == (True, True, 1)
        event = book("bybit.linear", "bybit:linear:BTCUSDT", self.message())
        assert (event.snapshot, event.reset, event.last, event.ts_event_ns) == (False, False, 7, 4_000_000)

    def test_one_level_is_a_quote(self) -> None:
        message = self.message(topic="orderbook.1.BTCUSDT", type="snapshot")
        event = only("bybit.spot", "bybit:spot:BTCUSDT", message)
        assert event == QuoteEvent(["1.5", "2"], ("", ""), 4_000_000)

    def test_a_ticker_is_a_quote_only_when_both_sides_are_whole(self) -> None:
        fields = {"symbol": "BTCUSDT", "bid1Price": "1", "bid1Size": "2", "ask1Price": "3"}
        partial = orjson.dumps({"topic": "tickers.BTCUSDT", "type": "delta", "data": fields, "ts": 5})
        assert mapper_for("bybit.spot").split("bybit.spot", partial) == []
        assert mapper_for("bybit.spot").parse("bybit.spot", "bybit:spot:BTCUSDT", partial) == []
        whole = {"topic": "tickers.BTCUSDT", "type": "delta", "data": {**fields, "ask1Size": "4"}, "ts": 5}
        assert only("bybit.spot", "bybit:spot:BTCUSDT", whole) == QuoteEvent(("1", "2"), ("3", "4"), 5_000_000)


def coinbase(channel: str, *events: object, sequence: int = 5) -> bytes:
    stamp = "2026-08-09T21:05:48.228568804Z"
    return orjson.dumps({"channel": channel, "timestamp": stamp, "sequence_num": sequence, "events": list(events)})


def l2(product: str, *updates: tuple[str, str, str], kind: str = "update") -> dict[str, object]:
    rows = [{"side": side, "price_level": price, "new_quantity": size} for side, price, size in updates]
    return {"type": kind, "product_id": product, "updates": rows}


class TestCoinbase:
    def test_a_message_with_several_products_is_cut(self) -> None:
        message = coinbase("l2_data", l2("BTC-USD", ("bid", "1.5", "2")), l2("ETH-USD", ("offer", "2.5", "0")))
        records = mapper_for("coinbase").split("coinbase", message)
        assert [record.instrument for record in records] == ["coinbase:spot:BTC-USD", "coinbase:spot:ETH-USD"]
        events = [mapper_for("coinbase").parse("coinbase", *record) for record in records]
        ns = 1_786_309_548_228_568_804
        assert events == [
            [BookEvent(False, [["1.5", "2"]], [], ns, last=5)],
            [BookEvent(False, [], [["2.5", "0"]], ns, last=5)],
        ]

    @pytest.mark.parametrize("levels", [2 * SIDE_LEVELS_MAX, 2 * SIDE_LEVELS_MAX + 1, 5 * SIDE_LEVELS_MAX])
    def test_a_large_snapshot_is_cut_and_adds_up_to_the_same_book(self, levels: int) -> None:
        updates = [("bid" if i % 3 else "offer", str(i + 1), str(i + 7)) for i in range(levels)]
        records = mapper_for("coinbase").split(
            "coinbase", coinbase("l2_data", l2("BTC-USD", *updates, kind="snapshot"))
        )
        found: dict[str, list[object]] = {"bid": [], "offer": []}
        for number, record in enumerate(records):
            (event,) = mapper_for("coinbase").parse("coinbase", *record)
            assert isinstance(event, BookEvent)
            assert event.snapshot == (number == 0)
            assert max(len(event.bids), len(event.asks)) <= SIDE_LEVELS_MAX
            found["bid"] += event.bids
            found["offer"] += event.asks
        assert found == {side: [[p, s] for which, p, s in updates if which == side] for side in found}

    def test_trades_come_newest_first_and_leave_oldest_first(self) -> None:
        trades = [
            {
                "product_id": "BTC-USD",
                "trade_id": n,
                "price": "1",
                "size": "2",
                "time": f"2026-08-09T21:05:4{n}Z",
                "side": "BUY",
            }
            for n in ("3", "2")
        ]
        (record,) = mapper_for("coinbase").split(
            "coinbase", coinbase("market_trades", {"type": "update", "trades": trades})
        )
        (event,) = mapper_for("coinbase").parse("coinbase", *record)
        assert isinstance(event, TradesEvent)
        assert [(t.trade_id, t.side) for t in event.trades] == [("2", Side.SELL), ("3", Side.SELL)]
        history = coinbase("market_trades", {"type": "snapshot", "trades": trades})
        assert mapper_for("coinbase").split("coinbase", history) == []

    def test_markets(self) -> None:
        names = [("BTC-USD", "spot"), ("BTC-PERP-INTX", "perpetual"), ("BIT-28JUL23-CDE", "future")]
        for product, market in names:
            (record,) = mapper_for("coinbase").split("coinbase", coinbase("l2_data", l2(product)))
            assert record.instrument == f"coinbase:{market}:{product}"

    def test_the_numbers_of_a_connection_have_no_hole(self) -> None:
        sequence = ConnectionSequence()
        assert [sequence.lost(coinbase("heartbeats", sequence=n)) for n in (4, 5, 7, 8, 8)] == [
            False,
            False,
            True,
            False,
            True,
        ]


def deribit(channel: str, data: str) -> bytes:
    return f'{{"jsonrpc":"2.0","method":"subscription","params":{{"channel":"{channel}","data":{data}}}}}'.encode()


class TestDeribit:
    @pytest.mark.parametrize(
        ("name", "market"),
        [
            ("BTC-PERPETUAL", "perpetual"),
            ("SOL_USDC-PERPETUAL", "perpetual"),
            ("BTC-24JUN22", "future"),
            ("ETH-3NOV23-1600-P", "option"),
            ("XRP_USDC-30JUN23-0d625-C", "option"),
            ("BTC_USDC", "spot"),
            ("BTC-FS-31DEC21_PERP", "combo"),
        ],
    )
    def test_kinds_of_instruments(self, name: str, market: str) -> None:
        data = f'{{"timestamp":1,"instrument_name":"{name}","change_id":5,"bids":[],"asks":[]}}'
        event = book("deribit", f"deribit:{market}:{name}", deribit(f"book.{name}.raw", data))
        assert (event.snapshot, event.last, event.prev) == (True, 5, None)

    def test_numbers_keep_their_text(self) -> None:
        levels = '"bids":[["new",1E-4,10.0],["change",12345678.123456789,0.1],["delete",7,0.0]],"asks":[]'
        data = (
            f'{{"type":"change","timestamp":1,"instrument_name":"BTC_USDC","prev_change_id":4,"change_id":5,{levels}}}'
        )
        event = book("deribit", "deribit:spot:BTC_USDC", deribit("book.BTC_USDC.raw", data))
        assert event.bids == [["1E-4", "10.0"], ["12345678.123456789", "0.1"], ["7", "0"]]
        assert (event.snapshot, event.last, event.prev) == (False, 5, 4)

    def test_only_spreads_may_be_below_zero(self) -> None:
        row = '{{"timestamp":1,"instrument_name":"{0}","change_id":5,"bids":[["new",-5,1]],"asks":[]}}'
        combo, future = "BTC-FS-31DEC21_PERP", "BTC-24JUN22"
        assert book("deribit", f"deribit:combo:{combo}", deribit(f"book.{combo}.raw", row.format(combo))).bids == [
            ["-5", "1"]
        ]
        assert (
            refused("deribit", f"deribit:future:{future}", deribit(f"book.{future}.raw", row.format(future)))
            == "bad-price"
        )

    def test_trades_and_quotes(self) -> None:
        trade = '[{"trade_id":"9","price":100.50,"amount":10.0,"direction":"sell","timestamp":3}]'
        event = only("deribit", "deribit:perpetual:BTC-PERPETUAL", deribit("trades.BTC-PERPETUAL.raw", trade))
        assert event == TradesEvent([TextTrade("100.50", "10.0", Side.SELL, "9", 3_000_000)], 3_000_000)
        quote = '{"timestamp":3,"instrument_name":"BTC-PERPETUAL","best_bid_price":null,"best_bid_amount":0.0,'
        quote += '"best_ask_price":1.5,"best_ask_amount":2.0}'
        event = only("deribit", "deribit:perpetual:BTC-PERPETUAL", deribit("quote.BTC-PERPETUAL", quote))
        assert event == QuoteEvent(("", ""), ("1.5", "2.0"), 3_000_000)

    def test_a_grouped_view_is_no_book(self) -> None:
        message = deribit("book.BTC-PERPETUAL.none.20.100ms", "{}")
        assert mapper_for("deribit").split("deribit", message) == []
