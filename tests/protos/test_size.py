"""Bytes per event on real captures: the first 1,500 BTCUSDT book events, every header included."""

import gzip
import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from protos.codec import CODECS
from protos.fixed import rescaled, split_decimal, trim
from protos.messages import BookUpdate, Levels

CAPTURES = Path(os.environ.get("DEPTHCAST_CAPTURES", Path(__file__).parents[3] / "shared" / "data"))
EVENTS = 1500
PROTO, MSGPACK, _ = CODECS.values()


TextNumber = tuple[int, int]
"""(mantissa, exponent) without trailing zeros."""


def number(text: str) -> TextNumber:
    return trim(*split_decimal(text))


def book_messages(path: Path) -> Iterator[tuple[int, int, int, bool, list[list[tuple[TextNumber, TextNumber]]]]]:
    """(received ns, event ns, bytes of the venue's JSON, is a snapshot, sides) of each book message."""
    with gzip.open(path) as lines:
        for line in lines:
            received, _, text = line.rstrip().partition(b" ")
            message = json.loads(text)
            data = message.get("data", message)
            snapshot = "lastUpdateId" in data
            if snapshot or data.get("e") == "depthUpdate":
                names = ("bids", "asks") if snapshot else ("b", "a")
                sides = [[(number(price), number(size)) for price, size in data[name]] for name in names]
                yield int(received), int(data.get("E", 0)) * 1_000_000, len(text), snapshot, sides


def updates(path: Path) -> Iterator[tuple[BookUpdate, int]]:
    """(update as a streamer sends it, bytes of the venue's JSON), at the scale learned from what was seen so far."""
    price_exponent = size_exponent = epoch = 0
    seq = 1_000_000
    for received_ns, event_ns, size, snapshot, sides in book_messages(path):
        price_exponent = min(price_exponent, *(price[1] for side in sides for price, _ in side))
        size_exponent = min(size_exponent, *(size[1] for side in sides for _, size in side))
        epoch = epoch or received_ns // 1_000_000
        if snapshot:
            continue
        levels: list[Levels] = [
            sorted((rescaled(*price, price_exponent), rescaled(*size, size_exponent)) for price, size in side)
            for side in sides
        ]
        before, seq = seq, seq + 12
        times = (event_ns, received_ns, received_ns + 2_345_678)
        yield BookUpdate(3, epoch, seq, before, 0, *times, levels[0], levels[1]), size


@pytest.mark.parametrize(
    ("capture", "bytes_max"), [("spot_btcusdt_20240808.gz", 150), ("usdm_btcusdt_20240808.gz", 225)]
)
def test_bytes_per_event_on_the_first_book_events(capture: str, bytes_max: int) -> None:
    venue = proto = packed = 0
    for update, size in islice(updates(CAPTURES / "binance" / capture), EVENTS):
        chunk = PROTO.encode(update)
        assert PROTO.decode(chunk) == [update]
        venue += size
        proto += len(chunk)
        packed += len(MSGPACK.encode(update))
    print(
        f"{capture}: venue {venue / EVENTS:.1f}, protobuf {proto / EVENTS:.1f}, msgpack {packed / EVENTS:.1f} B/event"
    )
    assert proto / EVENTS <= bytes_max
    assert packed <= 1.15 * proto
    assert proto <= 0.16 * venue
