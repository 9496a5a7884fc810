"""The canonical tick: three forms, one meaning; junk gives CodecError and nothing else."""

import json
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos import depthcast_pb2 as pb
from protos import wire
from protos.messages import Side
from protos.tick import (
    CONTENT_JSON,
    CONTENT_MSGPACK,
    CONTENT_PROTO,
    Tick,
    TickKind,
    TickTrade,
    VersionError,
    decode_tick,
    encode_tick,
)
from protos.wire import COUNT_MAX, NS_MAX, CodecError

CONTENT_TYPES = (CONTENT_PROTO, CONTENT_MSGPACK, CONTENT_JSON)
content_types = pytest.mark.parametrize("content_type", CONTENT_TYPES)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
counts = st.integers(0, COUNT_MAX)
times = st.integers(0, NS_MAX)
levels = st.lists(st.tuples(texts, texts), max_size=5)
ticks = st.builds(
    Tick,
    st.sampled_from(TickKind),
    counts,
    counts,
    times,
    levels,
    levels,
    st.lists(st.builds(TickTrade, texts, texts, st.sampled_from(Side), texts, times), max_size=3),
)


@content_types
@given(ticks)
def test_ticks_round_trip(content_type: str, tick: Tick) -> None:
    assert decode_tick(encode_tick(tick, content_type), content_type) == tick


@content_types
@given(st.binary(max_size=100))
def test_any_bytes(content_type: str, data: bytes) -> None:
    try:
        decode_tick(data, content_type)
    except CodecError as error:
        assert str(error)  # noqa: PT017


@content_types
@given(ticks, st.data())
def test_mutated_ticks(content_type: str, tick: Tick, data: st.DataObject) -> None:
    mutated = bytearray(encode_tick(tick, content_type))
    at = data.draw(st.integers(0, len(mutated)))
    mutated[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    try:
        decode_tick(bytes(mutated), content_type)
    except CodecError as error:
        assert str(error)  # noqa: PT017


def test_what_is_empty_may_be_left_out() -> None:
    assert decode_tick(b'{"version":1,"kind":"gap"}', CONTENT_JSON) == Tick(TickKind.GAP)
    trade = b'{"version":1,"kind":"trades","ts_event_ns":"5","trades":[{"price":"1","size":"2"}]}'
    assert decode_tick(trade, CONTENT_JSON) == Tick(TickKind.TRADES, ts_event_ns=5, trades=[TickTrade("1", "2")])


VALID = {"version": 1, "kind": "delta", "bids": [["1", "2"]], "trades": [{"price": "1", "size": "1", "side": "buy"}]}


@pytest.mark.parametrize(
    "changes",
    [
        {"version": "1"},
        {"kind": "candle"},
        {"kind": 2},
        {"sequence": -1},
        {"sequence": 1.0},
        {"prev_sequence": COUNT_MAX + 1},
        {"ts_event_ns": "5s"},
        {"ts_event_ns": "9" * 19},
        {"ts_event_ns": 2**63},
        {"bids": {"1": "2"}},
        {"bids": ["12"]},
        {"bids": [["1"]]},
        {"bids": [[1, 2]]},
        {"asks": [["1" * 65, "2"]]},
        {"trades": ["buy"]},
        {"trades": [{"price": "1"}]},
        {"trades": [{"price": "1", "size": "1", "side": "long"}]},
        {"trades": [{"price": "1", "size": "1", "trade_id": "x" * 129}]},
    ],
)
def test_what_is_no_tick(changes: dict[str, Any]) -> None:
    assert decode_tick(json.dumps(VALID).encode(), CONTENT_JSON).kind is TickKind.DELTA
    with pytest.raises(CodecError):
        decode_tick(json.dumps(VALID | changes).encode(), CONTENT_JSON)
    with pytest.raises(CodecError):
        decode_tick(msgpack.packb(VALID | changes), CONTENT_MSGPACK)


@pytest.mark.parametrize("data", [b"[]", b"1", b"nul", b"[" * 100_000])
def test_json_that_is_no_map(data: bytes) -> None:
    with pytest.raises(CodecError):
        decode_tick(data, CONTENT_JSON)


def test_another_version_is_named() -> None:
    for value, content_type in (
        (pb.Tick(version=2).SerializeToString(), CONTENT_PROTO),
        (json.dumps(VALID | {"version": 2}).encode(), CONTENT_JSON),
    ):
        with pytest.raises(VersionError, match="version 2"):
            decode_tick(value, content_type)


def test_protobuf_bounds() -> None:
    unknown_kind = pb.Tick(version=1)
    unknown_kind.kind = 99  # type: ignore[assignment]
    unknown_side = pb.Tick(version=1, kind=pb.TICK_KIND_TRADES, trades=[pb.TickTrade()])
    unknown_side.trades[0].side = 99  # type: ignore[assignment]
    crowded = pb.Tick(version=1, kind=pb.TICK_KIND_TRADES, trades=[pb.TickTrade()] * (wire.TRADES_MAX + 1))
    long_text = pb.Tick(version=1, kind=pb.TICK_KIND_DELTA, bids=[pb.PriceLevel(price="1", size="1" * 65)])
    for tick, words in (
        (unknown_kind, "kind is none of"),
        (unknown_side, "side 99"),
        (crowded, "more than"),
        (long_text, "more than 64 characters"),
    ):
        with pytest.raises(CodecError, match=words):
            decode_tick(tick.SerializeToString(), CONTENT_PROTO)


def test_an_unknown_content_type() -> None:
    with pytest.raises(CodecError, match="text/plain"):
        decode_tick(b"", "text/plain")
    with pytest.raises(ValueError, match="text/plain"):
        encode_tick(Tick(TickKind.GAP), "text/plain")
