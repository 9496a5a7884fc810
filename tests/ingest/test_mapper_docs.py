"""The mapper in docs/add-a-venue.md works as it stands there."""

import re
from pathlib import Path
from types import ModuleType

import orjson
import pytest

from ingest.events import BookEvent, MapError, TextTrade, TradesEvent
from protos.messages import Side

PAGE = Path(__file__).parents[2] / "docs/add-a-venue.md"


@pytest.fixture(scope="module")
def acme() -> ModuleType:
    (source,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    module = ModuleType("acme")
    exec(compile(source, str(PAGE), "exec"), module.__dict__)
    return module


def test_the_example_maps_books_and_trades(acme: ModuleType) -> None:
    name = "acme:spot:A-B"
    book = {"channel": "depth", "pair": "A-B", "time_ms": 5, "prev": None, "seq": 7, "bids": [["1.5", "2"]], "asks": []}
    trade = {"px": "1.5", "qty": "2", "side": "S", "id": "x"}
    trades = {"channel": "trade", "pair": "A-B", "time_ms": 5, "trades": [trade]}
    for message, event in (
        (book, BookEvent(True, [["1.5", "2"]], [], 5_000_000, last=7)),
        ({**book, "prev": 7, "seq": 8}, BookEvent(False, [["1.5", "2"]], [], 5_000_000, last=8, prev=7)),
        (trades, TradesEvent([TextTrade("1.5", "2", Side.SELL, "x", 5_000_000)], 5_000_000)),
    ):
        (record,) = acme.split("acme", orjson.dumps(message))
        assert record.instrument == name
        assert acme.parse("acme", *record) == [event]


@pytest.mark.parametrize("message", [b"{", b"{}", b"[]", b'{"channel":"depth","pair":"A-B","time_ms":"x"}'])
def test_the_example_refuses_what_it_does_not_know(acme: ModuleType, message: bytes) -> None:
    with pytest.raises(MapError):
        acme.parse("acme", "acme:spot:A-B", message)
