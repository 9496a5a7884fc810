"""Fixtures for all tests: the brokers."""

from collections.abc import Iterator

import pytest

from services.broker import EmbeddedBroker
from tests.support import redis_server
from tests.support.brokers import TestBroker
from tests.support.kafka_server import RealBroker, missing
from tests.support.needs import need
from tests.support.redis_server import RedisServer


@pytest.fixture(scope="session")
def kafka_server() -> Iterator[RealBroker]:
    """A real Kafka of one node, started once. Where there is no Java: skipped; in CI that is a failure."""
    need(missing())
    server = RealBroker()
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def embedded() -> Iterator[TestBroker]:
    """A fresh embedded broker."""
    server = EmbeddedBroker()
    server.start()
    yield TestBroker("embedded", server)
    server.stop()


@pytest.fixture
def kafka(kafka_server: RealBroker) -> TestBroker:
    """The real Kafka; mark the test with ``kafka``."""
    return TestBroker("kafka", kafka_server)


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def broker(request: pytest.FixtureRequest) -> TestBroker:
    """Both, one after the other."""
    found: TestBroker = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="session")
def redis_process() -> Iterator[RedisServer]:
    """A real Redis, started once. Where there is none: skipped; in CI that is a failure."""
    need(redis_server.missing())
    server = RedisServer()
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture
def redis(redis_process: RedisServer) -> RedisServer:
    """The real Redis, empty."""
    redis_process.tell("FLUSHALL")
    return redis_process
