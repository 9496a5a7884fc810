"""What the mappers share: exact JSON, and the checks of single fields.

A mapper reads a message as the venue documents it, ``data["b"]``, and is wrapped in `mapped`: a missing or
mistyped field is then a `MapError`. Leaves go through the functions here, so no value of a wrong type gets through.
"""

import json
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeAlias, TypeVar

import orjson

from ingest.events import MapError, TextLevel, TextTrade
from protos.fixed import DIGITS_MAX, EXPONENT_MIN, DecimalError, split_decimal
from protos.messages import Side

are_plain: Callable[[object], bool] | None
"""Whether they are levels that `levels` returns without a closer look."""
try:
    from ingest.native import are_plain
except ImportError:
    are_plain = None

P = ParamSpec("P")
T = TypeVar("T")

Json: TypeAlias = Any
"""What a JSON parser gives, before its type is known."""

INTEGER_MAX = 2**63 - 1
TRADE_ID_MAX = 64
"""Characters; the longest known is a UUID's 36 (Bybit)."""

_LEAST = "0." + "0" * -EXPONENT_MIN + "1"
"""Above every way to write 0.000, and below every decimal with -EXPONENT_MIN places."""


def mapped(function: Callable[P, T]) -> Callable[P, T]:
    """Whatever is wrong with the shape of a message becomes `MapError` ``bad-field``."""

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except KeyError as error:
            raise MapError("bad-field", f"the message has no field {error}") from None
        except (AttributeError, IndexError, TypeError, ValueError) as error:
            raise MapError("bad-field", f"the message is not as the venue documents it: {error}") from None

    return checked


def load(value: bytes) -> Json:
    """JSON of venues that send prices as strings. Raises `MapError` ``bad-json``."""
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise MapError("bad-json", f"not JSON: {error}") from None


def load_exact(value: bytes, number: Callable[[str], Json] = str) -> Json:
    """JSON of venues that send prices as numbers: every number becomes its text (or ``number`` of it), never a float.

    Raises:
        MapError: ``bad-json``; NaN and Infinity are not JSON.
    """
    try:
        return json.loads(value, parse_float=number, parse_int=number, parse_constant=_not_json)
    except (ValueError, RecursionError) as error:
        raise MapError("bad-json", f"not JSON: {error}") from None


def _not_json(text: str) -> None:
    raise ValueError(f"{text} is not a number")


def load_numbers_verbatim(value: bytes) -> Json:
    """JSON whose numbers `dump` writes back as they were. Raises `MapError` ``bad-json``."""
    return load_exact(value, lambda text: orjson.Fragment(text.encode()))


def dump(value: Json) -> bytes:
    return orjson.dumps(value)


def require(instrument: str, expected: str) -> None:
    """Raise `MapError` ``wrong-instrument`` unless the message is about the instrument of its record."""
    if instrument != expected:
        raise MapError("wrong-instrument", f"message about {expected[:80]!r} in a record of {instrument[:80]!r}")


def levels(value: list[Json], signed: bool = False) -> list[TextLevel]:
    """``value`` itself, if it is a list of ``[price, size]`` lists of text that begins as a number in range does.

    Text is compared, not converted, for speed: below ``_LEAST`` are signs, spaces and all zeros, between
    ``00`` and ``01`` perhaps zeros too, from ``:`` on letters.
    What begins well and ends badly (``1.2.3``) is left to the conversion, which looks at each text anyway.

    Args:
        value: From the JSON parser.
        signed: Prices may be zero or negative (spreads).

    Raises:
        MapError: ``bad-price``, ``bad-size``, ``bad-field``.
    """
    if are_plain is not None and are_plain(value):
        return value
    if type(value) is not list:
        raise MapError("bad-field", f"levels are a {type(value).__name__}, not a list")
    for level in value:
        if type(level) is not list or len(level) != 2:
            raise MapError("bad-field", "a level is not [price, size]")
        one, other = level
        if (
            type(one) is not str
            or type(other) is not str
            or not (("01" <= one < ":" or _LEAST <= one < "00") and "0" <= other < ":")
        ):
            price(one, signed)
            size(other)
    return value


def _is_plain(value: Json) -> bool:
    """Whether it is the text of a decimal as venues write it: digits with at most one dot among them. For speed."""
    return (
        type(value) is str
        and len(value) <= DIGITS_MAX
        and value[:1] != "."
        and value[-1:] != "."
        and value.isascii()
        and value.replace(".", "", 1).isdigit()
    )


def price(value: Json, signed: bool = False) -> str:
    """``value``, if it is the text of a decimal above 0 (any, if ``signed``). Raises `MapError` ``bad-price``."""
    if _is_plain(value) and value.strip("0."):
        return str(value)
    mantissa = _mantissa(value, "bad-price")
    if mantissa <= 0 and not signed:
        raise MapError("bad-price", f"price {value!r} is not above 0")
    return str(value)


def size(value: Json) -> str:
    """``value``, if it is the text of a decimal, 0 or more. Raises `MapError` ``bad-size``."""
    if _is_plain(value):
        return str(value)
    if _mantissa(value, "bad-size") < 0:
        raise MapError("bad-size", f"size {value!r} is negative")
    return str(value)


def _mantissa(value: Json, reason: str) -> int:
    if type(value) is not str:
        raise MapError("bad-field", f"a {reason[4:]} is a {type(value).__name__}, not a string")
    try:
        return split_decimal(value)[0]
    except DecimalError as error:
        raise MapError(reason, str(error)) from None


def _is_positive(size_text: Json) -> bool:
    """Whether a size is not 0; a negative one is for `size` to refuse. Raises `MapError` ``bad-size``."""
    return (_is_plain(size_text) and size_text.strip("0.") != "") or _mantissa(size_text, "bad-size") != 0


def quote_side(price_text: Json, size_text: Json, signed: bool = False) -> TextLevel:
    """One side of a quote; ``("", "")`` if the venue says it is empty: no text, or size 0."""
    if price_text == "" or size_text == "" or not _is_positive(size_text):
        return ("", "")
    return (price(price_text, signed), size(size_text))


def trade(
    price_text: Json, size_text: Json, side: Side, trade_id: Json, ts_event_ns: int, signed: bool = False
) -> TextTrade:
    """A trade of size above 0. Raises `MapError`."""
    identity = str(trade_id) if type(trade_id) is int else trade_id
    if type(identity) is not str or len(identity) > TRADE_ID_MAX or not identity.isascii():
        raise MapError("bad-field", f"a trade id is not a string of at most {TRADE_ID_MAX} ASCII characters")
    if not _is_positive(size_text):
        raise MapError("bad-size", "a trade of size 0")
    return TextTrade(price(price_text, signed), size(size_text), side, identity, ts_event_ns)


def integer(value: Json) -> int:
    """A JSON integer, or one in text, from 0 to INTEGER_MAX. Raises `MapError` ``bad-field``."""
    if type(value) is str and len(value) < 20 and value.isascii() and value.isdigit():
        value = int(value)
    if type(value) is not int or not 0 <= value <= INTEGER_MAX:
        raise MapError("bad-field", f"{str(value)[:40]!r} is not an integer from 0 to 2^63-1")
    return value


def crc32_of(value: Json) -> int:
    """A CRC-32 sent as signed or unsigned integer or text, as unsigned. Raises `MapError` ``bad-field``."""
    number = int(value) if type(value) in (int, str) and len(str(value)) <= 11 else None
    if number is None or not -(2**31) <= number < 2**32:
        raise MapError("bad-field", f"checksum {str(value)[:40]!r} is not a 32-bit integer")
    return number & 0xFFFFFFFF


def ms_to_ns(value: Json) -> int:
    """Venue milliseconds to nanoseconds since 1970."""
    return integer(integer(value) * 1_000_000)


def seconds_to_ns(text: Json) -> int:
    """Decimal seconds in text (Kraken v1: ``1618678133.365913``) to nanoseconds, exactly."""
    whole, _, fraction = text.partition(".")
    return integer(integer(whole) * 1_000_000_000 + integer(fraction[:9].ljust(9, "0")))


def iso_to_ns(text: Json) -> int:
    """RFC 3339 in UTC with up to 9 decimals (``2026-08-09T21:05:48.228568804Z``) to nanoseconds, exactly."""
    if type(text) is not str or not text.endswith("Z") or text[19:20] not in (".", "Z"):
        raise MapError("bad-field", f"time {str(text)[:40]!r} is not RFC 3339 in UTC")
    return _iso_second(text[:19]) * 1_000_000_000 + integer(text[20:-1][:9].ljust(9, "0"))


@lru_cache(maxsize=256)
def _iso_second(text: str) -> int:
    return integer(int(datetime.fromisoformat(text + "+00:00").timestamp()))
