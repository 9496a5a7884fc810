"""The admin port of a process: ``/livez``, ``/readyz``, ``/metrics``. Never a public port."""

import asyncio
from collections.abc import Callable, Sequence

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from services.config import Settings
from services.log import Handler
from services.metrics import Metrics
from services.serving import Server, listen

LAG_SAMPLE_S = 0.02


class Admin:
    """Serves the three paths from the process's own event loop: a loop that hangs does not answer ``/livez``.

    Args:
        why_not_ready: Returns an empty string when ready, else what is missing; asked at each ``/readyz``.
        more: Further routes.
    """

    def __init__(
        self, settings: Settings, metrics: Metrics, why_not_ready: Callable[[], str], more: Sequence[Route] = ()
    ) -> None:
        self._metrics = metrics
        self._why_not_ready = why_not_ready
        metrics.log_lines_lost.read = lambda: Handler.lost
        own = (Route("/livez", self._livez), Route("/readyz", self._readyz), Route("/metrics", self._exposition))
        listener = listen(settings.admin_host, settings.admin_port, "DEPTHCAST_ADMIN_PORT")
        self._server = Server(Starlette(routes=[*own, *more]), listener)
        self._lag: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        return self._server.port

    async def start(self) -> None:
        await self._server.start()
        self._metrics.tasks.read = lambda: len(asyncio.all_tasks())
        self._lag = asyncio.create_task(observe_loop_lag(self._metrics), name="loop-lag")

    async def stop(self) -> None:
        if self._lag is not None:
            self._lag.cancel()
        await self._server.stop()

    async def _livez(self, _request: Request) -> Response:
        return PlainTextResponse("alive\n")

    async def _readyz(self, _request: Request) -> Response:
        reason = self._why_not_ready()
        self._metrics.ready.set(0 if reason else 1)
        return PlainTextResponse(f"{reason or 'ready'}\n", status_code=503 if reason else 200)

    async def _exposition(self, _request: Request) -> Response:
        self._metrics.ready.set(0 if self._why_not_ready() else 1)
        return Response(self._metrics.exposition(), media_type=CONTENT_TYPE_LATEST)


async def observe_loop_lag(metrics: Metrics) -> None:
    """Measure how late a timer fires, for ever."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + LAG_SAMPLE_S
        await asyncio.sleep(LAG_SAMPLE_S)
        metrics.loop_lag.observe(loop.time() - due)
