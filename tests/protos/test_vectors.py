"""The golden vectors: encoders give exactly these bytes, decoders give exactly these fields.

One file per message in protos/vectors: its fields (times as text, enums by name), the instrument's scale, the bytes of
the binary codecs as hex and the text of JSON. SDKs in other languages pass the same files. A deliberate change of the
wire is written with ``python tests/protos/test_vectors.py``, and is a new subprotocol version once released.
"""

import json
from dataclasses import asdict, fields
from enum import IntEnum
from pathlib import Path
from typing import Any

import pytest

from protos import messages as m
from protos.codec import CODECS
from protos.records import (
    decode_checkpoint,
    decode_market,
    decode_state,
    encode_checkpoint,
    encode_market,
    encode_state,
)
from protos.tick import (
    CONTENT_JSON,
    CONTENT_MSGPACK,
    CONTENT_PROTO,
    Tick,
    TickKind,
    TickTrade,
    decode_tick,
    encode_tick,
)

VECTORS = Path(__file__).parents[2] / "protos" / "vectors"
PROTO, MSGPACK, JSON = CODECS.values()
SCALE = m.Scale(-2, -5)
START = {
    "stream": 3,
    "epoch": 1723161254206,
    "seq": 1_000_000,
    "flags": int(m.Flag.SNAPSHOT),
    "ts_event_ns": 1723161254206000000,
    "ts_received_ns": 1723161254206652067,
    "ts_published_ns": 1723161254207652067,
}
NEXT = START | {"seq": 1_000_012, "prev_seq": 1_000_000, "flags": 0, "ts_received_ns": 1723161252937085768}
KAFKA = NEXT | {"stream": 0, "ts_published_ns": 0}

SERVER: dict[str, m.ServerMessage] = {
    "book_snapshot": m.BookUpdate(
        **START,
        bids=[(6183700, 61700), (6183762, 61700), (6183763, 378826)],
        asks=[(6183764, 154698), (6190000, 1)],
        scale=SCALE,
        venue_checksum=4294967295,
        venue_depth=1000,
    ),
    "book_delta": m.BookUpdate(**NEXT, bids=[(6182099, 0), (6183763, 378000)], asks=[(6183764, 0), (6183765, 20)]),
    "book_conflated": m.BookUpdate(
        **NEXT | {"flags": int(m.Flag.CONFLATED | m.Flag.CROSSED)}, bids=[(6183764, 7)], venue_checksum=0
    ),
    "book_negative_prices": m.BookUpdate(**KAFKA, bids=[(-3763, 1), (-1, 0), (0, 2)], asks=[(1, 10**18 - 1)]),
    "book_empty": m.BookUpdate(**START, scale=m.Scale(0, 0)),
    "book_no_event_time": m.BookUpdate(**NEXT | {"ts_event_ns": 0}, bids=[(6183763, 5)]),
    "trades": m.TradesUpdate(
        **NEXT,
        trades=[
            m.Trade(6183763, 2000, m.Side.SELL, "3735683259", 1723161255342000000),
            m.Trade(6183764, 1, m.Side.BUY, "3735683260", 1723161255342000001),
        ],
    ),
    "trades_first": m.TradesUpdate(**START, trades=[m.Trade(6183763, 2000)], scale=SCALE),
    "bbo": m.QuoteUpdate(**NEXT, bid_ticks=6183763, bid_lots=378826, ask_ticks=6183764, ask_lots=154698),
    "bbo_derived": m.QuoteUpdate(
        **START | {"flags": int(m.Flag.DERIVED)}, ask_ticks=6183764, ask_lots=154698, scale=SCALE
    ),
    "status_synced": m.StatusUpdate(**START | {"flags": 0}, state=m.BookState.SYNCED, reason=m.Reason.SNAPSHOT),
    "status_gapped": m.StatusUpdate(
        **NEXT | {"flags": int(m.Flag.GAPPED)}, state=m.BookState.GAPPED, reason=m.Reason.CHECKSUM_MISMATCH
    ),
    "digest": m.Digest(3, 1723161254206, 1_000_012, 0xCBF43926),
    "notice_skipped": m.Notice(m.NoticeCode.SKIPPED, 3, 1723161254206, 1_000_000, 1_000_012),
    "notice_gap": m.Notice(m.NoticeCode.GAP, 3, 1723161254206, reason=m.Reason.SEQUENCE_GAP),
    "notice_shutdown": m.Notice(m.NoticeCode.SHUTDOWN, retry_after_ms=1500),
    "notice_auth_expiring": m.Notice(m.NoticeCode.AUTH_EXPIRING, retry_after_ms=30_000),
    "welcome": m.Welcome("9f1c2a", 15000, 4096, 512),
    "subscribed": m.Subscribed(
        7,
        3,
        "binance:spot:BTCUSDT",
        m.Channel.BOOK,
        50,
        100,
        1723161254206,
        1_000_000,
        SCALE,
        resumed=True,
        state=m.BookState.SYNCED,
    ),
    "subscribed_waiting": m.Subscribed(8, 4, "kraken:spot:XBT/CHF", m.Channel.RAW),
    "unsubscribed": m.Unsubscribed(9, 3),
    "pong": m.Pong(10, 1723161254207652067),
    "restored": m.Restored(12, 200),
    "error": m.Error(11, m.ErrorCode.BAD_DEPTH, "depth 7 is none of 1, 10, 50, 200, 0 (full): ask for 10 · 深さ"),
}
COMMANDS: dict[str, m.Command] = {
    "subscribe": m.Subscribe(7, "binance:spot:BTCUSDT", m.Channel.BOOK, 50, 100),
    "subscribe_resume": m.Subscribe(
        2**53 - 1, "okx:swap:UNI-USD-SWAP", m.Channel.RAW, resume=m.Resume(1723161254206, 9)
    ),
    "subscribe_skip": m.Subscribe(0, "okx:spot:BTC-USDT", m.Channel.TRADES, slow_policy=m.SlowPolicy.SKIP),
    "unsubscribe": m.Unsubscribe(9, 3),
    "ping": m.Ping(10),
    "auth": m.Auth(11, "eyJhbGciOiJIUzI1NiJ9.e30.c2ln"),
    "restore": m.Restore(12, "9f1c2a"),
}
TICKS = {
    "tick_delta": Tick(TickKind.DELTA, 2, 1, 1723161254206000000, [("8442.65000000", "0")], [("8.75E+3", "1")]),
    "tick_trades": Tick(TickKind.TRADES, 3, trades=[TickTrade("1.5", "2", m.Side.BUY, "t1", 5), TickTrade("1", "1")]),
    "tick_disconnected": Tick(TickKind.DISCONNECTED),
}
STATE = m.InstrumentState(
    987654321,
    SERVER["book_snapshot"],  # type: ignore[arg-type]
    b"\x00\x01state",
    SERVER["status_synced"],  # type: ignore[arg-type]
    SERVER["bbo"],  # type: ignore[arg-type]
    SERVER["trades"],  # type: ignore[arg-type]
)
CHECKPOINT = m.Checkpoint(987654321, 123456789)


def plain(value: object, name: str = "") -> Any:  # noqa: ANN401
    """JSON that any language reads without loss: times and bytes as text, enums by name."""
    if isinstance(value, IntEnum):
        return value.name.lower()
    if isinstance(value, bytes):
        return value.hex()
    if name.endswith("_ns"):
        return str(value)
    if isinstance(value, dict):
        return {key: plain(item, key) for key, item in value.items()}
    if isinstance(value, TickTrade):
        return plain(value._asdict())
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def vectors() -> dict[str, Any]:
    """What the files hold, made by the codecs of this program."""
    made: dict[str, Any] = {}
    for name, message in SERVER.items():
        made[name] = {
            "message": type(message).__name__,
            "fields": plain(asdict(message)),
            "scale": asdict(SCALE),
            "proto": PROTO.encode(message, SCALE).hex(),
            "msgpack": MSGPACK.encode(message, SCALE).hex(),
            "json": JSON.encode(message, SCALE).decode(),
        }
    for name, command in COMMANDS.items():
        made[f"command_{name}"] = {
            "command": type(command).__name__,
            "fields": plain(asdict(command)),
            "proto": PROTO.encode_command(command).hex(),
            "msgpack": MSGPACK.encode_command(command).hex(),
            "json": JSON.encode_command(command).decode(),
        }
    for name, tick in TICKS.items():
        made[name] = {
            "tick": "Tick",
            "fields": plain(asdict(tick)),
            "proto": encode_tick(tick, CONTENT_PROTO).hex(),
            "msgpack": encode_tick(tick, CONTENT_MSGPACK).hex(),
            "json": encode_tick(tick, CONTENT_JSON).decode(),
        }
    market = SERVER["book_negative_prices"]
    assert isinstance(market, m.BookUpdate)
    for name, record, value in (
        ("market", market, encode_market(market)),
        ("state", STATE, encode_state(STATE)),
        ("checkpoint", CHECKPOINT, encode_checkpoint(CHECKPOINT)),
    ):
        made[f"record_{name}"] = {
            "record": type(record).__name__,
            "fields": plain(asdict(record)),
            "proto": value.hex(),
        }
    return made


def stored(name: str) -> Any:  # noqa: ANN401
    return json.loads((VECTORS / f"{name}.json").read_text())


MADE = vectors()


def test_the_files_are_these_vectors() -> None:
    assert {path.stem for path in VECTORS.glob("*.json")} == set(MADE)


@pytest.mark.usefixtures("both")
def test_encoders_give_exactly_the_vectors() -> None:
    for name, made in vectors().items():
        assert made == stored(name)


@pytest.mark.usefixtures("both")
@pytest.mark.parametrize("name", SERVER)
def test_decoders_give_the_message_back(name: str) -> None:
    vector = stored(name)
    assert PROTO.decode(bytes.fromhex(vector["proto"])) == [SERVER[name]]
    assert MSGPACK.decode(bytes.fromhex(vector["msgpack"])) == [SERVER[name]]
    assert JSON.decode(vector["json"].encode()) == [SERVER[name]]


@pytest.mark.parametrize("name", COMMANDS)
def test_decoders_give_the_command_back(name: str) -> None:
    vector = stored(f"command_{name}")
    assert PROTO.decode_command(bytes.fromhex(vector["proto"])) == COMMANDS[name]
    assert MSGPACK.decode_command(bytes.fromhex(vector["msgpack"])) == COMMANDS[name]
    assert JSON.decode_command(vector["json"].encode()) == COMMANDS[name]


@pytest.mark.parametrize("name", TICKS)
def test_decoders_give_the_tick_back(name: str) -> None:
    vector = stored(name)
    assert decode_tick(bytes.fromhex(vector["proto"]), CONTENT_PROTO) == TICKS[name]
    assert decode_tick(bytes.fromhex(vector["msgpack"]), CONTENT_MSGPACK) == TICKS[name]
    assert decode_tick(vector["json"].encode(), CONTENT_JSON) == TICKS[name]


@pytest.mark.usefixtures("both")
def test_decoders_give_the_records_back() -> None:
    assert decode_market(bytes.fromhex(stored("record_market")["proto"])) == SERVER["book_negative_prices"]
    assert decode_state(bytes.fromhex(stored("record_state")["proto"])) == STATE
    assert decode_checkpoint(bytes.fromhex(stored("record_checkpoint")["proto"])) == CHECKPOINT


def test_every_message_and_command_has_a_vector() -> None:
    assert {type(message) for message in SERVER.values()} == set(m.ServerMessage.__args__)
    assert {type(command) for command in COMMANDS.values()} == set(m.Command.__args__)
    for message in (*SERVER.values(), *COMMANDS.values()):
        name = type(message).__name__
        assert [f.name for f in fields(message)] == list(MADE[_vector_of(name)]["fields"])


def _vector_of(type_name: str) -> str:
    return next(name for name, made in MADE.items() if type_name in (made.get("message"), made.get("command")))


if __name__ == "__main__":
    for path in VECTORS.glob("*.json"):
        path.unlink()
    for name, made in MADE.items():
        (VECTORS / f"{name}.json").write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n")
