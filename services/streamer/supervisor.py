"""`depthcast streamer --workers N`: N streamers on one public port, and one process that keeps them running.

Each worker has its own event loop, books and admin port; the kernel spreads the connections over them (SO_REUSEPORT).
A worker listens once its books have caught up, so a client never meets one that cannot serve it.
"""

import asyncio
import logging
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress

from services.auth.setup import check_exposure
from services.config import Settings, environment_of
from services.serving import bind
from services.signals import end_with_parent, stop_on_signals
from services.topics import check_topics

COMMAND = (sys.executable, "-m", "services", "worker")
PAUSE_MIN_S = 0.5
"""Before the first restart; doubled with each that follows."""
PAUSE_MAX_S = 30.0
STEADY_S = 60.0
"""A worker that lived this long was not broken from the start: counting begins anew."""
LOOP_MIN = 3
"""Ends in a row that are called a crash loop."""
ENDED_WELL = {0, 128 + signal.SIGTERM, -signal.SIGTERM}
"""Drained; or told to stop before it had begun."""

_log = logging.getLogger("depthcast.supervisor")


async def run_supervisor(settings: Settings) -> bool:
    """Keep the workers running until SIGTERM or SIGINT, then let each drain. A second signal kills.

    Returns:
        Whether all workers ended well.

    Raises:
        UserError: The port would be open to everyone or is taken, Kafka cannot be reached, or its topics are missing.
    """
    check_exposure(settings)
    stop = stop_on_signals()
    with bind(settings.http_host, settings.http_port, "DEPTHCAST_HTTP_PORT") as public:  # held, so nobody else takes it
        settings = settings.model_copy(update={"http_port": public.getsockname()[1]})
        await check_topics(settings)
        workers = [Worker(index, settings) for index in range(settings.workers)]
        return all(await asyncio.gather(*(worker.keep(stop) for worker in workers)))


class Worker:
    """One place among the workers, and the process that fills it.

    Args:
        pause_min_s: Seconds before the first restart.
    """

    def __init__(
        self, index: int, settings: Settings, command: Sequence[str] = COMMAND, pause_min_s: float = PAUSE_MIN_S
    ) -> None:
        admin_port = settings.admin_port and settings.admin_port + index
        self._name = f"worker {index}"
        self._environment = environment_of(settings.model_copy(update={"admin_port": admin_port}))
        self._command = command
        self._pause_min_s = pause_min_s
        self._ends = 0  # in a row

    async def keep(self, stop: asyncio.Event) -> bool:
        """Run the process, and a new one whenever it ends, until ``stop``. Returns whether the last one ended well."""
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            code = await self._run(stop)
            if stop.is_set():
                return self._ended_well(code)
            pause_s = self._pause_after(code, loop.time() - started)
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), pause_s)
                return False

    async def _run(self, stop: asyncio.Event) -> int:
        """One process from start to end. In a session of its own: Ctrl-C is for us, and each worker hears it once."""
        process = await asyncio.create_subprocess_exec(
            *self._command, env=self._environment, start_new_session=True, preexec_fn=end_with_parent
        )
        _log.info("%s is process %d", self._name, process.pid)
        stopping = asyncio.create_task(stop.wait())
        ended = asyncio.create_task(process.wait())
        try:
            await asyncio.wait([stopping, ended], return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                process.terminate()
            return await ended
        finally:
            stopping.cancel()
            if process.returncode is None:  # we are interrupted a second time
                process.kill()

    def _pause_after(self, code: int, lived_s: float) -> float:
        """Say that the process ended; returns the seconds to wait before the next one."""
        self._ends = 1 if lived_s >= STEADY_S else self._ends + 1
        pause_s = min(PAUSE_MAX_S, self._pause_min_s * float(1 << min(self._ends - 1, 16)))
        if self._ends < LOOP_MIN:
            _log.warning("%s ended with %s; restart in %.1f s", self._name, _describe(code), pause_s)
        else:
            text = "%s is in a crash loop: ended %d times in a row, now with %s after %.1f s; restart in %.1f s"
            _log.error(text, self._name, self._ends, _describe(code), lived_s, pause_s)
        return pause_s

    def _ended_well(self, code: int) -> bool:
        if code in ENDED_WELL:
            return True
        _log.error("%s did not drain: it ended with %s", self._name, _describe(code))
        return False


def _describe(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
