"""What the codecs refuse, and what a newer peer may send."""

import json
from dataclasses import replace
from typing import Any

import msgpack
import orjson
import pytest

from protos import depthcast_pb2 as pb
from protos import messages as m
from protos import wire
from protos.codec import CODECS, Codec, CodecError
from protos.records import (
    decode_checkpoint,
    decode_market,
    decode_state,
)
from protos.wire import COUNT_MAX, VALUE_MAX

pytestmark = pytest.mark.usefixtures("both")
PROTO, MSGPACK, JSON = CODECS.values()
SCALE = m.Scale(-2, -5)

codecs = pytest.mark.parametrize("codec", CODECS.values(), ids=lambda codec: codec.name)

BOOK = m.BookUpdate(stream=1, epoch=5, seq=9, prev_seq=8, bids=[(10, 1), (11, 2)])


def proto_book(**changes: Any) -> bytes:  # noqa: ANN401
    body = pb.BookUpdate(stream=1, epoch=5, seq=9, seq_step=1, bid_steps=[40, 2], bid_lots=[1, 2])
    for name, value in changes.items():
        body.ClearField(name)
        getattr(body, name).extend(value) if isinstance(value, list) else setattr(body, name, value)
    return pb.Frame(chunks=[pb.Chunk(book=body)]).SerializeToString()


def test_the_book_of_these_tests_is_valid() -> None:
    assert PROTO.decode(proto_book()) == [BOOK]


@pytest.mark.parametrize(
    "changes",
    [
        {"epoch": COUNT_MAX + 1},
        {"seq": 2**64 - 1},
        {"seq_step": 9},
        {"ts_event_ns": 2**63},
        {"ts_received_after_ns": -1},
        {"ts_published_after_ns": -1},
        {"ts_published_after_ns": 2**63 - 1, "ts_received_after_ns": 1},
        {"bid_steps": [40, 0]},
        {"bid_steps": [40, 1]},
        {"bid_steps": []},
        {"bid_steps": [41, 2]},
        {"bid_lots": [1]},
        {"bid_lots": [0, 1]},
        {"bid_lots": [1, VALUE_MAX + 1]},
        {"bid_steps": [4 * VALUE_MAX, 4]},
        {"bid_steps": [4 * VALUE_MAX + 2, 2]},
    ],
)
def test_protobuf_books_that_are_no_books(changes: dict[str, Any]) -> None:
    with pytest.raises(CodecError):
        PROTO.decode(proto_book(**changes))


def test_too_many_levels() -> None:
    many = wire.LEVELS_MAX + 1
    with pytest.raises(CodecError, match="levels"):
        PROTO.decode(proto_book(bid_steps=[2] * many, bid_lots=[1] * many))
    flat = [0, *([1, 1] * many)]
    with pytest.raises(CodecError):
        MSGPACK.decode(msgpack.packb([1, 1, 0, 9, 1, 0, 0, 0, None, flat]))
    with pytest.raises(CodecError, match="levels"):
        MSGPACK.decode(msgpack.packb([1, 1, 0, 9, 1, 0, 0, 0, None, [0, *([-1] * many)]]))
    line = json.loads(JSON.encode(BOOK, SCALE)) | {"bids": [["1", "1"]] * many}
    with pytest.raises(CodecError, match="elements"):
        JSON.decode(orjson.dumps(line))


def test_too_many_trades() -> None:
    update = pb.TradesUpdate(seq=1, trades=[pb.Trade()] * (wire.TRADES_MAX + 1))
    with pytest.raises(CodecError, match="trades"):
        PROTO.decode(pb.Frame(chunks=[pb.Chunk(trades=update)]).SerializeToString())


def test_a_quote_out_of_range() -> None:
    for name in ("bid_ticks", "ask_ticks", "bid_lots", "ask_lots"):
        chunk = pb.Chunk(bbo=pb.QuoteUpdate(**{name: VALUE_MAX + 1}))
        with pytest.raises(CodecError):
            PROTO.decode(pb.Frame(chunks=[chunk]).SerializeToString())


@pytest.mark.parametrize(
    "fields",
    [
        5,
        [],
        [1, True],
        [1, 1, 0, 9, 9],  # leads to seq 0
        [1, 1, 0, 9, 1, 0, -1],
        [1, 1, 0, 9, 1, 0, 0, 0, None, [0, 1]],  # a size is missing
        [1, 1, 0, 9, 1, 0, 0, 0, None, [0, 1, 0]],
        [1, 1, 0, 9, 1, 0, 0, 0, None, [0, 1, 1, 0]],  # does not ascend
        [1, 1, 0, 9, 1, 0, 0, 0, None, [0, 1, 1.0]],
        [1, 1, 0, 9, 1, 0, 0, 0, None, [0, 1, VALUE_MAX + 1]],
        [1, 1, 0, 9, 1, 0, 0, 0, None, [0, VALUE_MAX + 1, 1]],
        [1, 1, 0, 9, 1, 0, 0, 0, None, None],
        [2, 1, 0, 9, 1, 0, 0, 0, None, [[1, 2, 3]]],
        [2, 1, 0, 9, 1, 0, 0, 0, None, [None] * (wire.TRADES_MAX + 1)],
        [2, 1, 0, 9, 1, 0, 0, 0, None, [[1, 2, 3, "x"]]],
        [2, 1, 0, 9, 1, 0, 0, 0, None, [[1, 2, 1, "x" * 200, 0]]],
        [8, 1, 1, "a:b:c", 1, 0, 0, 0, 0, [1]],
        [8, 1, 1, "a:b:c", 1, 0, 0, 0, 0, [1, 0]],
        [8, 1, 1, "a:b:c", 1, 0, 0, 0, 0, None, 1],
    ],
)
def test_messagepack_that_is_no_message(fields: object) -> None:
    with pytest.raises(CodecError):
        MSGPACK.decode(msgpack.packb(fields))


@pytest.mark.parametrize(
    "changes",
    [
        {"type": None},
        {"flags": "snapshot"},
        {"flags": [1]},
        {"ts_event_ns": 1},
        {"ts_event_ns": "-1"},
        {"ts_event_ns": "9" * 19},
        {"prev_seq": 10},
        {"bids": {}},
        {"bids": [["1"]]},
        {"bids": [["1.001", "1"]]},
        {"bids": [["NaN", "1"]]},
        {"bids": [["2", "1"], ["1", "1"]]},
        {"bids": [["1", "-1"]]},
        {"bids": [[1, 1]]},
        {"tick_size": "0.02"},
        {"tick_size": "10"},
        {"tick_size": "x"},
        {"lot_size": None},
    ],
)
def test_json_that_is_no_message(changes: dict[str, Any]) -> None:
    with pytest.raises(CodecError):
        JSON.decode(orjson.dumps(orjson.loads(JSON.encode(BOOK, SCALE)) | changes))


def test_json_needs_the_scale_only_where_prices_are() -> None:
    with pytest.raises(ValueError, match="scale"):
        JSON.encode(BOOK)
    empty = replace(BOOK, bids=[])
    assert JSON.decode(JSON.encode(empty)) == [empty]


@codecs
def test_nonsense_is_refused(codec: Codec) -> None:
    for decode in (codec.decode, codec.decode_command):
        for data in (
            b"\xff\xff",
            b"{",
            b"[" * 100_000,
            b"\x91" * 100_000,
            b"\xdd\xff\xff\xff\xff",
            b"\x81\x01\x02",
            b"NaN",
        ):
            with pytest.raises(CodecError):
                decode(data)
    with pytest.raises(CodecError):
        codec.decode_command(b"")
    assert codec.decode(b"") == []


def test_what_a_newer_server_sends_is_read_as_far_as_it_is_known() -> None:
    newer = pb.Chunk(status=pb.StatusUpdate(seq=1, flags=1 << 20 | 1))
    newer.status.state = newer.status.reason = 99  # type: ignore[assignment]
    expected = m.StatusUpdate(seq=1, flags=1)
    unknown_field = pb.Frame(chunks=[pb.Chunk.FromString(b"\xa2\x06\x00"), newer])  # field 100
    assert PROTO.decode(unknown_field.SerializeToString()) == [expected]
    packed = msgpack.packb([99, "x"]) + msgpack.packb([4, 0, 0, 1, None, 1 << 20 | 1, 0, 0, None, 99, 99, "more"])
    assert MSGPACK.decode(packed) == [expected]
    line = orjson.loads(JSON.encode(expected)) | {
        "state": "new",
        "reason": "new",
        "flags": ["new", "snapshot"],
        "more": 1,
    }
    assert JSON.decode(b'{"type":"new"}\n' + orjson.dumps(line) + b"\n") == [expected]


def test_what_a_newer_client_asks_is_refused() -> None:
    command = pb.Command(subscribe=pb.Subscribe(instrument="a:b:c"))
    command.subscribe.channel = 99  # type: ignore[assignment]
    newer = pb.Command.FromString(b"\xa2\x06\x00")
    for data in (command.SerializeToString(), newer.SerializeToString()):
        with pytest.raises(CodecError, match="unknown"):
            PROTO.decode_command(data)
    for fields in ([2, 1, "a:b:c", 99], [2, 1, "a:b:c", 1, 0, 0, None, 9], [2, 1, "a:b:c", 1, 0, 0, None, 0, 0], [99]):
        with pytest.raises(CodecError, match="known"):
            MSGPACK.decode_command(msgpack.packb(fields))
    for line in (b'{"type":"new"}', b'{"type":"subscribe","instrument":"a","channel":"new"}'):
        with pytest.raises(CodecError, match=r"none of|is unknown"):
            JSON.decode_command(line)
    with pytest.raises(CodecError, match="no field 'dept'"):
        JSON.decode_command(b'{"type":"subscribe","instrument":"a:b:c","channel":"book","dept":10}')
    with pytest.raises(CodecError, match="one command"):
        MSGPACK.decode_command(2 * MSGPACK.encode_command(m.Ping(1)))


def test_a_command_typed_by_hand() -> None:
    typed = b'{"type": "subscribe", "instrument": "binance:spot:BTCUSDT", "channel": "book"}'
    assert JSON.decode_command(typed) == m.Subscribe(0, "binance:spot:BTCUSDT", m.Channel.BOOK)
    assert JSON.decode_command(b'{"type":"ping"}') == m.Ping(0)
    for line in (
        b'{"type":"subscribe","channel":"book"}',
        b'{"type":"subscribe","instrument":"a:b:c"}',
        b'{"type":"unsubscribe"}',
    ):
        with pytest.raises(CodecError):
            JSON.decode_command(line)


@pytest.mark.parametrize("value", [b"", PROTO.encode(m.Pong(1, 2))[2:]])
def test_a_market_record_is_one_update(value: bytes) -> None:
    with pytest.raises(CodecError):
        decode_market(value)


def test_records_of_another_version_are_refused() -> None:
    for decode in (decode_state, decode_checkpoint):
        with pytest.raises(CodecError, match="version 2"):
            decode(pb.Checkpoint(version=2).SerializeToString())
