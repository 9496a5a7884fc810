"""Wall time that never steps: deadlines and published times come from one clock."""

import time
from collections.abc import Callable

SLEW = 0.1
"""How much faster or slower than real time it runs while it is wrong: an hour's suspension is mended in ten."""


class Clock:
    """Nanoseconds since 1970, never backwards, however the system's clock is set.

    Args:
        wall_ns: The clock to follow.
        monotonic_ns: The clock to run by.
    """

    def __init__(
        self, wall_ns: Callable[[], int] = time.time_ns, monotonic_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._wall_ns = wall_ns
        self._monotonic_ns = monotonic_ns
        self._followed_ns = monotonic_ns()
        self._offset_ns = wall_ns() - self._followed_ns

    def now_ns(self) -> int:
        return self._monotonic_ns() + self._offset_ns

    def follow(self) -> None:
        """Come nearer to wall time. Call it every second or so."""
        monotonic_ns = self._monotonic_ns()
        step_max = int((monotonic_ns - self._followed_ns) * SLEW)
        error = self._wall_ns() - monotonic_ns - self._offset_ns
        self._offset_ns += max(-step_max, min(step_max, error))
        self._followed_ns = monotonic_ns
