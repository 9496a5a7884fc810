"""Latencies in a histogram with a relative error of at most 1/128, whatever their range (as in HdrHistogram)."""

from array import array
from collections.abc import Iterable

_BITS = 7
_VALUE_MAX = (1 << 40) - 1
"""Nanoseconds, 18 minutes; what is later counts as this in the buckets."""
BUCKETS = (40 - _BITS + 1) << _BITS


def _index(value: int) -> int:
    shift = max(0, value.bit_length() - _BITS - 1)
    return (shift << _BITS) + (value >> shift)


def _floor(index: int) -> int:
    """The least value of a bucket."""
    shift = max(0, (index >> _BITS) - 1)
    return (index - (shift << _BITS)) << shift


class Histogram:
    """Counts values in nanoseconds. The maximum is exact.

    The counts lie in an array with the maximum behind them, so that `loadtest.receiver` can count in C.
    """

    __slots__ = ("_counts", "address")

    def __init__(self) -> None:
        self._counts = array("Q", bytes(8 * (BUCKETS + 1)))
        self.address = self._counts.buffer_info()[0]

    @property
    def count(self) -> int:
        return sum(self._counts) - self._counts[BUCKETS]

    @property
    def max(self) -> int:
        return self._counts[BUCKETS]

    def record(self, values: Iterable[int]) -> None:
        """Count each value; a negative one, from clocks that disagree, as 0."""
        counts = self._counts
        for value in values:
            counts[_index(min(value, _VALUE_MAX)) if value > 0 else 0] += 1
            if value > counts[BUCKETS]:
                counts[BUCKETS] = value

    def add(self, other: "Histogram") -> None:
        """Count what the other has counted."""
        mine, theirs = self._counts, other._counts  # noqa: SLF001 - of the same class
        for i, count in enumerate(theirs[:BUCKETS]):
            if count:
                mine[i] += count
        mine[BUCKETS] = max(mine[BUCKETS], theirs[BUCKETS])

    def quantile(self, q: float) -> int:
        """The least value that at least ``q`` of all are not above (the nearest rank), rounded down to its bucket."""
        rank = q * self.count
        for i, count in enumerate(self._counts[:BUCKETS]):
            rank -= count
            if count and rank <= 1e-9:
                return _floor(i)
        return self.max

    def quantile_ms(self, q: float) -> float:
        """As `quantile`, in milliseconds with three decimals."""
        return round(self.quantile(q) / 1e6, 3)

    def summary_ms(self) -> dict[str, float]:
        """p50, p99, p99.9 and the maximum, in milliseconds."""
        names = {"p50_ms": 0.5, "p99_ms": 0.99, "p999_ms": 0.999}
        return {**{name: self.quantile_ms(q) for name, q in names.items()}, "max_ms": round(self.max / 1e6, 3)}

    def curve_ms(self) -> list[tuple[float, float]]:
        """(quantile, milliseconds) for a plot whose axis is nines: 0, 0.5, 0.9, 0.99 and so on, with steps between."""
        points = [1 - 10 ** (-step / 10) for step in range(41)]
        return [(q, self.quantile_ms(q)) for q in points if (1 - q) * self.count >= 1]
