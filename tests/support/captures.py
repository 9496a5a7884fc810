"""The captures as ticks records. Where they are: DEPTHCAST_CAPTURES, by default ../shared/data beside the project."""

import os
from functools import cache
from pathlib import Path
from typing import NamedTuple

from ingest.mappers import mapper_for
from services.feed.files import read_capture

CAPTURES = Path(os.environ.get("DEPTHCAST_CAPTURES", Path(__file__).parents[2] / "../shared/data"))
FILES = {
    "binance.spot": "binance/spot_btcusdt_20240808.gz",
    "binance.usdm": "binance/usdm_btcusdt_20240808.gz",
    "bybit": "bybit/BYBIT.jsonl.zst",
    "coinbase": "coinbase/COINBASE.jsonl.zst",
    "deribit": "deribit/DERIBIT.ws.1.0",
    "kraken": "kraken/KRAKEN.ws.50.0.part",
    "okx": "okx/OKX.ws.1.0",
}


class Tick(NamedTuple):
    """A ticks record."""

    feed: str
    instrument: str
    value: bytes


@cache
def ticks_of(name: str) -> list[Tick]:
    """The records that a feed makes of a capture, by its key in FILES."""
    return [
        Tick(captured.feed, routed.instrument, routed.value)
        for captured in read_capture(CAPTURES / FILES[name], name)
        for routed in mapper_for(captured.feed).split(captured.feed, captured.message, captured.symbol_hint)
    ]
