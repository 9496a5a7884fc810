"""The embedded broker by itself; what it is to our clients, the contract tests of test_kafka say."""

import time

import pytest

from services.broker import EmbeddedBroker


def test_it_starts_and_stops_at_once() -> None:
    """Its thread misses most requests and would look again a second later. Ten brokers took 7 s or more then."""
    start = time.perf_counter()
    for _ in range(10):
        broker = EmbeddedBroker()
        broker.start()
        for topic in ("ticks", "market"):
            broker.create_topic(topic, 2)
        broker.stop()
    assert time.perf_counter() - start < 4


def test_a_topic_is_created_once_and_a_stopped_broker_is_not_asked() -> None:
    broker = EmbeddedBroker()
    broker.start()
    broker.create_topic("ticks", 2)
    with pytest.raises(ValueError, match="topic ticks exists"):
        broker.create_topic("ticks", 2)
    broker.stop()
    broker.stop()
    with pytest.raises(RuntimeError, match="not started"):
        broker.create_topic("ticks", 2)
