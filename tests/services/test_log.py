import io
import json
import logging
import os
from collections.abc import Iterator

import pytest
import structlog

from services.config import load_settings
from services.log import Handler, configure_logging


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    structlog.reset_defaults()


def lines(out: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_one_json_object_per_line_off_a_terminal() -> None:
    out = io.StringIO()
    configure_logging(load_settings(), out=out)
    structlog.get_logger("services.a").info("started", port=8080)
    logging.getLogger("somewhere").warning("half %s", "done")
    first, second = lines(out)
    assert (first["event"], first["port"], first["level"], first["logger"]) == ("started", 8080, "info", "services.a")
    assert (second["event"], second["level"], second["logger"]) == ("half done", "warning", "somewhere")
    assert str(second["timestamp"]).endswith("Z")


def test_readable_on_a_terminal_and_as_told_elsewhere() -> None:
    for out, settings in ((Terminal(), load_settings()), (io.StringIO(), load_settings(log_format="console"))):
        configure_logging(settings, out=out)
        structlog.get_logger("services.b").info("started", port=8080)
        assert "started" in out.getvalue()
        assert not out.getvalue().startswith("{")


def test_no_query_string_is_logged() -> None:
    out = io.StringIO()
    configure_logging(load_settings(), out=out)
    logging.getLogger("uvicorn.error").info('%s - "GET %s" 200', "127.0.0.1", "/v1/stream?token=s3cret&x=1")
    logging.getLogger("uvicorn.access").info("GET /v1/stream?token=s3cret")
    assert "s3cret" not in out.getvalue()
    assert [line["event"] for line in lines(out)] == ['127.0.0.1 - "GET /v1/stream?..." 200']


def test_exception_is_one_line_without_local_variables() -> None:
    out = io.StringIO()
    configure_logging(load_settings(), out=out)
    try:
        password = "s3cret"
        raise RuntimeError(f"login failed with {len(password)} characters")
    except RuntimeError:
        structlog.get_logger("services.c").exception("stopped")
    (line,) = lines(out)
    assert "login failed" in json.dumps(line["exception"])
    assert "s3cret" not in out.getvalue()


def test_levels() -> None:
    out = io.StringIO()
    configure_logging(load_settings(log_level="warning"), out=out, libraries="CRITICAL")
    structlog.get_logger("services.d").info("detail")
    logging.getLogger("depthcast.kafka").error("unreachable")
    structlog.get_logger("services.d").warning("matters")
    assert [line["event"] for line in lines(out)] == ["matters"]


def test_a_line_that_would_have_to_wait_is_lost_and_counted() -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as out:
        configure_logging(load_settings(), out=out)
        before = Handler.lost
        for _ in range(100):
            logging.getLogger("somewhere").warning("x" * 4_000)  # a pipe holds 64 KiB
        lost = Handler.lost - before
        assert 60 < lost < 100
        os.read(reader, 1 << 20)
        logging.getLogger("somewhere").warning("there is room again")
        assert b"room again" in os.read(reader, 1 << 20)
        assert Handler.lost - before == lost
        os.close(reader)
        logging.getLogger("somewhere").warning("nobody reads")
        assert Handler.lost - before == lost + 1
