"""Bytes per book event on the wire, every header included, against the venue's JSON.

The first 1,500 BTCUSDT book events of each Binance capture go through the ingest pipeline; each update is encoded as a
streamer would, with stream id, epoch and times, in a frame of its own.
"""

from collections.abc import Iterator

from ingest.pipeline import Pipeline, TickRecord
from protos.codec import CODECS
from protos.messages import BookUpdate
from services.feed.files import read_capture
from services.feed.router import Router
from tests.benchmarks.common import CAPTURES, Row

EVENTS = 1_500
BINARY = ("depthcast.v1.proto", "depthcast.v1.msgpack")
OFFSET = 1_000_000
"""Of the first tick: sequences of a topic that has been running for a while, not one-byte ones."""
WEBSOCKET_HEADER = 4
CASES = (("spot_btcusdt_20240808.gz", "binance.spot", 150), ("usdm_btcusdt_20240808.gz", "binance.usdm", 225))
"""Capture, feed, bytes that protobuf may take."""


def updates(capture: str, feed: str) -> Iterator[tuple[int, BookUpdate]]:
    """(bytes of the venue's message, our update) of each book event."""
    pipeline, router, offset = Pipeline(0), Router(feed), OFFSET
    for it in read_capture(CAPTURES / "binance" / capture, feed):
        for name, value, headers in router.route(it.message, it.received_ns, it.symbol_hint):
            record = TickRecord(0, offset, it.received_ns // 1_000_000, name.encode(), value, headers)
            offset += 1
            for _, update in pipeline.process(record).market:
                if isinstance(update, BookUpdate) and not update.flags:
                    yield len(value), update


def measure() -> list[Row]:
    """One row per capture and codec."""
    rows = []
    for capture, feed, most in CASES:
        json_bytes, sums = 0, dict.fromkeys(BINARY, 0)
        for (size, update), _ in zip(updates(capture, feed), range(EVENTS), strict=False):
            json_bytes += size
            update.stream, update.ts_published_ns = 17, update.ts_received_ns + 2_000_000
            for name in BINARY:
                sums[name] += len(CODECS[name].encode(update)) + WEBSOCKET_HEADER
        proto = sums["depthcast.v1.proto"] / EVENTS
        rows.append(Row(f"bytes per {feed} book event, protobuf", f"{proto:.0f} B", f"<= {most} B", proto <= most))
        saved = 1 - proto / (json_bytes / EVENTS)
        rows.append(
            Row(f"  below the venue's JSON ({json_bytes / EVENTS:.0f} B)", f"{saved:.1%}", ">= 84 %", saved >= 0.84)
        )
        packed = sums["depthcast.v1.msgpack"] / EVENTS
        rows.append(Row("  MessagePack", f"{packed:.0f} B", "within 15 %", packed <= 1.15 * proto))
    return rows
