"""Logging: structlog, one JSON object per line, or readable lines on a terminal. Goes to stderr; stdout is for results.

What libraries log through the standard library goes the same way. No query string is logged: it may carry a token.
"""

import logging
import re
import sys
from typing import TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from services.config import Settings

_QUERY = re.compile(r"\?[^\s\"']+")
_LIBRARY_LEVELS = {"asyncio": "WARNING", "httpx": "WARNING", "httpcore": "WARNING", "uvicorn.access": "CRITICAL"}
"""At info these log every request or loop; the metrics count those."""


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
    handler = logging.StreamHandler(out)
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
