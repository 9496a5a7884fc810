"""Our own Tick through its mapper, in its three forms; and the check of levels that all mappers share."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.events import BookEvent, ControlEvent, Event, MapError, QuoteEvent, TextTrade, TradesEvent
from ingest.mappers import mapper_for
from ingest.mappers.fields import levels
from protos.fixed import to_text
from protos.messages import Reason, Side
from protos.tick import CONTENT_JSON, CONTENT_MSGPACK, CONTENT_PROTO, Tick, TickKind, TickTrade, encode_tick
from tests.support.mapping import refused


@pytest.mark.parametrize("content_type", [CONTENT_JSON, CONTENT_MSGPACK, CONTENT_PROTO])
class TestCanonical:
    NAME = "sim:spot:A"

    def parse(self, tick: Tick, content_type: str) -> list[Event]:
        value = encode_tick(tick, content_type)
        assert mapper_for("canonical").split("canonical", value, self.NAME) == [(self.NAME, value)]
        return mapper_for("canonical").parse("canonical", self.NAME, value, content_type)

    def refused(self, tick: Tick, content_type: str) -> str:
        return refused("canonical", self.NAME, encode_tick(tick, content_type), content_type)

    def test_books(self, content_type: str) -> None:
        tick = Tick(TickKind.SNAPSHOT, 5, 4, 9, [("1.50", "2")], [("1.60", "3")])
        assert self.parse(tick, content_type) == [BookEvent(True, [["1.50", "2"]], [["1.60", "3"]], 9, last=5)]
        tick.kind = TickKind.DELTA
        assert self.parse(tick, content_type) == [BookEvent(False, [["1.50", "2"]], [["1.60", "3"]], 9, last=5, prev=4)]

    def test_trades_and_quotes(self, content_type: str) -> None:
        trades = [TickTrade("1.5", "2", Side.SELL, "x", 8), TickTrade("1.6", "1")]
        expected = [TextTrade("1.5", "2", Side.SELL, "x", 8), TextTrade("1.6", "1", Side.UNKNOWN, "", 9)]
        assert self.parse(Tick(TickKind.TRADES, ts_event_ns=9, trades=trades), content_type) == [
            TradesEvent(expected, 9)
        ]
        quote = Tick(TickKind.QUOTE, ts_event_ns=9, bids=[("1.5", "2")])
        assert self.parse(quote, content_type) == [QuoteEvent(("1.5", "2"), ("", ""), 9)]

    def test_the_feed_speaks(self, content_type: str) -> None:
        assert self.parse(Tick(TickKind.GAP), content_type) == [ControlEvent(Reason.FEED_GAP)]
        assert self.parse(Tick(TickKind.DISCONNECTED, ts_event_ns=3), content_type) == [
            ControlEvent(Reason.FEED_DISCONNECTED, 3)
        ]

    @pytest.mark.parametrize("price", ["NaN", "-1", "Infinity", "", "0", "0.000", " 1", "-0.5"])
    def test_impossible_prices(self, content_type: str, price: str) -> None:
        assert self.refused(Tick(TickKind.DELTA, bids=[(price, "1")]), content_type) == "bad-price"
        assert self.refused(Tick(TickKind.TRADES, trades=[TickTrade(price, "1")]), content_type) == "bad-price"

    def test_impossible_sizes(self, content_type: str) -> None:
        assert self.refused(Tick(TickKind.DELTA, asks=[("1", "-2")]), content_type) == "bad-size"
        assert self.refused(Tick(TickKind.TRADES, trades=[TickTrade("1", "0")]), content_type) == "bad-size"

    def test_a_quote_has_one_level(self, content_type: str) -> None:
        levels = [("1", "1"), ("2", "1")]
        assert self.refused(Tick(TickKind.QUOTE, bids=levels), content_type) == "bad-field"


def test_the_version_of_a_tick_must_be_ours() -> None:
    assert refused("canonical", "sim:spot:A", {"version": 2, "kind": "gap"}, CONTENT_JSON) == "bad-version"


@pytest.mark.parametrize(
    ("value", "content_type", "reason"),
    [
        (b"{", CONTENT_JSON, "bad-json"),
        (b"{}", CONTENT_JSON, "bad-field"),
        (b"\xff", CONTENT_PROTO, "bad-field"),
        (b"{}", "text/html", "bad-field"),
    ],
)
def test_what_is_no_tick(value: bytes, content_type: str, reason: str) -> None:
    assert refused("canonical", "sim:spot:A", value, content_type) == reason


@given(st.integers(0, 10**18 - 1), st.integers(0, 10**18 - 1), st.integers(0, 18), st.integers(0, 18))
def test_levels_take_every_number_that_fits(ticks: int, lots: int, price_places: int, size_places: int) -> None:
    level = [to_text(ticks, -price_places), to_text(lots, -size_places)]
    if ticks:
        assert levels([level]) == [level]
    else:
        with pytest.raises(MapError):
            levels([level])
