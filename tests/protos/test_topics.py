"""Names, keys and the partitioner."""

import pytest
from aiokafka.partitioner import murmur2
from hypothesis import given
from hypothesis import strategies as st

from protos.topics import (
    Topics,
    _murmur2,
    check_instrument,
    checkpoint_key,
    instrument_name,
    is_checkpoint_key,
    partition_for,
)

# Kafka's own: clients/src/test/java/org/apache/kafka/common/utils/UtilsTest.java, testMurmur2
KAFKA_VECTORS = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


@pytest.mark.parametrize(("key", "expected"), KAFKA_VECTORS.items())
def test_murmur2_is_kafkas(key: bytes, expected: int) -> None:
    assert _murmur2(key) == expected & 0xFFFFFFFF


@given(st.binary(max_size=64), st.integers(1, 1000))
def test_partitions_are_those_of_other_clients(key: bytes, partitions: int) -> None:
    assert partition_for(key, partitions) == (murmur2(key) & 0x7FFFFFFF) % partitions


def test_topics_share_one_prefix() -> None:
    topics = Topics("eu")
    assert [topics.ticks, topics.market, topics.snapshots, topics.dlq] == [
        "eu.ticks",
        "eu.market",
        "eu.snapshots",
        "eu.dlq",
    ]


def test_a_checkpoint_key_is_no_instrument() -> None:
    assert checkpoint_key(12) == b"checkpoint/12"
    assert is_checkpoint_key(checkpoint_key(0))
    assert not is_checkpoint_key(instrument_name("binance", "spot", "BTCUSDT").encode())
    with pytest.raises(ValueError, match="venue:market:symbol"):
        check_instrument(checkpoint_key(0).decode())


@pytest.mark.parametrize(
    "name", ["binance:spot:BTCUSDT", "kraken:spot:XBT/CHF", "deribit:option:BTC-24SEP21-8000-P", "x:y:a:b"]
)
def test_good_instruments(name: str) -> None:
    assert check_instrument(name) == name


@pytest.mark.parametrize(
    "name", ["", "BTCUSDT", "a:b", "a::c", ":b:c", "a:b:", "a:b:c d", "a:b:c\n", "a:b:é", "a:b:" + "c" * 125]
)
def test_bad_instruments(name: str) -> None:
    with pytest.raises(ValueError, match="instrument"):
        check_instrument(name)
