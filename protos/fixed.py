"""Exact fixed-point numbers: decimal text to scaled integers and back. No float touches a price or a size.

A value with exponent -2 counts hundredths: ``scaled("61.5", -2) == 6150``.
"""

DIGITS_MAX = 18
"""Significant digits of a price or size. 10**18 < 2**63, so every value fits a signed 64-bit integer on the wire."""

EXPONENT_MIN = -18
TEXT_MAX = 64
"""Characters. Longer text is junk, refused before any big-integer work (a quadratic int() is a denial of service)."""


class DecimalError(ValueError):
    """The text is not a finite decimal number that fits; the message says why."""


class PrecisionError(DecimalError):
    """The number is valid, but finer than the given exponent."""


def split_decimal(text: str) -> tuple[int, int]:
    """Parse decimal text exactly into ``(mantissa, exponent)``, as written: ``"0.10"`` is ``(10, -2)``.

    Args:
        text: As in JSON numbers and venue strings: ``8442.65000000``, ``8.75E+3``, ``-0.5``.

    Raises:
        DecimalError: Not a finite decimal, more than DIGITS_MAX significant digits, or out of range.
    """
    if len(text) > TEXT_MAX:
        raise DecimalError(f"number has {len(text)} characters, at most {TEXT_MAX} are allowed")
    mantissa_text, _, exponent_text = text.replace("E", "e").partition("e")
    whole, dot, fraction = mantissa_text.partition(".")
    digits = whole.lstrip("+-") + fraction
    signs = len(whole) - len(whole.lstrip("+-"))
    if not (digits.isascii() and digits.isdigit()) or signs > 1 or (dot and not fraction):
        raise DecimalError(f"{text!r} is not a decimal number")
    exponent = -len(fraction)
    if "e" in text or "E" in text:
        sign, body = exponent_text[:1], exponent_text.lstrip("+-")
        if not (body.isascii() and body.isdigit()) or len(body) > 3 or len(exponent_text) - len(body) > 1:
            raise DecimalError(f"{text!r} is not a decimal number")
        exponent += -int(body) if sign == "-" else int(body)
    mantissa = int(digits)
    if exponent > 0:
        if mantissa and exponent > DIGITS_MAX:
            raise DecimalError(f"{text!r} is out of range")
        mantissa, exponent = mantissa and mantissa * 10**exponent, 0
    while exponent < EXPONENT_MIN and mantissa % 10 == 0 and mantissa:
        mantissa, exponent = mantissa // 10, exponent + 1
    if mantissa == 0:
        exponent = max(exponent, EXPONENT_MIN)
    if exponent < EXPONENT_MIN or abs(mantissa) >= 10**DIGITS_MAX:
        mantissa, exponent = trim(mantissa, exponent)
        if exponent < EXPONENT_MIN or abs(mantissa) >= 10**DIGITS_MAX:
            raise DecimalError(f"{text!r} has more than {DIGITS_MAX} significant digits")
    return (-mantissa if whole.startswith("-") else mantissa), exponent


def trim(mantissa: int, exponent: int) -> tuple[int, int]:
    """Drop trailing zeros of the fraction: ``(6150, -3)`` is ``(615, -2)``. Never raises the exponent above 0."""
    if mantissa == 0:
        return 0, 0
    while exponent < 0 and mantissa % 10 == 0:
        mantissa, exponent = mantissa // 10, exponent + 1
    return mantissa, exponent


def scaled(text: str, exponent: int) -> int:
    """Decimal text as an integer count of ``10**exponent``.

    Raises:
        PrecisionError: The number is finer than ``10**exponent``.
        DecimalError: Not a number, or the count does not fit DIGITS_MAX digits.
    """
    mantissa, have = split_decimal(text)
    return rescaled(mantissa, have, exponent)


def rescaled(value: int, exponent: int, to_exponent: int) -> int:
    """The same number counted in ``10**to_exponent``; exact or an error (as `scaled`)."""
    shift = exponent - to_exponent
    if shift >= 0:
        value *= 10**shift
        if abs(value) >= 10**DIGITS_MAX:
            raise DecimalError(f"number does not fit {DIGITS_MAX} digits at exponent {to_exponent}")
        return value
    divisor: int = 10**-shift
    quotient, rest = divmod(value, divisor)
    if rest:
        raise PrecisionError(f"number is finer than 10^{to_exponent}")
    return quotient


def to_text(value: int, exponent: int) -> str:
    """Decimal text of ``value * 10**exponent``, with all ``-exponent`` decimals: ``to_text(6150, -2) == "61.50"``."""
    if exponent >= 0:
        return str(value * 10**exponent)
    digits = str(abs(value)).rjust(1 - exponent, "0")
    return ("-" if value < 0 else "") + digits[:exponent] + "." + digits[exponent:]
