"""Which event loops the tests run on."""

import asyncio
from asyncio import AbstractEventLoop
from collections.abc import Callable, Mapping

import pytest
import uvloop

_ON_BOTH = ("test_ws.py", "test_ws_slow.py", "test_tls.py")
"""Their transports differ in when they write, pause and close."""


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], AbstractEventLoop]]:
    """The loop of production, uvloop, where its transports matter, and Python's own everywhere."""
    own = {"asyncio": asyncio.new_event_loop}
    return {**own, "uvloop": uvloop.new_event_loop} if item.path.name in _ON_BOTH else own
