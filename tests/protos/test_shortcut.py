"""The shortcuts in C say what the codec in Python says, to the byte, and are taken for whatever is usual."""

import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos import depthcast_pb2 as pb
from protos import messages as m
from protos.codec import CODECS, CodecError
from protos.records import decode_market, encode_market
from protos.wire import COUNT_MAX, LEVELS_MAX, NS_MAX, TRADE_ID_MAX, TRADES_MAX, U32_MAX, VALUE_MAX
from tests.protos.test_codec import messages, updates
from tests.support.native import native
from tests.support.shortcuts import shortcuts

PROTO = next(iter(CODECS.values()))
T = 1_723_161_254_206_652_067
HEADER: dict[str, Any] = {
    "stream": 3,
    "epoch": T // 1_000_000,
    "seq": 1_000_012,
    "prev_seq": 1_000_000,
    "ts_event_ns": T - 652_067,
    "ts_received_ns": T,
    "ts_published_ns": T + 1_000_000,
}
BOOK = m.BookUpdate(**HEADER, bids=[(-3, 7), (5, 0), (6, 9)], asks=[(8, 300), (9, 0)], venue_checksum=0)
TRADE = m.Trade(6_183_763, 2_000, m.Side.SELL, "3735683259", T)
TRADES = m.TradesUpdate(**HEADER, trades=[TRADE, replace(TRADE, trade_id="é")], scale=m.Scale(-2, 0))
QUOTE = m.QuoteUpdate(**HEADER, bid_ticks=-5, bid_lots=7, ask_ticks=6, ask_lots=1)
USUAL = [BOOK, TRADES, QUOTE]
usual = pytest.mark.parametrize("message", USUAL, ids=["book", "trades", "bbo"])


@pytest.fixture(scope="module", autouse=True)
def module() -> Any:  # noqa: ANN401 - known by its stub
    return native("protos.native")


def outcome(function: Callable[[Any], object], argument: object) -> object:
    """What it returns, or the type and text of what it raises."""
    try:
        return function(argument)
    except Exception as error:
        return type(error), str(error)


def agree(function: Callable[[Any], object], argument: object) -> object:
    """What both do."""
    with shortcuts("python"):
        expected = outcome(function, argument)
    with shortcuts("native"):
        assert outcome(function, argument) == expected
    return expected


# ---- writing


@given(updates())
def test_the_bytes_are_the_same(update: m.MarketMessage) -> None:
    taken = not isinstance(update, m.StatusUpdate)
    for encode, name in ((encode_market, "pack_record"), (PROTO.encode, "pack_frame")):
        data = agree(encode, update)
        assert getattr(native("protos.native"), name)(update) == (data if taken else None)


numbers = st.integers(-(2**65), 2**65) | st.sampled_from([-1, 0, 1, 2**31, U32_MAX, 2**32, 2**63 - 1, 2**63, 2**64])
values = (
    numbers
    | st.sampled_from(
        [None, True, 1.0, 0.5, "5", "\ud800", "x" * 200, b"5", m.Flag.STALE, m.Scale(-19, 0), m.Scale(1, 0)]
    )
    | st.lists(st.tuples(numbers, numbers), max_size=4)
    | st.lists(st.tuples(numbers) | st.lists(numbers, max_size=2) | st.none(), max_size=2)
    | st.lists(st.builds(m.Trade, numbers, numbers, numbers | st.none(), st.text(max_size=3) | st.none(), numbers))
)


@usual
@given(data=st.data())
def test_any_value_in_a_field_gives_the_same_bytes_or_error(message: m.MarketMessage, data: st.DataObject) -> None:
    names = data.draw(st.lists(st.sampled_from([field.name for field in fields(message)]), min_size=1, max_size=2))
    agree(encode_market, replace(message, **{name: data.draw(values) for name in names}))


@pytest.mark.parametrize(
    "message",
    [
        replace(BOOK, bids=[(VALUE_MAX, VALUE_MAX)], asks=[(-VALUE_MAX, 0), (VALUE_MAX, 1)]),
        replace(BOOK, bids=[(price, price) for price in range(1, LEVELS_MAX + 1)], asks=[]),
        replace(BOOK, stream=U32_MAX, epoch=COUNT_MAX, seq=COUNT_MAX, prev_seq=1, flags=63, venue_depth=U32_MAX),
        replace(BOOK, ts_event_ns=0, ts_received_ns=0, ts_published_ns=0, scale=m.Scale(-18, -18)),
        replace(BOOK, ts_event_ns=NS_MAX, ts_received_ns=NS_MAX - 2**62 + 1, venue_checksum=U32_MAX),
        replace(TRADES, trades=[m.Trade(-VALUE_MAX, VALUE_MAX, m.Side.BUY, "x" * TRADE_ID_MAX, NS_MAX)] * TRADES_MAX),
        replace(QUOTE, bid_ticks=-VALUE_MAX, bid_lots=VALUE_MAX, ask_ticks=VALUE_MAX, ask_lots=VALUE_MAX),
        m.BookUpdate(),
        m.TradesUpdate(),
        m.QuoteUpdate(),
    ],
    ids=lambda message: type(message).__name__,
)
def test_the_extremes_take_the_shortcut(module: Any, message: m.MarketMessage) -> None:  # noqa: ANN401
    record = agree(encode_market, message)
    assert module.pack_record(message) == record
    assert module.unpack_record(record) == message
    assert agree(decode_market, record) == message


@pytest.mark.parametrize("kind", [m.BookUpdate, m.TradesUpdate, m.QuoteUpdate])
def test_a_message_without_its_fields_is_an_attribute_error(module: Any, kind: type) -> None:  # noqa: ANN401
    for pack in (module.pack_record, module.pack_frame):
        with pytest.raises(AttributeError):
            pack(kind.__new__(kind))


# ---- reading


@given(st.lists(messages, max_size=5))
def test_a_frame_is_read_in_order(sent: list[m.ServerMessage]) -> None:
    frame = b"".join(PROTO.encode(message) for message in sent)
    assert agree(PROTO.decode, frame) == sent
    parts = native("protos.native").unpack_frame(frame)
    taken = [
        message
        for message in sent
        if isinstance(message, m.BookUpdate | m.TradesUpdate | m.QuoteUpdate) and near(message)
    ]
    assert [part for part in parts if not isinstance(part, bytes)] == taken


def near(update: m.BookUpdate | m.TradesUpdate | m.QuoteUpdate) -> bool:
    """Its times differ by less than 146 years, and so have no number of ten bytes."""
    published_ns = update.ts_published_ns or update.ts_received_ns
    return max(abs(published_ns - update.ts_received_ns), abs(update.ts_received_ns - update.ts_event_ns)) < 2**62


@given(st.data())
def test_mutated_bytes_are_read_the_same(data: st.DataObject) -> None:
    mutated = bytearray(data.draw(updates().map(encode_market)))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(mutated)))
        mutated[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    agree(decode_market, bytes(mutated))
    agree(PROTO.decode, bytes((10, len(mutated) & 127)) + mutated)


wire_values = st.integers(0, 9) | st.integers(0, 2**64 - 1)
bodies = st.one_of(
    st.builds(
        pb.BookUpdate,
        stream=st.integers(0, U32_MAX),
        seq=wire_values,
        seq_step=st.none() | wire_values,
        ts_event_ns=wire_values,
        ts_received_after_ns=st.none() | st.integers(-(2**63), 2**63 - 1),
        ts_published_after_ns=st.none() | st.integers(-(2**63), 2**63 - 1),
        bid_steps=st.lists(wire_values, max_size=3),
        bid_lots=st.lists(wire_values, max_size=3),
        ask_lots=st.lists(wire_values, max_size=1),
        scale=st.none() | st.builds(pb.Scale, price_exponent=st.integers(-20, 2), size_exponent=st.integers(-20, 2)),
    ),
    st.builds(
        pb.TradesUpdate,
        trades=st.lists(
            st.builds(
                pb.Trade,
                ticks=st.integers(-(2**63), 2**63 - 1),
                lots=wire_values,
                side=st.integers(-1, 4),
                trade_id=st.text(max_size=3) | st.sampled_from(["x" * 128, "x" * 129, "é" * 100, "é" * 129]),
                ts_event_ns=wire_values,
            ),
            max_size=2,
        ),
    ),
    st.builds(pb.QuoteUpdate, bid_ticks=st.integers(-(2**63), 2**63 - 1), bid_lots=wire_values),
)
NUMBER: dict[type, int] = {pb.BookUpdate: 1, pb.TradesUpdate: 2, pb.QuoteUpdate: 3}


@given(st.lists(bodies, min_size=1, max_size=3))
def test_any_protobuf_is_read_the_same(parts: list[Any]) -> None:
    """One body, or several joined: then fields come again, out of order, and submessages are merged."""
    body = b"".join(part.SerializeToString() for part in parts)
    if len(body) < 128:
        agree(decode_market, bytes((NUMBER[type(parts[0])] << 3 | 2, len(body))) + body)
    agree(PROTO.decode, b"".join(pb.Frame(chunks=[chunk(part)]).SerializeToString() for part in parts))


def chunk(body: Any) -> pb.Chunk:  # noqa: ANN401
    return pb.Chunk(**{("book", "trades", "bbo")[NUMBER[type(body)] - 1]: body})


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("4828482a", "steps that are not packed"),
        ("4a0128520101", "as we write it"),
        ("5201014a0128", "lots before steps"),
        ("4a0128520101" + "4a0102520102", "a list in two parts"),
        ("0801" + "0802", "a number twice"),
        ("088100", "a number in more bytes than it needs"),
        ("0880808080808080808001", "a number of ten bytes"),
        ("08ffffffff1f", "33 bits for a 32-bit number"),
        ("28ffffffff1f", "33 bits for flags"),
        ("78ffffffff1f", "33 bits for a depth"),
        ("4a022801520101", "a step of 0, and the level is removed"),
        ("6a020825", "prices of 19 decimals"),
        ("6a021025", "sizes of 19 decimals"),
        ("6a020802", "prices in tens"),
        ("6a021002", "sizes in tens"),
        ("6a060880808080 10", "an exponent of 33 bits"),
        ("8001 01", "a field that is unknown"),
        ("0b0c", "a group"),
        ("0d01000000", "another wire type"),
        ("0801ff", "half a tag"),
        ("310100", "half a number"),
        ("4a0580", "half a list"),
        ("4a0180", "half a number in a list"),
        ("00", "number 0"),
        ("6a0408030803", "a scale that says it twice"),
        ("6a00" + "6a00", "two scales"),
    ],
)
def test_unusual_bytes_are_read_the_same(module: Any, body: str, what: str) -> None:  # noqa: ANN401
    data = bytes.fromhex(body)
    record = bytes((10, len(data))) + data
    agree(decode_market, record)
    agree(PROTO.decode, bytes((10, len(record))) + record)
    assert (module.unpack_record(record) is None) == (
        what not in ("as we write it", "a number in more bytes than it needs")
    )


@pytest.mark.parametrize(
    "body",
    [
        pb.QuoteUpdate(bid_lots=2**64 - 1),
        pb.QuoteUpdate(ask_lots=2**64 - 5),
        pb.BookUpdate(bid_steps=[40, 2**64 - 40], bid_lots=[1, 1]),
        pb.TradesUpdate(trades=[pb.Trade(lots=2**64 - 1)]),
    ],
)
def test_numbers_of_64_bits_are_not_negative(body: Any) -> None:  # noqa: ANN401
    refused = agree(PROTO.decode, pb.Frame(chunks=[chunk(body)]).SerializeToString())
    assert isinstance(refused, tuple)
    assert refused[0] is CodecError


def test_flags_that_are_not_known_are_dropped(module: Any) -> None:  # noqa: ANN401
    record = b"\n\x02\x28\x7f"
    assert agree(decode_market, record) == module.unpack_record(record) == m.BookUpdate(flags=63)


def test_a_trade_id_that_is_not_utf8_is_refused() -> None:
    trade = b"\x22\x01\xff"
    update = bytes((0x4A, len(trade))) + trade
    refused = agree(decode_market, bytes((18, len(update))) + update)
    assert isinstance(refused, tuple)
    assert refused[0] is CodecError


def test_what_is_no_chunk_is_left(module: Any) -> None:  # noqa: ANN401
    for value in (b"", b"\n", b"\n\x01", b"\n\x00\x00", b"\x22\x00", bytearray(b"\n\x00"), None):
        assert module.unpack_record(value) is None
    for kind in (bytes, bytearray):
        assert module.unpack_frame(kind(b"\x0a\x02\x0a\x00\x12\x00")) == [m.BookUpdate(), b"\x12\x00"]
    assert module.unpack_frame(b"\x0a\x02\x2a\x00\x0a\x05\x0a") == [b"\x0a\x02\x2a\x00", b"\x0a\x05\x0a"]
    with pytest.raises(TypeError):
        module.unpack_frame(None)


# ---- memory


def rounds(module: Any) -> list[tuple[Callable[[Any], object], Any]]:  # noqa: ANN401
    """Calls that end in every way there is."""
    odd = [
        replace(BOOK, bids=[(1, 1), (2, 2.5)]),
        replace(BOOK, asks=[(2, 1), (1, 1)]),
        replace(BOOK, venue_checksum=2**40),
        replace(BOOK, scale=m.Scale(-40, 0)),
        replace(BOOK, seq=-1, bids=[(n, n) for n in range(1_000, 2_000)]),
        replace(TRADES, trades=[TRADE, None]),
        replace(TRADES, trades=[replace(TRADE, trade_id="\ud800")]),
        replace(QUOTE, bid_lots=2**70),
        m.BookUpdate(),
        m.BookUpdate.__new__(m.BookUpdate),
        None,
    ]
    written = [encode_market(message) for message in USUAL]
    cut = [data[:end] for data in written for end in range(len(data))]
    return [
        *((pack, message) for pack in (module.pack_record, module.pack_frame) for message in (*USUAL, *odd)),
        *((module.unpack_record, value) for value in (*written, *cut, None)),
        *(
            (module.unpack_record, bytes((10 + 8 * i, n - 2)) + data[2:n])
            for i, data in enumerate(written)
            for n in range(2, len(data))
        ),
        *((module.unpack_frame, PROTO.encode(message) + b"\x12\x00") for message in USUAL),
    ]


IMMORTAL = 1 << 30
"""References that nobody can hold."""


def held(messages: list[Any]) -> list[object]:
    """What the messages consist of, and what is in all that is read; without the small numbers that all share, and what
    is immortal (from Python 3.12 on): its count means nothing."""
    found: list[object] = [None, m.BookUpdate, m.TradesUpdate, m.QuoteUpdate, m.Trade, m.Scale, *m.Side]
    while messages:
        one, *messages = messages
        found.append(one)
        if is_dataclass(one):
            messages += [getattr(one, field.name) for field in fields(one) if hasattr(one, field.name)]
        elif isinstance(one, list | tuple):
            messages += one
    counted = [one for one in found if not isinstance(one, int) or isinstance(one, m.Side) or abs(one) > 10_000]
    return [one for one in counted if sys.getrefcount(one) < IMMORTAL]


def test_nothing_is_kept(module: Any) -> None:  # noqa: ANN401
    calls = rounds(module)
    objects = held([argument for _, argument in calls])

    def all_of(times: int) -> None:
        for _ in range(times):
            for function, argument in calls:
                outcome(function, argument)

    all_of(3)
    references, blocks = [sys.getrefcount(one) for one in objects], sys.getallocatedblocks()
    all_of(200)
    more = [sys.getrefcount(one) - before for one, before in zip(objects, references, strict=True)]
    assert max(more) < 100  # one that is kept in each round would be 200
    assert min(more) > -100
    assert sys.getallocatedblocks() - blocks < 100 + len(more)


def test_out_of_memory_is_an_error_and_nothing_else(module: Any) -> None:  # noqa: ANN401
    testing = pytest.importorskip("_testcapi")
    tracer = sys.gettrace()
    sys.settrace(None)  # who measures coverage allocates, too
    try:
        for function, argument in rounds(module):
            expected = outcome(function, argument)
            for allocation in range(120):  # more than any of them makes
                testing.set_nomemory(allocation, allocation + 1)
                try:
                    found = outcome(function, argument)
                finally:
                    testing.remove_mem_hooks()
                assert found in (expected, (MemoryError, ""))
    finally:
        sys.settrace(tracer)
