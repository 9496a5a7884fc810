"""What no input may do: make an exception escape into asyncio, uvicorn or `websockets`, which log it as an error."""

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def no_traceback(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    loud = [record.getMessage() for record in caplog.get_records("call") if record.levelno >= logging.ERROR]
    assert loud == []
