"""Latencies in a histogram with a relative error of at most 1/128, whatever their range (as in HdrHistogram)."""

from collections import Counter
from collections.abc import Iterable

_BITS = 7


class Histogram:
    """Counts values in nanoseconds. The minimum and maximum are exact."""

    __slots__ = ("_counts", "count", "max")

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self.count = 0
        self.max = 0

    def record(self, values: Iterable[int]) -> None:
        """Count each value; a negative one, from clocks that disagree, as 0."""
        counts = self._counts
        for value in values:
            shift = max(0, value.bit_length() - _BITS - 1)
            counts[(value >> shift << shift) if value > 0 else 0] += 1
            self.count += 1
            if value > self.max:
                self.max = value

    def add(self, other: "Histogram") -> None:
        """Count what the other has counted."""
        self._counts += other._counts  # noqa: SLF001 - of the same class
        self.count += other.count
        self.max = max(self.max, other.max)

    def quantile(self, q: float) -> int:
        """The least value that at least ``q`` of all are not above (the nearest rank), rounded down to its bucket."""
        rank = q * self.count
        for value in sorted(self._counts):
            rank -= self._counts[value]
            if rank <= 1e-9:
                return value
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
        return [(q, self.quantile_ms(q)) for q in points if (1 - q) * self.count >= 1] if self.count else []
