"""Captures of venue connections, as files: three formats, told apart by their content.

- hftbacktest: ``<received_ns> <json>`` a line, one symbol a file (usually ``.gz``).
- cryptofeed raw: ``<seconds>: <json>`` a line for what was received; ``<address> <-> ...`` opens a connection and
  ``<address> <- ...`` was sent; the recorder may have been stopped within the last line.
- cryptofeed JSON lines (usually ``.jsonl.zst``): ``{"t": "recv", "conn", "ts", "data"}``, with ``connect`` lines that
  give the address.
"""

import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import orjson
import zstandard

from ingest.mappers import FEEDS
from services.errors import UserError

FEED_NAMES = tuple(sorted({*FEEDS, "bybit"} - {"canonical"}))
"""What a user calls a capture's feed. ``bybit`` takes spot, linear and inverse from the address of each connection."""

FIRST_LINE_BYTES_MAX = 64 << 20
"""Read to tell the format; a full snapshot is some MB."""

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_HFTBACKTEST = re.compile(rb"(\d{16,19}) (.*)", re.DOTALL)
_CRYPTOFEED = re.compile(rb"(\d{9,10})(?:\.(\d{1,9})\d*)?: (.*)", re.DOTALL)
_CRYPTOFEED_META = re.compile(rb"(?:wss?|https?)://\S+ (?:<->|<-|->) ")
_SYMBOL = re.compile(rb'"s":"([A-Z0-9_]{2,40})"')


class Captured(NamedTuple):
    """One message as received."""

    feed: str  # the `feed` header: names the market
    received_ns: int
    message: bytes
    connection: str
    symbol_hint: str = ""  # for messages that do not name their symbol


_Reader = Callable[[Path, str], Iterator[Captured]]


def check_feed(name: str) -> str:
    """Return ``name`` if it is one of FEED_NAMES, else raise `UserError`."""
    if name not in FEED_NAMES:
        raise UserError(f"unknown feed {name!r}; --feed is one of {', '.join(FEED_NAMES)}")
    return name


def read_capture(path: Path, feed: str) -> Iterator[Captured]:
    """The messages of a capture, in the order in which they were received.

    Args:
        path: The file.
        feed: One of FEED_NAMES.

    Raises:
        UserError: No such file, not readable, none of the formats, or an unknown feed: at once. Damaged, or without a
            message for this feed: while reading.
    """
    check_feed(feed)
    with _explained(path):
        reader = _reader_of(path)
    return _guarded(path, feed, reader)


def _guarded(path: Path, feed: str, reader: _Reader) -> Iterator[Captured]:
    empty = True
    with _explained(path):
        for captured in reader(path, feed):
            empty = False
            yield captured
    if empty:
        raise UserError(f"the capture {path} has no message for --feed {feed}")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(f"cannot read the capture {path}: {reason}") from None


def _reader_of(path: Path) -> _Reader:
    with _open(path) as lines:
        first = lines.readline(FIRST_LINE_BYTES_MAX)
    if first.startswith(b'{"t":'):
        return _read_json_lines
    if _HFTBACKTEST.match(first):
        return _read_hftbacktest
    if _CRYPTOFEED_META.match(first) or _CRYPTOFEED.match(first):
        return _read_cryptofeed
    raise UserError(f"{path} is not a capture: neither of hftbacktest nor of cryptofeed, raw or JSON lines")


def _open(path: Path) -> BinaryIO:
    with path.open("rb") as file:
        magic = file.read(4)
    if magic.startswith(_GZIP):
        return io.BufferedReader(gzip.open(path))
    if magic == _ZSTD:
        reader = zstandard.ZstdDecompressor().stream_reader(path.open("rb"), read_across_frames=True, closefd=True)
        return io.BufferedReader(reader)
    return path.open("rb")


def _read_hftbacktest(path: Path, feed: str) -> Iterator[Captured]:
    with _open(path) as lines:
        hint = next((m[1].decode() for line in lines if (m := _SYMBOL.search(line))), "")
    with _open(path) as lines:
        for line in lines:
            if (match := _HFTBACKTEST.match(line)) and (line.endswith(b"\n") or _is_json(match[2])):
                yield Captured(feed, int(match[1]), match[2].rstrip(), path.name, hint)


def _read_cryptofeed(path: Path, feed: str) -> Iterator[Captured]:
    with _open(path) as lines:
        for line in lines:
            if (match := _CRYPTOFEED.match(line)) and (line.endswith(b"\n") or _is_json(match[3])):
                received_ns = _nanoseconds(match[1].decode(), (match[2] or b"").decode())
                yield Captured(feed, received_ns, match[3].rstrip(), path.name)


def _is_json(data: bytes) -> bool:
    """Of a last line without its newline: whole, or cut off."""
    try:
        orjson.loads(data)
    except orjson.JSONDecodeError:
        return False
    return True


def _read_json_lines(path: Path, feed: str) -> Iterator[Captured]:
    """In order of time, as the file may hold one connection after the other; never changing the order within one."""
    feeds: dict[str, str] = {}
    latest: dict[str, int] = {}
    rows: list[tuple[int, Captured]] = []
    with _open(path) as lines:
        for number, line in enumerate(lines, start=1):
            row = _json_row(path, number, line)
            connection = str(row.get("conn", ""))
            if "addr" in row:
                feeds[connection] = _feed_of(feed, str(row["addr"]))
            if row.get("t") != "recv" or feeds.get(connection, feed) == "":
                continue
            if feeds.get(connection, feed) not in FEEDS:
                raise UserError(
                    f"{path}:{number}: no address names the market; use --feed bybit.linear (or .spot, .inverse)"
                )
            received_ns = _nanoseconds(*str(row["ts"]).partition(".")[::2])
            latest[connection] = max(received_ns, latest.get(connection, 0))
            captured = Captured(feeds.get(connection, feed), received_ns, row["data"].encode(), connection)
            rows.append((latest[connection], captured))
    rows.sort(key=lambda row: row[0])
    return (captured for _, captured in rows)


def _json_row(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line, parse_float=str)
    except ValueError:
        row = None
    if not isinstance(row, dict) or (row.get("t") == "recv" and not (isinstance(row.get("data"), str) and "ts" in row)):
        raise UserError(f"{path}:{number}: not a line of a cryptofeed capture")
    return row


def _feed_of(feed: str, address: str) -> str:
    """The `feed` header of a connection; "" if the user asked for another market than the address names."""
    if not feed.startswith("bybit"):
        return feed
    market = f"bybit.{address.rstrip('/').rpartition('/')[2]}"
    if market not in FEEDS:
        return feed
    return market if feed in ("bybit", market) else ""


def _nanoseconds(seconds: str, fraction: str) -> int:
    return int(seconds) * 1_000_000_000 + int(fraction[:9].ljust(9, "0"))
