"""Decimal text to ticks and lots: the scale of an instrument is the finest decimals it has shown.

Texts repeat (prices move little, and round sizes are popular), so each is converted once and remembered. In the
compiled build `native.c` converts whole sides at once, faster than looking up; what is unusual in them comes back here.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import NamedTuple

from ingest.events import BookEvent, MapError, QuoteEvent, TextLevel, TradesEvent
from protos.fixed import DIGITS_MAX, DecimalError, PrecisionError, rescaled, split_decimal, trim
from protos.messages import Levels, Scale, Trade

CACHED_TEXTS_MAX = 65_536
"""In one `Units`: about 10 MiB. Six minutes of BTCUSDT have 31,000 prices and 17,000 sizes."""

convert: Callable[[object, int, int, bool], Levels | None] | None
"""`Scaler._side` of a scale's two exponents and ``trims``, where all of it is plain; else None."""
try:
    from ingest.native import convert
except ImportError:
    convert = None

_POWERS: list[int] = [10**i for i in range(2 * DIGITS_MAX + 1)]

Quote = tuple[int, int, int, int]
"""Bid ticks and lots, ask ticks and lots. A side without lots is empty."""


class Units(dict[str, int]):
    """Decimal text -> its count of ``10**exponent``, exactly; converts what it does not hold.

    Raises on a lookup:
        PrecisionError: The text is finer than the exponent.
        MapError: ``reason``; it is no number or does not fit.
    """

    __slots__ = ("_reason", "_trims", "exponent")

    def __init__(self, exponent: int, trims: bool, reason: str) -> None:
        super().__init__()
        self.exponent = exponent
        self._trims = trims
        self._reason = reason

    def __missing__(self, text: str) -> int:
        digits, dot = text.replace(".", "", 1), text.find(".")
        finer = self.exponent + (len(text) - 1 - dot if dot >= 0 else 0)
        if finer < 0 or not digits.isdigit() or not digits.isascii() or len(text) > DIGITS_MAX or text[-1] == ".":
            value = self._unusual(text)
        else:
            value, rest = divmod(int(digits), _POWERS[finer])
            if rest or (finer and not self._trims):
                raise PrecisionError(f"{text!r} is finer than 10^{self.exponent}")
        if len(self) >= CACHED_TEXTS_MAX:
            self.clear()
        self[text] = value
        return value

    def _unusual(self, text: str) -> int:
        """All that the quick way above leaves: signs, exponents, zeros to add, errors."""
        try:
            mantissa, exponent = split_decimal(text)
            if exponent < self.exponent and not self._trims:
                raise PrecisionError(f"{text!r} is finer than 10^{self.exponent}")
            return rescaled(mantissa, exponent, self.exponent)
        except PrecisionError:
            raise
        except DecimalError as error:
            raise MapError(self._reason, str(error)) from None

    def finest(self, texts: Iterable[str]) -> int:
        """The exponent that these texts need, at most ours. Raises `MapError`."""
        finest = self.exponent
        try:
            for text in texts:
                mantissa, exponent = split_decimal(text)
                if exponent < finest:
                    finest = min(finest, trim(mantissa, exponent)[1] if self._trims else exponent)
        except DecimalError as error:
            raise MapError(self._reason, str(error)) from None
        return finest


@cache
def _units(exponent: int, trims: bool, reason: str) -> Units:
    """Shared by all instruments, so that memory is bounded by the few exponents there are."""
    return Units(exponent, trims, reason)


class Texts(NamedTuple):
    """What a record says, in the venue's text. Books: a snapshot and deltas to merge into it, or one delta."""

    books: tuple[BookEvent, ...]
    quote: QuoteEvent | None
    trades: TradesEvent | None

    def prices(self) -> Iterable[str]:
        return self._column(0)

    def sizes(self) -> Iterable[str]:
        return self._column(1)

    def _column(self, i: int) -> Iterable[str]:
        for book in self.books:
            for side in (book.bids, book.asks):
                yield from (level[i] for level in side)
        if self.quote:
            yield from (side[i] for side in (self.quote.bid, self.quote.ask) if side[0])
        if self.trades:
            yield from ((trade.price, trade.size)[i] for trade in self.trades.trades)


class Numbers(NamedTuple):
    """`Texts` in ticks and lots. Prices ascend; of equal ones the last has won."""

    bids: Levels
    asks: Levels
    quote: Quote | None
    trades: list[Trade]


class Scaler:
    """The scale of one instrument and what it converts. Immutable."""

    __slots__ = ("prices", "scale", "sizes", "trims")

    def __init__(self, trims: bool, scale: Scale | None = None) -> None:
        self.trims = trims
        self.scale = scale or Scale(0, 0)
        self.prices = _units(self.scale.price_exponent, trims, "bad-price")
        self.sizes = _units(self.scale.size_exponent, trims, "bad-size")

    def refined(self, texts: Texts) -> "Scaler":
        """A scale fine enough for ``texts`` too. Raises `MapError`."""
        scale = Scale(self.prices.finest(texts.prices()), self.sizes.finest(texts.sizes()))
        return Scaler(self.trims, scale)

    def convert(self, texts: Texts) -> Numbers:
        """Exactly, or `PrecisionError` (a finer scale is needed) or `MapError`."""
        bids: Levels = []
        asks: Levels = []
        books = texts.books
        if len(books) == 1:
            bids, asks = self._side(books[0].bids), self._side(books[0].asks)
        elif books:
            bids = self._side([level for book in books for level in book.bids])
            asks = self._side([level for book in books for level in book.asks])
        quote = self._best(texts.quote.bid) + self._best(texts.quote.ask) if texts.quote else None
        return Numbers(bids, asks, quote, self._trades(texts.trades) if texts.trades else [])

    def _side(self, levels: Sequence[TextLevel]) -> Levels:
        if convert is not None:
            scale = self.scale
            converted = convert(levels, scale.price_exponent, scale.size_exponent, self.trims)
            if converted is not None:
                return converted
        prices, sizes = self.prices, self.sizes
        return sorted({prices[price]: sizes[size] for price, size in levels}.items())

    def _best(self, level: TextLevel) -> tuple[int, int]:
        return (self.prices[level[0]], self.sizes[level[1]]) if level[0] else (0, 0)

    def _trades(self, event: TradesEvent) -> list[Trade]:
        prices, sizes = self.prices, self.sizes
        return [Trade(prices[t.price], sizes[t.size], t.side, t.trade_id, t.ts_event_ns) for t in event.trades]


class Factor(NamedTuple):
    """From an old scale to a new one: what ticks and lots multiply by."""

    ticks: int
    lots: int

    @classmethod
    def between(cls, old: Scale, new: Scale) -> "Factor | None":
        """None if ``new`` is coarser."""
        ticks, lots = old.price_exponent - new.price_exponent, old.size_exponent - new.size_exponent
        return cls(10**ticks, 10**lots) if ticks >= 0 and lots >= 0 else None

    def fits(self, levels: Levels) -> bool:
        limit = 10**DIGITS_MAX
        return all(abs(ticks) * self.ticks < limit and lots * self.lots < limit for ticks, lots in levels)

    def levels(self, levels: Iterable[tuple[int, int]]) -> Levels:
        return [(ticks * self.ticks, lots * self.lots) for ticks, lots in levels]
