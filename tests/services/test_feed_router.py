"""From a connection's messages to ticks records."""

import orjson
import pytest

from ingest.events import ControlEvent, MapError
from ingest.mappers import mapper_for
from protos.messages import Reason
from protos.topics import HEADER_CONTENT_TYPE, HEADER_FEED, HEADER_RECEIVED_NS
from services.feed.router import Router, TickOut


def coinbase(sequence: int, product: str = "BTC-USD") -> bytes:
    update = {"side": "bid", "event_time": "2026-08-09T21:05:48Z", "price_level": "1.5", "new_quantity": "2"}
    event = {"type": "update", "product_id": product, "updates": [update]}
    stamp = "2026-08-09T21:05:48.5Z"
    return orjson.dumps({"channel": "l2_data", "timestamp": stamp, "sequence_num": sequence, "events": [event]})


def gapped(ticks: list[TickOut]) -> list[str]:
    """The instruments that get a gap, as ingest reads the records."""
    found = []
    for tick in ticks:
        if content_type := tick.headers.get(HEADER_CONTENT_TYPE, b"").decode():
            events = mapper_for("canonical").parse("canonical", tick.instrument, tick.value, content_type)
            assert events == [ControlEvent(Reason.FEED_GAP)]
            found.append(tick.instrument)
    return found


def test_a_record_carries_its_feed_and_when_it_was_received() -> None:
    (tick,) = Router("coinbase").route(coinbase(7), 1_618_678_132_825_818_800)
    assert tick.instrument == "coinbase:spot:BTC-USD"
    assert tick.value == coinbase(7)
    assert tick.headers == {HEADER_FEED: b"coinbase", HEADER_RECEIVED_NS: b"1618678132825818800"}


def test_a_lost_message_gaps_every_instrument_of_the_connection_first() -> None:
    router = Router("coinbase")
    for number, product in enumerate(("BTC-USD", "ETH-USD", "BTC-USD")):
        assert gapped(router.route(coinbase(number, product), 1)) == []
    ticks = router.route(coinbase(4, "SOL-USD"), 1)
    assert gapped(ticks) == ["coinbase:spot:BTC-USD", "coinbase:spot:ETH-USD"]
    assert ticks[-1].value == coinbase(4, "SOL-USD")
    assert gapped(router.route(coinbase(5), 1)) == []


def test_a_message_that_repeats_or_runs_back_is_a_gap_too() -> None:
    router = Router("coinbase")
    router.route(coinbase(3), 1)
    assert gapped(router.route(coinbase(3), 1)) == ["coinbase:spot:BTC-USD"]
    assert gapped(router.route(coinbase(2), 1)) == ["coinbase:spot:BTC-USD"]


def test_messages_without_market_data_count_too() -> None:
    router = Router("coinbase")
    router.route(coinbase(1), 1)
    heartbeat = {"channel": "heartbeats", "timestamp": "2026-08-09T21:05:48Z", "sequence_num": 2, "events": []}
    assert router.route(orjson.dumps(heartbeat), 1) == []
    assert gapped(router.route(coinbase(3), 1)) == []


@pytest.mark.parametrize("bad", [b"{", coinbase(3).replace(b"updates", b"?")])
def test_a_gap_is_not_forgotten_over_an_unusable_message(bad: bytes) -> None:
    router = Router("coinbase")
    router.route(coinbase(1), 1)
    with pytest.raises(MapError):
        router.route(bad, 1)
    assert gapped(router.route(coinbase(4), 1)) == ["coinbase:spot:BTC-USD"]
