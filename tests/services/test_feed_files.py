"""Reading captures: the formats, the faults a recording has, and what the user is told."""

import gzip
import os
from collections import Counter
from itertools import pairwise
from pathlib import Path

import orjson
import pytest
import zstandard

from services.errors import UserError
from services.feed.files import FEED_NAMES, Captured, check_feed, read_capture

CAPTURES = Path(os.environ.get("DEPTHCAST_CAPTURES", Path(__file__).parents[2] / "../shared/data"))


@pytest.mark.parametrize(
    ("file", "feed", "messages"),
    [
        ("binance/spot_btcusdt_20240808.gz", "binance.spot", 41_249),
        ("binance/usdm_btcusdt_20240808.gz", "binance.usdm", 93_954),
        ("bybit/BYBIT.jsonl.zst", "bybit", 3_227),
        ("coinbase/COINBASE.jsonl.zst", "coinbase", 1_030),
        ("deribit/DERIBIT.ws.1.0", "deribit", 136),
        ("kraken/KRAKEN.ws.50.0.part", "kraken", 2_593),
        ("okx/OKX.ws.1.0", "okx", 410),
    ],
)
def test_every_message_is_read_in_order(file: str, feed: str, messages: int) -> None:
    capture = list(read_capture(CAPTURES / file, feed))
    assert len(capture) == messages
    assert all(isinstance(orjson.loads(it.message), dict | list) for it in capture)
    assert all(a.received_ns <= b.received_ns for a, b in pairwise(capture))


def test_the_connection_names_the_market() -> None:
    path = CAPTURES / "bybit/BYBIT.jsonl.zst"
    feeds = Counter(it.feed for it in read_capture(path, "bybit"))
    assert feeds == {"bybit.linear": 2_546, "bybit.spot": 681}
    assert Counter(it.feed for it in read_capture(path, "bybit.spot")) == {"bybit.spot": 681}
    with pytest.raises(UserError, match=r"no message for --feed bybit\.inverse"):
        list(read_capture(path, "bybit.inverse"))


def test_hftbacktest_lines_know_their_symbol_from_the_first(tmp_path: Path) -> None:
    path = tmp_path / "renamed"
    snapshot, trade = b'{"lastUpdateId":1,"bids":[],"asks":[]}', b'{"e":"trade","s":"BTCUSDT"}'
    path.write_bytes(gzip.compress(b"1723161253937085768 " + snapshot + b"\n1723161253937085769 " + trade + b"\n"))
    assert list(read_capture(path, "binance.spot")) == [
        Captured("binance.spot", 1723161253937085768, snapshot, "renamed", "BTCUSDT"),
        Captured("binance.spot", 1723161253937085769, trade, "renamed", "BTCUSDT"),
    ]


@pytest.mark.parametrize(("last", "kept"), [(b'{"b":2}', 2), (b'{"b":', 1), (b'{"b":2}\n', 2)])
def test_a_last_line_that_was_cut_off_is_dropped(tmp_path: Path, last: bytes, kept: int) -> None:
    raw, timed = tmp_path / "raw", tmp_path / "timed"
    raw.write_bytes(b'wss://x <-> 1618678132.38\nwss://x <- 1618678132.8: {"s":1}\n1618678132.8258188: {"a":1}\n')
    raw.write_bytes(raw.read_bytes() + b"1618678132.9: " + last)
    timed.write_bytes(b'1723161253937085768 {"a":1}\n1723161253937085769 ' + last)
    assert [it.received_ns for it in read_capture(raw, "kraken")] == [1618678132_825818800, 1618678132_900000000][:kept]
    assert len(list(read_capture(timed, "binance.spot"))) == kept


def lines(*rows: dict[str, object]) -> bytes:
    return zstandard.compress(b"".join(orjson.dumps(row) + b"\n" for row in rows))


def test_connections_are_merged_by_time_but_never_reordered_within(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.zst"
    connect = [
        {"t": "connect", "conn": c, "ts": 1.0, "addr": f"wss://x/{m}"} for c, m in (("a", "spot"), ("b", "linear"))
    ]
    times = [("a", 10.5, "1"), ("a", 12.25, "2"), ("a", 11.0, "3"), ("b", 11.5, "4")]
    received = [{"t": "recv", "conn": c, "ts": 1e9 + ts, "data": data} for c, ts, data in times]
    path.write_bytes(lines(*connect, *received))
    capture = list(read_capture(path, "bybit"))
    assert [it.message for it in capture] == [b"1", b"4", b"2", b"3"]
    assert capture[0].received_ns == 1_000_000_010_500_000_000


@pytest.mark.parametrize(
    ("content", "feed", "says"),
    [
        (None, "kraken", "No such file"),
        (b"", "kraken", "is not a capture"),
        (b"\x00" * 100, "kraken", "is not a capture"),
        (b"<html>\n", "kraken", "is not a capture"),
        (b"\x1f\x8bnot gzip", "binance.spot", "cannot read the capture"),
        (
            gzip.compress(b'1723161253937085768 {"a":1}\n' * 50, mtime=0)[:-20],
            "binance.spot",
            "cannot read the capture",
        ),
        (b"\x28\xb5\x2f\xfdnot zstd", "bybit", "cannot read the capture"),
        (b"wss://x <-> 1618678132.38\n", "kraken", "has no message"),
        (lines({"t": "recv", "conn": "a", "ts": 1.5e9, "data": "{}"}), "bybit", "--feed bybit.linear"),
        (lines({"t": "recv", "conn": "a", "ts": 1.5e9, "data": 5}), "okx", ":1: not a line"),
        (b'{"t":"header"}\n{"t":"re', "okx", ":2: not a line"),
        (b'1618678132.8258188: {"a":1}\n', "kracken", "unknown feed 'kracken'; --feed is one of"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(tmp_path: Path, content: bytes | None, feed: str, says: str) -> None:
    path = tmp_path / "capture"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        list(read_capture(path, feed))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_directory_is_no_capture(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Is a directory"):
        read_capture(tmp_path, "kraken")


def test_feed_names_are_venues_and_markets() -> None:
    assert all(check_feed(name) == name for name in FEED_NAMES)
    assert "canonical" not in FEED_NAMES
    assert {"bybit", "bybit.linear", "binance.coinm", "coinbase", "deribit"} <= set(FEED_NAMES)
