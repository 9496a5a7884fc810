"""How partitions are followed, with a client that answers as told; what it does with brokers is in `test_kafka.py`."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from io import BytesIO
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.client import ConnectionGroup
from aiokafka.conn import CloseReason
from aiokafka.errors import (
    CorruptRecordException,
    KafkaConnectionError,
    KafkaError,
    OffsetOutOfRangeError,
    TopicAuthorizationFailedError,
)
from aiokafka.protocol.fetch import FetchRequest_v4
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c

from services.config import Settings
from services.kafka.fetch import FetchRequest
from services.kafka.fetcher import FETCH_BYTES_MAX, FETCH_TIMEOUT_MS, Fetcher
from services.kafka.follower import Follower, Partition, Record
from tests.support.native import native

NOT_LEADER, AUTHORIZATION, OUT_OF_RANGE, ONE, TWO = 6, 29, 1, ("t", 0), ("u", 0)
NEXT_OFFSET_DELTA, CHECKSUM, CHECKED, CONTROL = 23, 17, 21, 0x20


def batch(offset: int, values: Iterable[bytes], *, gap: int = 0, control: bool = False, broken: bool = False) -> bytes:
    """A batch whose first record is at ``offset``, and whose last ``gap`` records compaction removed."""
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 1 << 20)
    count = 0
    for count, value in enumerate(values, 1):
        builder.append(count - 1, 1_000 + count, b"k", value, [("h", b"1")] if value == b"headers" else [])
    data = builder.build()
    data[:8] = offset.to_bytes(8, "big")
    data[NEXT_OFFSET_DELTA : NEXT_OFFSET_DELTA + 4] = (count - 1 + gap).to_bytes(4, "big")
    data[CHECKED + 1] |= CONTROL if control else 0
    data[CHECKSUM:CHECKED] = calc_crc32c(data[CHECKED:]).to_bytes(4, "big")
    if broken:
        data[-1] ^= 1
    return bytes(data)


def values(records: list[Record]) -> list[bytes | None]:
    return [record.value for record in records]


@pytest.fixture(params=["python", "native"])
def opener(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With either way to read records."""
    function = native("services.kafka.native").open_batch if request.param == "native" else None
    monkeypatch.setattr("services.kafka.follower.open_batch", function)


@pytest.mark.usefixtures("opener")
class TestFollower:
    def test_as_many_as_there_is_room_for(self) -> None:
        follower = Follower(ONE, 11, 20)
        follower.put(batch(10, [b"a", b"b", b"headers"]) + batch(13, [b"d"], gap=2))
        assert follower.take(1) == [Record("t", 0, 11, 1_002, b"k", b"b", {})]
        assert (follower.position, follower.unread) == (12, True)
        assert [(r.offset, dict(r.headers)) for r in follower.take(9)] == [(12, {"h": b"1"}), (13, {})]
        assert (follower.position, follower.unread) == (16, False)

    def test_control_batches_and_gaps_are_passed(self) -> None:
        follower = Follower(ONE, 10, 20)
        follower.put(batch(10, [b"marker"], control=True) + batch(11, [b"a"], gap=3))
        assert values(follower.take(9)) == [b"a"]
        follower.put(batch(15, [b"marker"], control=True))
        assert (follower.take(9), follower.position, follower.unread) == ([], 16, False)

    def test_what_is_before_a_corrupt_batch_is_handed_out_and_nothing_is_skipped(self) -> None:
        follower = Follower(ONE, 10, 20)
        follower.put(batch(10, [b"a"]) + batch(11, [b"b"], broken=True) + batch(12, [b"c"]))
        assert values(follower.take(9)) == [b"a"]
        assert isinstance(follower.error, CorruptRecordException)
        assert (follower.take(9), follower.position) == ([], 11)

    def test_a_batch_that_is_cut_off(self) -> None:
        follower = Follower(ONE, 10, 20)
        follower.put(batch(10, [b"a"]) + batch(11, [b"b"])[:-1])
        assert (values(follower.take(9)), follower.position, follower.error) == ([b"a"], 11, None)
        follower.put(batch(11, [b"b"])[:-1])
        assert "cut off" in str(follower.error)

    def test_seeking_forgets_what_was_fetched(self) -> None:
        follower = Follower(ONE, 10, 20)
        follower.put(batch(10, [b"a", b"b"]))
        follower.take(1)
        follower.seek(5)
        assert (follower.unread, follower.take(9), follower.position) == (False, [], 5)


class Connection:
    """To a broker that answers as told; as much of aiokafka's as is asked for."""

    def __init__(self) -> None:
        self._versions = {1: (4, 4)}
        self._requests: list[tuple[int, FetchRequest, Any]] = []
        self._writer = self
        self.requests: asyncio.Queue[Any] = asyncio.Queue()
        self.open = False
        self.closed: list[CloseReason | None] = []

    def connected(self) -> bool:
        return self.open

    def _next_correlation_id(self) -> int:
        return len(self._requests)

    def write(self, frame: bytes) -> None:
        self.requests.put_nowait(FetchRequest_v4.decode(BytesIO(frame[14 + int.from_bytes(frame[12:14], "big") :])))

    def broken(self, _frame: bytes) -> None:
        raise RuntimeError("reset")

    def close(self, reason: CloseReason | None = None) -> None:
        self.open = False
        self.closed.append(reason)
        for _, _, answer in self._requests:
            if not answer.done():
                answer.set_exception(KafkaConnectionError("closed"))


class Client:
    """Brokers that answer as told; a partition is led by the broker in ``leaders``."""

    def __init__(self, leaders: dict[Partition, int | None]) -> None:
        self._leaders = leaders
        self._on_metadata: list[Callable[[Any], None]] = []
        self.cluster = self
        self.looked_up = 0
        self.away: set[int] = set()
        self.brokers = {1: Connection(), 2: Connection()}
        self._conns = {(node, ConnectionGroup.DEFAULT): broker for node, broker in self.brokers.items()}

    def add_listener(self, listener: Callable[[Any], None]) -> None:
        self._on_metadata.append(listener)

    def lead(self, leaders: dict[Partition, int | None]) -> None:
        """From now on, as the metadata say that come now."""
        self._leaders = leaders
        for listener in self._on_metadata:
            listener(self)

    def leader_for_partition(self, partition: TopicPartition) -> int | None:
        return self._leaders[partition.topic, partition.partition]

    def force_metadata_update(self) -> None:
        self.looked_up += 1

    async def set_topics(self, topics: set[str]) -> None:
        assert topics == {name for name, _ in self._leaders}

    async def ready(self, node: int) -> bool:
        self.brokers[node].open = node not in self.away
        return self.brokers[node].open

    async def close(self) -> None:
        pass

    async def request(self, node: int = 1) -> tuple[list[Any], Any]:
        """What the broker is asked for next: (topic, [(partition, offset, bytes at most)])."""
        async with asyncio.timeout(1):
            request = await self.brokers[node].requests.get()
        return request.topics, self.brokers[node]._requests[-1][2]


@asynccontextmanager
async def following(client: Client, position: int = 10) -> AsyncIterator[Fetcher]:
    fetcher = Fetcher(Settings())
    fetcher._use(client)
    await fetcher.assign(dict.fromkeys(client._leaders, position), dict.fromkeys(client._leaders, 20))
    try:
        yield fetcher
    finally:
        await fetcher.stop()


async def turns() -> None:
    """Of the event loop, in which all happens that can without time passing."""
    for _ in range(20):
        await asyncio.sleep(0)


def asked_for(topics: list[Any]) -> dict[Partition, int]:
    return {(topic, p): offset for topic, partitions in topics for p, offset, _ in partitions}


class TestFetcher:
    async def test_the_next_request_is_sent_when_all_is_read(self) -> None:
        client = Client({ONE: 1, TWO: 1})
        async with following(client) as fetcher:
            poll = asyncio.create_task(fetcher.poll(1, 2))
            topics, answer = await client.request()
            assert asked_for(topics) == {ONE: 10, TWO: 10}
            both = [("t", 0, 0, 13, batch(10, [b"a", b"b", b"c"])), ("u", 0, 0, 11, batch(10, [b"d"]))]
            answer.set_result(both)
            assert values(await poll) == [b"a", b"b"]
            assert [(f.position, f.end) for f in fetcher.partitions.values()] == [(12, 13), (10, 11)]
            await asyncio.sleep(0)
            assert client.brokers[1].requests.empty()
            assert values(await fetcher.poll(1, None)) == [b"c", b"d"]
            topics, answer = await client.request()
            assert asked_for(topics) == {ONE: 13, TWO: 11}

    async def test_a_broker_that_is_silent_holds_up_nobody(self) -> None:
        client = Client({ONE: 1, TWO: 2})
        async with following(client) as fetcher:
            for offset in (10, 11):
                poll = asyncio.create_task(fetcher.poll(1, None))
                topics, answer = await client.request(2)
                assert asked_for(topics) == {TWO: offset}
                answer.set_result([("u", 0, 0, 20, batch(offset, [b"%d" % offset]))])
                assert values(await poll) == [b"%d" % offset]
            assert client.brokers[1].requests.qsize() == 1

    async def test_an_answer_for_a_position_that_was_left_is_dropped(self) -> None:
        client = Client({ONE: 1})
        async with following(client) as fetcher:
            poll = asyncio.create_task(fetcher.poll(1, None))
            _, answer = await client.request()
            fetcher.partitions[ONE].seek(5)
            answer.set_result([("t", 0, 0, 20, batch(10, [b"late"]))])
            topics, answer = await client.request()
            assert asked_for(topics) == {ONE: 5}
            await fetcher.assign({ONE: 7}, {ONE: 20})
            answer.set_result([("t", 0, 0, 20, batch(5, [b"late"]))])
            topics, answer = await client.request()
            assert asked_for(topics) == {ONE: 7}
            answer.set_result([("t", 0, 0, 20, batch(7, [b"a"]))])
            assert values(await poll) == [b"a"]

    async def test_another_broker_leads_now(self) -> None:
        client = Client({ONE: 1, TWO: None})
        async with following(client) as fetcher:
            poll = asyncio.create_task(fetcher.poll(1, None))
            topics, answer = await client.request()
            assert (asked_for(topics), client.looked_up) == ({ONE: 10}, 1)
            client.lead({ONE: 2, TWO: 1})
            answer.set_result([("t", 0, NOT_LEADER, -1, b"")])
            topics, answer = await client.request(2)
            assert (asked_for(topics), client.looked_up) == ({ONE: 10}, 2)
            assert asked_for((await client.request(1))[0]) == {TWO: 10}
            answer.set_result([("t", 0, 0, 11, batch(10, [b"a"]))])
            assert values(await poll) == [b"a"]

    async def test_the_timer_rings_a_rounding_error_before_the_rest_is_over(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As uvloop's does, whose clock tells whole milliseconds."""
        now_s, then_s = 0.2, 0.3
        assert now_s + 0.1 > then_s
        client = Client({ONE: None})
        async with following(client) as fetcher:
            with monkeypatch.context() as patch:
                patch.setattr(asyncio.get_running_loop(), "time", lambda: now_s)
                poll = asyncio.create_task(fetcher.poll(60, None))
                await turns()
                client.lead({ONE: 1})
                await turns()
                assert (client.looked_up, client.brokers[1].requests.qsize()) == (1, 0), "it rests"
                now_s = then_s
                await turns()
                assert client.brokers[1].requests.qsize() == 1
                fetcher.interrupt()
                assert await poll == []

    async def test_two_brokers_answer_for_one_partition(self) -> None:
        client = Client({ONE: 1, TWO: 2})
        async with following(client) as fetcher:
            poll = asyncio.create_task(fetcher.poll(1, None))
            _, old = await client.request(1)
            _, other = await client.request(2)
            client.lead({ONE: 2, TWO: 2})
            other.set_result([])
            topics, new = await client.request(2)
            assert asked_for(topics) == {ONE: 10, TWO: 10}
            for answer in (old, new):
                answer.set_result([("t", 0, 0, 11, batch(10, [b"a"]))])
            assert values(await poll) == [b"a"]
            assert await fetcher.poll(0.05, None) == []

    @pytest.mark.parametrize(
        ("code", "kind"), [(OUT_OF_RANGE, OffsetOutOfRangeError), (AUTHORIZATION, TopicAuthorizationFailedError)]
    )
    async def test_an_error_is_raised_once_for_each_answer(self, code: int, kind: type[KafkaError]) -> None:
        client = Client({ONE: 1, TWO: 1})
        async with following(client) as fetcher:
            for _ in range(2):
                poll = asyncio.create_task(fetcher.poll(1, None))
                topics, answer = await client.request()
                assert asked_for(topics)[ONE] == 10
                records = batch(asked_for(topics)[TWO], [b"a"])
                answer.set_result([("u", 0, 0, 12, records), ("t", 0, code, -1, b"")])
                assert values(await poll) == [b"a"]
                with pytest.raises(kind):
                    await fetcher.poll(1, None)

    async def test_a_broker_that_is_away_is_asked_again(self) -> None:
        client = Client({ONE: 1})
        async with following(client) as fetcher:
            poll = asyncio.create_task(fetcher.poll(1, None))
            _, answer = await client.request()
            answer.set_exception(KafkaConnectionError("gone"))
            _, answer = await client.request()
            answer.set_result([("t", 0, 0, 11, batch(10, [b"a"]))])
            assert values(await poll) == [b"a"]

    async def test_a_connection_that_breaks_is_opened_again(self) -> None:
        client = Client({ONE: 1})
        async with following(client) as fetcher:
            broker = client.brokers[1]
            poll = asyncio.create_task(fetcher.poll(1, None))
            _, answer = await client.request()
            broker.close()
            assert answer.done()
            _, answer = await client.request()
            broker.write, write = broker.broken, broker.write  # type: ignore[method-assign]
            answer.set_result([("t", 0, 0, 11, batch(10, [b"a"]))])
            assert values(await poll) == [b"a"]
            assert broker.closed[1:] == [CloseReason.CONNECTION_BROKEN]
            broker.write = write  # type: ignore[method-assign]
            poll = asyncio.create_task(fetcher.poll(1, None))
            topics, answer = await client.request()
            assert asked_for(topics) == {ONE: 11}
            answer.set_result([("t", 0, 0, 12, batch(11, [b"b"]))])
            assert values(await poll) == [b"b"]

    async def test_a_broker_that_cannot_be_connected_to_is_tried_again(self) -> None:
        client = Client({ONE: 1, TWO: 2})
        async with following(client) as fetcher:
            client.away = {1}
            poll = asyncio.create_task(fetcher.poll(1, None))
            await client.request(2)
            client.away = set()
            _, answer = await client.request(1)
            answer.set_result([("t", 0, 0, 11, batch(10, [b"a"]))])
            assert values(await poll) == [b"a"]

    async def test_a_broker_that_does_not_answer_in_time_is_given_up(self) -> None:
        client = Client({ONE: 1})
        async with following(client) as fetcher:
            poll = asyncio.create_task(fetcher.poll(60, None))
            _, late = await client.request()
            fetcher._asked[1].until_s = 0.0
            fetcher._wake()
            _, answer = await client.request()
            assert (client.brokers[1].closed, late.done()) == ([CloseReason.CONNECTION_TIMEOUT], True)
            until_s = asyncio.get_running_loop().time() + FETCH_TIMEOUT_MS / 1000
            assert until_s - 5 < fetcher._timer_s <= until_s  # and not in 60 s
            answer.set_result([("t", 0, 0, 11, batch(10, [b"a"]))])
            assert values(await poll) == [b"a"]

    async def test_who_filled_an_answer_is_last_in_the_next(self) -> None:
        client = Client({ONE: 1, TWO: 1})
        async with following(client) as fetcher:
            poll = asyncio.create_task(fetcher.poll(1, None))
            topics, answer = await client.request()
            answer.set_result([("t", 0, 0, 99, batch(10, [b"a" * FETCH_BYTES_MAX])), ("u", 0, 0, 99, b"")])
            assert len(await poll) == 1
            topics, answer = await client.request()
            assert list(asked_for(topics).items()) == [(TWO, 10), (ONE, 11)]

    async def test_who_forgets_and_interrupts_gets_nothing_at_once(self) -> None:
        client = Client({ONE: 1})
        async with following(client) as fetcher:
            poll = asyncio.create_task(fetcher.poll(60, None))
            _, answer = await client.request()
            fetcher.forget()
            fetcher.interrupt()
            answer.set_result([("t", 0, 0, 11, batch(10, [b"a"]))])
            async with asyncio.timeout(1):
                assert await poll == []
            assert (await fetcher.poll(0.05, None), client.brokers[1].requests.empty()) == ([], True)

    async def test_what_nobody_expected_comes_out_of_poll_and_does_not_end_it(self) -> None:
        client = Client({ONE: 1})
        async with following(client) as fetcher:
            poll = asyncio.create_task(fetcher.poll(1, None))
            _, answer = await client.request()
            answer.set_result([None])
            with pytest.raises(TypeError):
                await poll
            poll = asyncio.create_task(fetcher.poll(1, None))
            _, answer = await client.request()
            answer.set_result([("t", 0, 0, 11, batch(10, [b"a"]))])
            assert values(await poll) == [b"a"]
