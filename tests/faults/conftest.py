"""The brokers that fail."""

import os
from collections.abc import Iterator

import pytest

from tests.support.cluster import Cluster
from tests.support.kafka_server import missing


@pytest.fixture(scope="module")
def three_brokers() -> Iterator[Cluster]:
    """Started once for a module, whose tests break it one after the other."""
    if reason := missing():
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    made = Cluster()
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture
def cluster(three_brokers: Cluster) -> Iterator[Cluster]:
    """Three brokers, all up and none behind a fault."""
    three_brokers.heal()
    yield three_brokers
    three_brokers.heal()
