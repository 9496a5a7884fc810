"""Logging: structlog, one JSON object per line, or readable lines on a terminal. Goes to stderr; stdout is for results.

What libraries log through the standard library goes the same way. No query string is logged: it may carry a token.
A line that cannot be written at once is lost and counted: a reader that stands still must not stop the event loop.
"""

import logging
import os
import re
import select
import sys
from io import UnsupportedOperation
from typing import TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from services.config import Settings

_QUERY = re.compile(r"\?[^\s\"']+")
_LIBRARY_LEVELS = {"asyncio": "WARNING", "httpx": "WARNING", "httpcore": "WARNING", "uvicorn.access": "CRITICAL"}
"""At info these log every request or loop; the metrics count those."""

_CHUNK = 4096
"""What a pipe takes whole when it is writable at all (pipe(7), PIPE_BUF)."""


class Handler(logging.StreamHandler[TextIO]):
    """Writes a line if that is possible without waiting; otherwise counts it.

    Attributes:
        lost: Lines that were not written, or not to their end.
    """

    lost = 0

    def __init__(self, out: TextIO) -> None:
        super().__init__(out)
        self._poll = select.poll()
        try:
            self._fd = out.fileno()
            self._poll.register(self._fd, select.POLLOUT)
        except (OSError, UnsupportedOperation):
            self._fd = -1

    def emit(self, record: logging.LogRecord) -> None:
        if self._fd < 0:
            super().emit(record)
            return
        try:
            line = f"{self.format(record)}{self.terminator}".encode(errors="backslashreplace")
        except Exception:  # as every handler: who logs must not fail of it
            self.handleError(record)
            return
        try:
            while line and any(event & select.POLLOUT for _, event in self._poll.poll(0)):
                line = line[os.write(self._fd, line[:_CHUNK]) :]
        except OSError:  # the disk is full, the reader is gone
            pass
        Handler.lost += bool(line)


def configure_logging(settings: Settings, *, out: TextIO | None = None, libraries: str = "WARNING") -> None:
    """Send all logs to ``out`` (stderr). Call it once, before anything logs.

    Args:
        libraries: The least severe level logged of Kafka's client. Short commands say ``CRITICAL``: they explain
            a failure themselves, in one line.
    """
    out = out or sys.stderr
    level = settings.log_level.upper()
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.StackInfoRenderer(),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = Handler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_render(settings, out)],
            foreign_pre_chain=[*shared, _without_query],
        )
    )
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(level)
    for name, least in {**_LIBRARY_LEVELS, "depthcast.kafka": libraries}.items():
        logging.getLogger(name).setLevel(max(logging.getLevelName(least), logging.getLevelName(level)))
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True


def _render(settings: Settings, out: TextIO) -> list[Processor]:
    on_terminal = out.isatty()
    if settings.log_format == "console" or (settings.log_format == "auto" and on_terminal):
        return [structlog.dev.ConsoleRenderer(colors=on_terminal)]
    without_locals = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)  # locals may hold secrets
    return [structlog.processors.ExceptionRenderer(without_locals), structlog.processors.JSONRenderer()]


def _without_query(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    event["event"] = _QUERY.sub("?...", str(event["event"]))
    return event
