"""Rates."""


class Bucket:
    """A rate with a burst, in one integer (GCRA, ITU-T I.371): the time when the bucket would be empty."""

    __slots__ = ("_empty_ns", "_period_ns", "_span_ns")

    def __init__(self, burst: int, period_ns: int) -> None:
        self._period_ns = period_ns
        self._span_ns = burst * period_ns
        self._empty_ns = 0

    def take(self, now_ns: int) -> bool:
        """One more. False: there were ``burst`` already, and no period has passed since."""
        empty_ns = max(self._empty_ns, now_ns) + self._period_ns
        if empty_ns - now_ns > self._span_ns:
            return False
        self._empty_ns = empty_ns
        return True
