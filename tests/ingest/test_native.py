"""The loops over levels in `native.c` against those in Python; and what C can get wrong alone."""

import tracemalloc
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ingest import scaling
from ingest.events import BookEvent, MapError
from ingest.mappers import fields
from ingest.scaling import Numbers, Scaler, Texts
from protos.fixed import DIGITS_MAX, EXPONENT_MIN, PrecisionError
from protos.messages import Scale
from tests.support.native import native

ODD = (
    *("", ".", "5.", ".5", "1.2.3", "-1", "+1", "1e3", "1E-3", " 1", "1 ", "NaN", "1_0", "\u0663", "\ud800", "1\0"),
    *("0", "00.0", "0.000", "0" * 17 + "1", "0." + "0" * 15 + "1", "0." + "0" * 17 + "1", "1/2", "1:"),
    *("9" * (DIGITS_MAX - 1), "9" * DIGITS_MAX, "9" * (DIGITS_MAX + 1), "1" + "0" * (DIGITS_MAX - 1)),
)
texts = st.from_regex(r"\A[0-9]{1,9}(\.[0-9]{1,8})?\Z") | st.from_regex(r"\A[0-9](\.[05]0*)?\Z") | st.sampled_from(ODD)
pairs = st.lists(texts, min_size=2, max_size=2)
junk = st.one_of(st.none(), st.tuples(texts, texts), st.lists(texts | st.none(), max_size=3), texts)
exponents = st.integers(EXPONENT_MIN, 0)


@pytest.fixture(scope="module")
def compiled() -> Any:  # noqa: ANN401 - a module that mypy knows by its stub
    """From the sources."""
    return native("ingest.native")


def outcome(value: object, scale: Scale, trims: bool, signed: bool) -> object:
    """What comes of one side of a message: its numbers, or the error."""
    try:
        side = fields.levels(value, signed)  # type: ignore[arg-type]
        return Scaler(trims, scale).convert(Texts((BookEvent(False, [], side),), None, None))
    except (MapError, PrecisionError) as error:
        return type(error), str(error)


@given(
    st.lists(pairs, max_size=5) | st.lists(pairs | junk, max_size=4), exponents, exponents, st.booleans(), st.booleans()
)
@example([["2", "1"], ["1", "5"], ["2.0", "3"]], -1, 0, True, False)
@example([["2", "1"], ["1", "5"], ["2.0", "3"]], -1, 0, False, False)
@example([["2.0", "1"]], 0, 0, False, False)
@example([["1", "9"]], -18, 0, True, False)
@example([["0", "1"]], 0, 0, True, True)
def test_a_side_comes_to_the_same_numbers_or_the_same_error(
    compiled: Any,  # noqa: ANN401
    side: list[object],
    price_exponent: int,
    size_exponent: int,
    trims: bool,
    signed: bool,
) -> None:
    arguments = (side, Scale(price_exponent, size_exponent), trims, signed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fields, "are_plain", None)
        patch.setattr(scaling, "convert", None)
        expected = outcome(*arguments)
        patch.setattr(fields, "are_plain", compiled.are_plain)
        patch.setattr(scaling, "convert", compiled.convert)
        assert outcome(*arguments) == expected
    numbers = compiled.convert(side, price_exponent, size_exponent, trims)
    assert numbers is None or not isinstance(expected, Numbers) or numbers == expected.asks


def test_what_venues_write_is_left_to_c(compiled: Any) -> None:  # noqa: ANN401
    """Else nothing here would show that it does anything."""
    sides = [
        ([["56218.30000000", "0.15000000"], ["56218.20000000", "0.00000000"]], [(5621820, 0), (5621830, 15)]),
        ([["0.5", "3"], ["7", "999999999999.99"], ["12", "0"]], [(50, 300), (700, 99999999999999), (1200, 0)]),
        ([["1", "1"], ["3", "1"], ["2", "1"], ["3", "2"], ["1", "3"]], [(100, 300), (200, 100), (300, 200)]),
        ([], []),
    ]
    for side, expected in sides:
        assert compiled.are_plain(side)
        assert compiled.convert(side, -2, -2, True) == expected


@pytest.mark.parametrize(
    "side", [None, (), {}, "12", [("1", "2")], [["1"]], [["1", "2", "3"]], [["1", 2]], [[b"1", "2"]]]
)
def test_other_shapes_are_left_to_python(compiled: Any, side: object) -> None:  # noqa: ANN401
    assert not compiled.are_plain(side)
    assert compiled.convert(side, 0, 0, True) is None


def test_scales_out_of_range_are_left_to_python(compiled: Any) -> None:  # noqa: ANN401
    for exponents_ in ((1, 0), (0, 1), (EXPONENT_MIN - 1, 0), (0, EXPONENT_MIN - 1)):
        assert compiled.convert([["1", "1"]], *exponents_, True) is None


def test_nothing_is_kept(compiled: Any) -> None:  # noqa: ANN401
    """Neither by what succeeds nor by what fails."""
    side = orjson.loads('[["300001.5", "1000.25"], ["300002.5", "0"], ["300000", "1000.75"]]')

    def everything() -> None:
        compiled.convert(side, -1, -2, True)
        compiled.convert([*side, ["1.x", "1"]], -1, -2, True)
        compiled.are_plain(side)

    for _ in range(10):
        everything()
    tracemalloc.start()
    try:
        everything()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(500):
            everything()
        assert tracemalloc.get_traced_memory()[0] - before < 10_000
    finally:
        tracemalloc.stop()
