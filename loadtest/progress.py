"""One line on the terminal, once a second, while a test runs."""

import asyncio
import sys
import time
from collections.abc import Callable


class Progress:
    """Calls ``line`` every second and shows it; silent when the error stream is no terminal.

    Args:
        line: Says how far the test is; is given the seconds since the last call.
    """

    def __init__(self, line: Callable[[float], str]) -> None:
        self._line = line
        self._task = asyncio.create_task(self._run(), name="progress") if sys.stderr.isatty() else None

    async def _run(self) -> None:
        before = time.perf_counter()
        while True:
            await asyncio.sleep(1)
            now = time.perf_counter()
            sys.stderr.write(f"\r\x1b[K{self._line(now - before)}")
            sys.stderr.flush()
            before = now

    def stop(self) -> None:
        """Clear the line."""
        if self._task is not None:
            self._task.cancel()
            sys.stderr.write("\r\x1b[K")
