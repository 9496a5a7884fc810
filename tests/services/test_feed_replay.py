"""A replay into the ticks topic."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from protos.topics import HEADER_FEED, HEADER_RECEIVED_NS, Topics, partition_for
from services.errors import UserError
from services.feed import replay as module
from services.feed.files import Captured
from services.feed.replay import Replay, run_replay
from services.kafka import Producer, Reader, Record
from tests.support.brokers import TestBroker

START_NS = 1_700_000_000_000_000_000


def trade(number: int, symbol: str = "BTCUSDT", at_ns: int = 0) -> Captured:
    message = f'{{"e":"trade","E":1,"s":"{symbol}","t":{number},"p":"1.5","q":"2","T":1,"m":true}}'
    return Captured("binance.spot", START_NS + at_ns, message.encode(), "connection")


@asynccontextmanager
async def started(broker: TestBroker) -> AsyncIterator[tuple[Producer, str]]:
    topic = await broker.topic(partitions=2)
    producer = Producer(broker.settings)
    await producer.start()
    try:
        yield producer, topic
    finally:
        await producer.stop()


async def read(broker: TestBroker, topic: str, count: int) -> list[Record]:
    reader = Reader(broker.settings)
    await reader.start()
    try:
        await reader.assign({(topic, 0): 0, (topic, 1): 0})
        records: list[Record] = []
        async with asyncio.timeout(20):
            while len(records) < count:
                records += await reader.poll(100)
        return records
    finally:
        await reader.stop()


async def test_every_record_is_written_once_in_order_to_its_partition(embedded: TestBroker) -> None:
    capture = [trade(number, f"COIN{number % 7}USDT", number) for number in range(1_000)]
    async with started(embedded) as (producer, topic):
        counts = await Replay(producer, topic, 2).run(capture)
        records = await read(embedded, topic, 1_000)
    assert (counts.messages, counts.records, counts.unusable) == (1_000, 1_000, 0)
    by_symbol: dict[bytes, list[Record]] = {}
    for record in records:
        assert record.key is not None
        assert record.partition == partition_for(record.key, 2)
        assert record.headers[HEADER_FEED] == b"binance.spot"
        by_symbol.setdefault(record.key, []).append(record)
    for symbol in range(7):
        sent = [it for number, it in enumerate(capture) if number % 7 == symbol]
        got = by_symbol[f"binance:spot:COIN{symbol}USDT".encode()]
        assert [it.value for it in got] == [it.message for it in sent]
        assert [it.headers[HEADER_RECEIVED_NS] for it in got] == [str(it.received_ns).encode() for it in sent]


async def test_an_unusable_message_is_counted_and_the_rest_goes_on(embedded: TestBroker) -> None:
    bad = Captured("binance.spot", START_NS, b"{", "connection")
    async with started(embedded) as (producer, topic):
        counts = await Replay(producer, topic, 2).run([trade(1), bad, trade(2)])
        assert (counts.messages, counts.records, counts.unusable) == (3, 2, 1)
        assert len(await read(embedded, topic, 2)) == 2


@pytest.mark.parametrize(("speed", "seconds"), [(10.0, 0.3), (30.0, 0.1)])
async def test_speed_is_a_multiple_of_the_captures_own(embedded: TestBroker, speed: float, seconds: float) -> None:
    capture = [trade(number, at_ns=number * 300_000_000) for number in range(11)]
    async with started(embedded) as (producer, topic):
        start = asyncio.get_running_loop().time()
        await Replay(producer, topic, 2, speed=speed).run(capture)
        took = asyncio.get_running_loop().time() - start
    assert seconds <= took < seconds + 2


async def test_times_are_those_of_the_clock_if_there_is_one(embedded: TestBroker) -> None:
    async with started(embedded) as (producer, topic):
        await Replay(producer, topic, 2, clock_ns=lambda: 42_000_000).run([trade(1)])
        (record,) = await read(embedded, topic, 1)
    assert record.headers[HEADER_RECEIVED_NS] == b"42000000"


async def test_it_stays_close_to_its_readers(embedded: TestBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that does 150 records at each look: never more than a turn over the bound ahead of it."""
    monkeypatch.setattr(module, "AHEAD_RECORDS_MAX", 500)
    seen: Counter[str] = Counter()
    most_ahead = 0

    async def processed() -> int:
        nonlocal most_ahead
        most_ahead = max(most_ahead, replay.counts.records - seen["records"])
        seen["records"] = min(replay.counts.records, seen["records"] + 150)
        seen["looks"] += 1
        return seen["records"]

    async with started(embedded) as (producer, topic):
        replay = Replay(producer, topic, 2, processed=processed)
        counts = await replay.run([trade(number) for number in range(5_000)])
    assert counts.records == 5_000
    assert 500 < most_ahead <= 500 + module.TURN_MESSAGES
    assert seen["looks"] >= (5_000 - 500) / 150


async def test_bytes_ahead_are_bounded_too(embedded: TestBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AHEAD_BYTES_MAX", 3_000)
    monkeypatch.setattr(module, "TURN_BYTES", 1_000)
    size = len(trade(100).message)
    read_so_far = most_ahead = 0

    async def processed() -> int:
        nonlocal read_so_far, most_ahead
        most_ahead = max(most_ahead, replay.counts.records - read_so_far)
        read_so_far = min(replay.counts.records, read_so_far + 5)
        return read_so_far

    async with started(embedded) as (producer, topic):
        replay = Replay(producer, topic, 2, processed=processed)
        await replay.run([trade(number) for number in range(100, 400)])
    assert 3_000 // size < most_ahead <= (3_000 + 2 * 1_000) // size + 2


async def test_a_capture_of_the_wrong_feed_is_said_in_one_line(embedded: TestBroker, tmp_path: Path) -> None:
    await embedded.create_topics()
    path = tmp_path / "capture"
    path.write_bytes(b'1618678132.8258188: {"event":"heartbeat"}\n')
    with pytest.raises(UserError, match=r"none of the 1 messages .* is market data of okx: is --feed right"):
        await run_replay(embedded.settings, path, "okx", 0)


async def test_the_command_says_what_it_did(
    embedded: TestBroker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await embedded.create_topics()
    path = tmp_path / "capture"
    path.write_bytes(b"".join(b"%d %s\n" % (it.received_ns, it.message) for it in (trade(1), trade(2))))
    await run_replay(embedded.settings, path, "binance.spot", 0)
    assert capsys.readouterr().out == "2 messages gave 2 records; 0 could not be used\n"
    assert len(await read(embedded, Topics(embedded.settings.topic_prefix).ticks, 2)) == 2
