"""Properties are judged by their result, not by the clock of a busy machine."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.support.shortcuts import shortcuts

settings.register_profile("protos", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("protos")


@pytest.fixture(scope="module", params=["python", "native"])
def both(request: pytest.FixtureRequest) -> Iterator[None]:
    """What uses it holds for protobuf in Python, and with its shortcuts in C."""
    with shortcuts(request.param):
        yield
