"""Records taken out of batches by `native.c`, and by aiokafka: the same, or the same error, whatever a broker sends."""

import gc
import struct
import tracemalloc
from collections.abc import Iterable
from typing import Any

import pytest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from aiokafka.record.util import calc_crc32c, encode_varint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.kafka import follower
from services.kafka.follower import Follower, Record
from tests.support.native import native

MAGIC, CHECKSUM, CHECKED, HEADER = 16, 17, 21, struct.Struct(">qiibIhiqqqhii")
GZIP, APPEND_TIME, TRANSACTIONAL, CONTROL, HORIZON, UNKNOWN = 1, 8, 16, 32, 64, 128
INT64_MAX, INT64_MIN = (1 << 63) - 1, -1 << 63
NONE, ZERO, LONGEST = b"\1", b"\0", b"\xff" * 9 + b"\1"  # as varints: -1, 0, the least of 64 bits
Sent = tuple[int, int | None, bytes | None, bytes | None, list[tuple[str, bytes | None]]]
"""Delta of the offset, timestamp, key, value, headers."""


@pytest.fixture(scope="module")
def compiled() -> Any:  # noqa: ANN401 - a module that mypy knows by its stub
    """From the sources."""
    return native("services.kafka.native")


def sealed(data: bytes) -> bytes:
    """With the checksum that holds."""
    return data[:CHECKSUM] + calc_crc32c(data[CHECKED:]).to_bytes(4, "big") + data[CHECKED:]


def batch(sent: Iterable[Sent], offset: int = 10, attributes: int = 0, last_delta: int = 0) -> bytes:
    builder = DefaultRecordBatchBuilder(2, attributes & GZIP, attributes & TRANSACTIONAL, 7, 1, 3, 1 << 20)
    for record in sent:
        builder.append(*record)
    data = builder.build()
    data[:8] = offset.to_bytes(8, "big", signed=True)
    data[CHECKED + 1] |= attributes
    data[CHECKED + 2 : CHECKED + 6] = last_delta.to_bytes(4, "big")
    return sealed(bytes(data))


def made(records: bytes, count: int = 1, attributes: int = 0, offset: int = 10, max_ms: int = 2_000) -> bytes:
    """A batch with these bytes as records."""
    length = HEADER.size - 12 + len(records)
    head = HEADER.pack(offset, length, 0, 2, 0, attributes, 0, 1_000, max_ms, -1, -1, -1, count)
    return sealed(head + records)


def record(
    *, attributes: bytes = ZERO, time: bytes = ZERO, delta: bytes = ZERO, rest: bytes = b"\2k\2v\0", more: int = 0
) -> bytes:
    body, length = attributes + time + delta + rest, bytearray()
    encode_varint(len(body) + more, length.append)
    return bytes(length) + body


def outcome(data: bytes, start: int, room: int) -> tuple[list[Record], object, int, int]:
    one = Follower(("t", 3), start, 0)
    one.put(data)
    records: list[Record] = []
    while one.unread and one.error is None:
        records += one.take(room)
    assert not one._data, "let go of"
    return records, (type(one.error), str(one.error)), one.position, one._opened_to


def agree(compiled: Any, data: bytes, start: int = 0, room: int = 1 << 20) -> list[Record]:  # noqa: ANN401
    """The records, if both say the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(follower, "open_batch", None)
        expected = outcome(data, start, room)
        patch.setattr(follower, "open_batch", compiled.open_batch)
        found = outcome(data, start, room)
    assert found == expected
    for mine, theirs in zip(found[0], expected[0], strict=True):
        assert [type(mine), *map(type, mine)] == [type(theirs), *map(type, theirs)]
    return found[0]


def opened(compiled: Any, data: bytes, start: int = 0, at: int = 0) -> Any:  # noqa: ANN401
    return compiled.open_batch(data, at, start, "t", 3, Record, follower._NO_HEADERS)


payloads = st.none() | st.binary(max_size=80)
times = st.integers(0, 1 << 42) | st.sampled_from([None, -1, 0, INT64_MAX])
headers = st.lists(st.tuples(st.text(max_size=3), st.none() | st.binary(max_size=3)), max_size=2)
plain = st.tuples(st.integers(0, 40), times, payloads, payloads, st.just(list[tuple[str, bytes | None]]()))
any_sent = st.tuples(st.integers(0, 40), times, payloads, payloads, headers)
kinds = st.sampled_from(
    [0, 0, APPEND_TIME, TRANSACTIONAL, HORIZON | APPEND_TIME, CONTROL, UNKNOWN, GZIP, GZIP | CONTROL]
)
offsets = st.integers(0, 60) | st.sampled_from([-1, INT64_MAX, INT64_MAX - 20, INT64_MIN])
harm = st.lists(st.tuples(st.integers(0, 1 << 12), st.integers(1, 255)), max_size=2)


def harmed(data: bytes, where: list[tuple[int, int]]) -> bytes:
    changed = bytearray(data)
    for at, bits in where:
        changed[at % len(changed)] ^= bits
    return bytes(changed)


@st.composite
def batches(draw: st.DrawFn) -> bytes:
    """Of all kinds; some were harmed before the checksum was made."""
    if draw(st.integers(0, 15)) == 0:
        legacy = LegacyRecordBatchBuilder(draw(st.integers(0, 1)), draw(st.sampled_from([0, GZIP])), 1 << 20)
        for i in range(draw(st.integers(0, 2))):
            legacy.append(i, 5, draw(payloads), draw(payloads))
        return bytes(legacy.build())
    sent = draw(st.lists(plain, max_size=5) | st.lists(any_sent, max_size=5))
    data = batch(sent, draw(offsets), draw(kinds), draw(st.integers(0, 50) | st.just((1 << 31) - 1)))
    where = draw(harm)
    return sealed(data[:CHECKED] + harmed(data[CHECKED:], where)) if where else data


unharmed = st.builds(batch, st.lists(plain, max_size=5), st.integers(0, 60), st.sampled_from([0, APPEND_TIME]))


@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(batches() | unharmed, min_size=1, max_size=4), harm, st.integers(0, 90), offsets, st.integers(1, 9))
def test_the_same_records_or_the_same_error(
    compiled: Any,  # noqa: ANN401
    parts: list[bytes],
    where: list[tuple[int, int]],
    cut: int,
    start: int,
    room: int,
) -> None:
    data = b"".join(parts)
    if not data:
        return
    agree(compiled, data, start, room)
    agree(compiled, data[: max(0, len(data) - cut)], start, room)
    agree(compiled, harmed(data, where), start, room)


def test_every_byte_harmed(compiled: Any) -> None:  # noqa: ANN401
    data = batch([(0, 1_000, b"k", b"v", []), (300, 900, None, b"w" * 70, [])], 10, 0, 301)
    for at in range(len(data)):
        for bits in (0x01, 0x02, 0x7F, 0x80, 0xFF):
            broken = harmed(data, [(at, bits)])
            agree(compiled, broken + data)
            agree(compiled, data + broken)
            agree(compiled, sealed(broken) + data)


def test_plain_batches_are_read_in_c(compiled: Any) -> None:  # noqa: ANN401
    """Else nothing here would show that it does anything."""
    none = follower._NO_HEADERS
    data = batch([(0, 1_000, b"k", b"v", []), (1, 7, None, None, []), (5, 0, b"", b"x" * 200, [])], 10, 0, 8)
    expected = [
        Record("t", 3, 10, 1_000, b"k", b"v", none),
        Record("t", 3, 11, 7, None, None, none),
        Record("t", 3, 15, 0, b"", b"x" * 200, none),
    ]
    assert opened(compiled, data) == (expected, len(data))
    assert opened(compiled, b"before" + data + b"after", 11, 6) == (expected[1:], len(data) + 6)
    assert opened(compiled, data, 16) == ([], len(data))
    assert agree(compiled, data + batch([], 19, 0, 3) + batch([(0, 1, b"", b"", [])], 23)) == [
        *expected,
        Record("t", 3, 23, 1, b"", b"", none),
    ]


@pytest.mark.parametrize("attributes", [0, APPEND_TIME, TRANSACTIONAL, HORIZON, HORIZON | APPEND_TIME])
def test_kinds_of_plain_batches(compiled: Any, attributes: int) -> None:  # noqa: ANN401
    data = made(record(time=b"\x0e"), attributes=attributes)
    ((found,), end) = opened(compiled, data)
    assert (found.timestamp_ms, end) == (2_000 if attributes & APPEND_TIME else 1_007, len(data))
    assert agree(compiled, data) == [found]


@pytest.mark.parametrize(
    "data",
    [
        made(record(time=LONGEST)),
        made(record(delta=b"\xfe" + b"\xff" * 8 + b"\1"), offset=0),  # the greatest of 64 bits
        made(record(delta=b"\x80\0")),  # longer than need be
        made(record(rest=NONE + NONE + ZERO)),
        made(record(rest=LONGEST + b"\3\0")),  # every negative length is a null
        made(b"", 0),
        made(record(delta=NONE), attributes=APPEND_TIME),
    ],
    ids=range(7),
)
def test_odd_numbers_that_are_read(compiled: Any, data: bytes) -> None:  # noqa: ANN401
    records, _ = opened(compiled, data, INT64_MIN)
    assert agree(compiled, data, INT64_MIN) == records


@pytest.mark.parametrize(
    "data",
    [
        made(record(rest=b"\2k\2v\2\2h\2x")),  # a header
        made(record(rest=b"\2k\2v\1")),
        made(record(), attributes=CONTROL),
        made(record(), attributes=UNKNOWN),
        made(record(), attributes=-1 << 15),
        made(record(attributes=b"\2")),
        made(record(time=b"\xd1\x0f")),  # 1000 - 1001: no timestamp
        made(record(), attributes=APPEND_TIME, max_ms=-1),
        made(record(time=b"\xfe" + b"\xff" * 8 + b"\1")),  # beyond 64 bits
        made(record(delta=b"\2"), offset=INT64_MAX),
        made(record(delta=b"\xff" * 9 + b"\3")),
        made(record(delta=b"\x80" * 10 + b"\1")),
        made(record(rest=b"\xfe" + b"\xff" * 8 + b"\1")),  # a key of 2^63 - 1
        made(record(rest=b"\2k\x80\x80\x80\x80\x10")),  # a value of 2^31
        made(record(rest=b"\2k\6v\0")),
        made(record(more=1)),
        made(record(more=-1)),
        made(record() + b"\0"),
        made(LONGEST),
        made(b"\x80"),
        made(b"\0"),
        made(record(), 2),
        made(record(), 0),
        made(record(), -1),
        made(b"", -1),
        made(record(), 1 << 30),
        made(record() + record(rest=b"\2k")[:-1], 2),
        made(b"", 0)[:-1],
    ],
    ids=range(28),
)
def test_the_rest_is_left_to_aiokafka(compiled: Any, data: bytes) -> None:  # noqa: ANN401
    data = sealed(data[:8] + (len(data) - 12).to_bytes(4, "big") + data[12:])
    assert opened(compiled, data) == (None, len(data))
    agree(compiled, data)
    agree(compiled, data + batch([(0, 1_000, b"k", b"v", [])], 11))


@pytest.mark.parametrize("magic", [0, 1, 3, 0x82])
def test_other_formats_are_left(compiled: Any, magic: int) -> None:  # noqa: ANN401
    data = harmed(made(record()), [(MAGIC, 2 ^ magic)])
    assert opened(compiled, data) == (None, len(data))
    agree(compiled, made(record()) + data)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({0: bytearray(made(record()))}, TypeError),
        ({0: made(record())[:-1]}, ValueError),
        ({0: b""}, ValueError),
        ({0: made(record())[:8] + b"\xff" * 70}, ValueError),
        ({1: -1}, ValueError),
        ({1: 60}, ValueError),
        ({1: 1 << 62}, ValueError),
        ({1: 1 << 64}, OverflowError),
        ({2: 1 << 64}, OverflowError),
        ({2: "0"}, TypeError),
        ({5: dict}, TypeError),
        ({5: 1}, TypeError),
    ],
)
def test_what_is_no_batch_at_all(compiled: Any, changes: dict[int, Any], error: type[Exception]) -> None:  # noqa: ANN401
    arguments: list[Any] = [made(record()), 0, 0, "t", 3, Record, follower._NO_HEADERS]
    for index, value in changes.items():
        arguments[index] = value
    with pytest.raises(error):
        compiled.open_batch(*arguments)
    with pytest.raises(TypeError):
        compiled.open_batch(*arguments[:-1])


def test_it_keeps_nothing(compiled: Any) -> None:  # noqa: ANN401
    data = batch([(i, 1_000_000 + i, b"k" * 9, b"v" * 90, []) for i in range(9)])
    left = made(record() + record(rest=b"\2k\6v\0"), 2)
    for count in (100, 5_000):
        gc.collect()
        tracemalloc.start()
        for _ in range(count):
            opened(compiled, data)
            opened(compiled, left)
        gc.collect()
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert kept < 10_000
