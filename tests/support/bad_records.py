"""Records of the ticks topic that nobody can use, and why."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from protos.topics import HEADER_CONTENT_TYPE, HEADER_FEED, HEADER_RECEIVED_NS

BTCUSDT, TICK = b"binance:spot:BTCUSDT", b"canonical:test:TICK"
SPOT = {HEADER_FEED: b"binance.spot"}
CANONICAL = {HEADER_FEED: b"canonical", HEADER_CONTENT_TYPE: b"application/json"}
DELTA = b'{"e":"depthUpdate","E":1,"s":"BTCUSDT","U":1,"u":2,"b":[["%b","%b"]],"a":[]}'


@dataclass(frozen=True)
class Bad:
    reason: str
    value: bytes | None
    key: bytes | None = BTCUSDT
    headers: Mapping[str, bytes] = field(default_factory=lambda: SPOT)


BAD = {
    "bad JSON": Bad("bad-json", b'{"e":"depthUpdate",'),
    "not even text": Bad("bad-json", bytes(range(256))),
    "empty": Bad("bad-json", b""),
    "null": Bad("null-value", None),
    "2 MB": Bad("too-large", DELTA % (b"1" * 2_000_000, b"1")),
    "NaN": Bad("bad-price", DELTA % (b"NaN", b"1")),
    "negative price": Bad("bad-price", DELTA % (b"-61000.10", b"1")),
    "40 digits": Bad("bad-price", DELTA % (b"1234567890" * 4, b"1")),
    "infinite size": Bad("bad-size", DELTA % (b"61000.10", b"Infinity")),
    "negative size": Bad("bad-size", DELTA % (b"61000.10", b"-1")),
    "another instrument": Bad("wrong-instrument", (DELTA % (b"1", b"1")).replace(b"BTCUSDT", b"ETHUSDT")),
    "another schema": Bad("bad-field", b'{"surprise":[1,2,3]}'),
    "no time": Bad("bad-field", DELTA % (b"1", b"1"), headers={**SPOT, HEADER_RECEIVED_NS: b"noon"}),
    "unknown feed": Bad("unknown-feed", DELTA % (b"1", b"1"), headers={HEADER_FEED: b"nasdaq"}),
    "no feed": Bad("unknown-feed", DELTA % (b"1", b"1"), headers={}),
    "wrong schema version": Bad("bad-version", b'{"version":2,"kind":"snapshot"}', TICK, CANONICAL),
    "bad key": Bad("bad-key", DELTA % (b"1", b"1"), b"BTCUSDT"),
    "key that is not text": Bad("bad-key", DELTA % (b"1", b"1"), b"\xff\xfe:\x00:\x01"),
    "no key": Bad("bad-key", DELTA % (b"1", b"1"), None),
}
"""None shakes a book of Binance: its sequence says that no delta of its own was among them."""
