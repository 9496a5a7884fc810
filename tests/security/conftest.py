"""What no attack may do."""

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _no_traceback(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No input makes an exception escape: neither into asyncio, nor into uvicorn, nor into `websockets`."""
    yield
    loud = [record.getMessage() for record in caplog.get_records("call") if record.levelno >= logging.ERROR]
    assert loud == []
