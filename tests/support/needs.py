"""What a test needs of the machine: a reason to skip when it is missing; in CI a failure, where nothing is left out."""

import os
from typing import NoReturn

import pytest

from loadtest.compiler import has_compiler


def need(reason: str | None) -> None:
    """Go on when ``reason`` is None or empty; it says what is missing, and how to get it."""
    if reason:
        _leave(reason)


def need_compiler() -> None:
    """A C compiler, with Python's headers."""
    need("" if has_compiler() else "a C compiler is missing (Debian: apt-get install gcc libc6-dev python3-dev)")


def _leave(reason: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
