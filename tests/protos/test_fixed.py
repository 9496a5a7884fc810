"""Fixed point against `decimal.Decimal`, the referee."""

from decimal import Context, Decimal, localcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos.fixed import DIGITS_MAX, DecimalError, PrecisionError, rescaled, scaled, split_decimal, to_text, trim

LIMIT = 10**DIGITS_MAX - 1
exponents = st.integers(-18, 0)
values = st.integers(-LIMIT, LIMIT)
plain_text = st.from_regex(r"[+-]?[0-9]{1,20}(\.[0-9]{1,22})?([eE][+-]?[0-9]{1,2})?", fullmatch=True)


def exact(value: int, exponent: int) -> Decimal:
    with localcontext(Context(prec=100)):
        return Decimal(value).scaleb(exponent)


def fits(number: Decimal) -> bool:
    """Whether the number has a place on the wire: at most 18 digits from its first to its last, at most 18 decimals."""
    _, digits, exponent = number.normalize(Context(prec=100)).as_tuple()
    assert isinstance(exponent, int)
    if not any(digits):
        return True
    return exponent >= -18 and len(digits) + max(exponent, 0) <= DIGITS_MAX


@given(plain_text)
def test_parsing_is_exact_or_an_error(text: str) -> None:
    number = Decimal(text)
    try:
        mantissa, exponent = split_decimal(text)
    except DecimalError:
        assert not fits(number)
    else:
        assert fits(number)
        assert exact(mantissa, exponent) == number
        assert abs(mantissa) <= LIMIT
        assert -18 <= exponent <= 0


@pytest.mark.parametrize("text", ["0E20", "0.0e99", "-0E+999"])
def test_zero_fits_however_it_is_written(text: str) -> None:
    assert split_decimal(text)[0] == 0
    assert scaled(text, -8) == 0


@given(values, exponents)
def test_text_round_trips(value: int, exponent: int) -> None:
    text = to_text(value, exponent)
    assert Decimal(text) == exact(value, exponent)
    assert scaled(text, exponent) == value
    assert len(text.partition(".")[2]) == -exponent


@given(values, exponents)
def test_trimming_keeps_the_number(value: int, exponent: int) -> None:
    mantissa, trimmed = trim(value, exponent)
    assert exact(mantissa, trimmed) == exact(value, exponent)
    assert trimmed == 0 or mantissa % 10
    assert exponent <= trimmed <= 0


@given(values, exponents, exponents)
def test_rescaling_is_exact_or_an_error(value: int, exponent: int, to_exponent: int) -> None:
    try:
        result = rescaled(value, exponent, to_exponent)
    except PrecisionError:
        assert value % 10 ** (to_exponent - exponent)
    except DecimalError:
        assert abs(value) * 10 ** (exponent - to_exponent) > LIMIT
    else:
        assert exact(result, to_exponent) == exact(value, exponent)
        assert abs(result) <= LIMIT


@given(st.text(max_size=80))
def test_any_text_gives_a_number_or_the_documented_error(text: str) -> None:
    try:
        mantissa, exponent = split_decimal(text)
    except DecimalError as error:
        assert str(error)  # noqa: PT017
    else:
        assert exact(mantissa, exponent) == Decimal(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8442.65000000", (844265000000, -8)),
        ("8.75E+3", (8750, 0)),
        ("8.75e-3", (875, -5)),
        ("0.10", (10, -2)),
        ("-0.5", (-5, -1)),
        ("-0", (0, 0)),
        ("0e-40", (0, -18)),
        ("0.0000000000000000000000000", (0, -18)),
        ("1.000000000000000000000000", (1, 0)),
        ("100000000000000000000e-10", (10000000000, 0)),
    ],
)
def test_numbers_as_venues_write_them(text: str, expected: tuple[int, int]) -> None:
    assert split_decimal(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *["", ".", "1.", "-", "+-1", "--1", "1e", "1e+", "1e1234", "1e++1", "e5", "1 ", " 1", "1_0", "NaN", "Infinity"],
        *["0x10", "1,5", "\u0661", "1.2.3", "1e5.0", "9" * 19, "1e18", "1e99", "1e-19", "0." + "1" * 19, "1" * 40],
        *["1" * 65, "1E5E5"],
    ],
)
def test_what_is_no_number(text: str) -> None:
    with pytest.raises(DecimalError):
        split_decimal(text)


def test_finer_than_the_scale() -> None:
    assert scaled("61.50", -1) == 615
    with pytest.raises(PrecisionError, match="finer"):
        scaled("61.55", -1)
    with pytest.raises(DecimalError, match="fit"):
        scaled("1" * 18, -1)


def test_whole_units() -> None:
    assert to_text(5, 2) == "500"
    assert to_text(-5, 0) == "-5"
    assert to_text(-5, -2) == "-0.05"
