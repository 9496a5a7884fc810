"""Text to integers: exact, or an error; and the scale is the finest that was seen."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.events import BookEvent, MapError, QuoteEvent, TextTrade, TradesEvent
from ingest.scaling import CACHED_TEXTS_MAX, Factor, Scaler, Texts, Units
from protos.fixed import DIGITS_MAX, PrecisionError
from protos.messages import Scale, Side, Trade

pytestmark = pytest.mark.usefixtures("loops")

decimals = st.from_regex(r"\A(0|[1-9][0-9]{0,8})(\.[0-9]{1,8})?(E[-+][0-3])?\Z")


def texts(*levels: tuple[str, str], quote: QuoteEvent | None = None, trades: TradesEvent | None = None) -> Texts:
    return Texts((BookEvent(False, levels, []),), quote, trades)


@given(decimals, st.integers(-12, 0), st.booleans())
def test_a_text_is_converted_exactly_or_refused(text: str, exponent: int, trims: bool) -> None:
    exact = Decimal(text).scaleb(-exponent)
    units = Units(exponent, trims, "bad-price")
    try:
        value = units[text]
    except PrecisionError:
        assert exact != int(exact) or (not trims and -Decimal(text).as_tuple().exponent > -exponent)
    except MapError:
        assert abs(exact) >= 10**DIGITS_MAX
    else:
        assert value == exact
        assert units[text] == value


@pytest.mark.parametrize(
    "text", ["", ".", "5.", "1.2.3", "NaN", "Infinity", "1_0", " 1", "1 ", "٣", "0x1", "1e", "--1", "9" * 19]
)
def test_junk_is_refused(text: str) -> None:
    with pytest.raises(MapError) as caught:
        Units(-2, True, "bad-size")[text]
    assert caught.value.reason == "bad-size"


def test_what_is_remembered_is_bounded() -> None:
    units = Units(0, True, "bad-price")
    for i in range(CACHED_TEXTS_MAX + 10):
        assert units[str(i)] == i
    assert len(units) <= CACHED_TEXTS_MAX


def test_the_scale_is_the_finest_seen_without_trailing_zeros() -> None:
    scaler = Scaler(trims=True)
    first = texts(("8442.65000000", "1.50"), ("8442.7", "2"))
    with pytest.raises(PrecisionError):
        scaler.convert(first)
    scaler = scaler.refined(first)
    assert scaler.scale == Scale(-2, -1)
    assert scaler.convert(first).bids == [(844265, 15), (844270, 20)]


def test_the_scale_is_as_written_where_zeros_count() -> None:
    scaler = Scaler(trims=False).refined(texts(("56218.30000", "0.15000000")))
    assert scaler.scale == Scale(-5, -8)
    with pytest.raises(PrecisionError):
        scaler.convert(texts(("1.300000", "1.00000000")))


@pytest.mark.parametrize(("level", "reason"), [(("1.x", "1"), "bad-price"), (("1", "1e"), "bad-size")])
def test_junk_refines_nothing(level: tuple[str, str], reason: str) -> None:
    with pytest.raises(MapError) as caught:
        Scaler(trims=True).refined(texts(("1.5", "1"), level))
    assert caught.value.reason == reason


def test_quotes_and_trades_refine_too() -> None:
    quote = QuoteEvent(("1.5", "2"), ("", ""))
    trades = TradesEvent([TextTrade("1.25", "0.001", Side.BUY, "7", 9)])
    everything = texts(quote=quote, trades=trades)
    scaler = Scaler(trims=True).refined(everything)
    assert scaler.scale == Scale(-2, -3)
    numbers = scaler.convert(everything)
    assert numbers.quote == (150, 2000, 0, 0)
    assert numbers.trades == [Trade(125, 1, Side.BUY, "7", 9)]


def test_of_equal_prices_the_last_wins_across_merged_deltas() -> None:
    books = (
        BookEvent(True, [("1", "1"), ("1.0", "2"), ("2", "5")], [("3", "1")]),
        BookEvent(False, [("2", "0")], [("3", "4"), ("4", "1")]),
    )
    numbers = Scaler(trims=True).convert(Texts(books, None, None))
    assert (numbers.bids, numbers.asks) == ([(1, 2), (2, 0)], [(3, 4), (4, 1)])


def test_factor() -> None:
    factor = Factor.between(Scale(-1, 0), Scale(-3, -2))
    assert factor == Factor(100, 100)
    assert factor.levels([(5, 7)]) == [(500, 700)]
    assert not factor.fits([(10**16, 1)])
    assert factor.fits([(10**16 - 1, 1)])
    assert Factor.between(Scale(-3, 0), Scale(-1, 0)) is None
