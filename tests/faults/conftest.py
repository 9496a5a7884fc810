"""The brokers that fail."""

from collections.abc import Iterator

import pytest

from tests.support.cluster import Cluster
from tests.support.invariants import Invariants
from tests.support.kafka_server import missing
from tests.support.needs import need


@pytest.fixture(autouse=True)
def _checked() -> Iterator[None]:
    """No test of a fault without the checker."""
    before = Invariants.held
    yield
    assert Invariants.held > before, "nobody asked whether the invariants hold"


@pytest.fixture(scope="module")
def three_brokers() -> Iterator[Cluster]:
    """Started once for a module, whose tests break it one after the other."""
    need(missing())
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
