"""What a test needs of the machine: a reason to skip when it is missing; in CI a failure, where nothing is left out."""

import os
from typing import NoReturn

import pytest


def need(reason: str | None) -> None:
    """Go on when ``reason`` is None or empty; it says what is missing, and how to get it."""
    if reason:
        _leave(reason)


def _leave(reason: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
