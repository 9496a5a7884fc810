"""Groups of readers, and what an outage does, through the Kafka adapter."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack

import pytest
from aiokafka.errors import GroupAuthorizationFailedError

from services.broker import EmbeddedBroker
from services.errors import UserError
from services.kafka import (
    EARLIEST,
    DeliveryError,
    GroupReader,
    Producer,
    Record,
)
from tests.support.brokers import TestBroker
from tests.support.kafka_io import fill, producer_of, read, reader_of


class Member:
    """A group member that starts where it is told and remembers what happened to it."""

    def __init__(self, broker: TestBroker, topic: str, group: str, start: int = 0) -> None:
        self.partitions: list[int] = []
        self.history: list[tuple[str, list[int]]] = []
        self.records: list[Record] = []
        self._start = start
        self.reader = GroupReader(broker.settings, topic, group, self._on_assigned, self._on_revoked)

    async def _on_assigned(self, partitions: list[int]) -> Mapping[int, int]:
        self.history.append(("assigned", partitions))
        await asyncio.sleep(0.05)  # as if loading snapshots; nothing may be polled meanwhile
        self.partitions = partitions
        return dict.fromkeys(partitions, self._start)

    async def _on_revoked(self, partitions: list[int]) -> None:
        assert partitions == self.partitions
        self.history.append(("revoked", partitions))
        self.partitions = []

    async def poll(self) -> None:
        records = await self.reader.poll(20)
        assert {r.partition for r in records} <= set(self.partitions)
        self.records += records


async def until(condition: Callable[[], bool], *members: Member) -> None:
    async with asyncio.timeout(20):
        while not condition():
            for member in members:
                await member.poll()


@pytest.fixture
async def member(broker: TestBroker) -> AsyncIterator[Callable[..., Awaitable[Member]]]:
    async with AsyncExitStack() as stack:

        async def start(topic: str, group: str, start: int = 0) -> Member:
            new = Member(broker, topic, group, start)
            await new.reader.start()
            stack.push_async_callback(new.reader.stop)
            return new

        yield start


class TestGroup:
    async def test_one_member(self, broker: TestBroker, member: Callable[..., Awaitable[Member]]) -> None:
        topic, group = await broker.topic(partitions=2), broker.name("group")
        for partition in (0, 1):
            await fill(broker, topic, 6, partition)
        first = await member(topic, group, start=2)
        await until(lambda: len(first.records) == 8, first)
        assert first.history == [("assigned", [0, 1])]
        assert sorted((r.partition, r.offset) for r in first.records) == [(p, i) for p in (0, 1) for i in range(2, 6)]
        assert first.reader.lag() == {(topic, 0): 0, (topic, 1): 0}
        assert await first.reader.committed((topic, 1)) is None
        assert await first.reader.commit({(topic, 1): 6})
        assert await first.reader.committed((topic, 1)) == 6
        await first.reader.stop()
        assert first.history == [("assigned", [0, 1])]
        second = await member(topic, group, start=EARLIEST)  # not where the other one committed
        await until(lambda: len(second.records) == 12, second)
        assert second.partitions == [0, 1]

    async def test_an_error_in_a_callback_comes_out_of_poll(self, broker: TestBroker) -> None:
        topic = await broker.topic()

        async def fail(_partitions: list[int]) -> Mapping[int, int]:
            raise UserError("no snapshots")

        async def revoked(_partitions: list[int]) -> None:
            raise AssertionError

        reader = GroupReader(broker.settings, topic, broker.name("group"), fail, revoked)
        await reader.start()
        with pytest.raises(UserError, match="no snapshots"):
            await read(reader, 1)
        await reader.stop()

    async def test_a_rebalance_does_not_wait_for_a_poll_to_end(
        self, broker: TestBroker, member: Callable[..., Awaitable[Member]]
    ) -> None:
        topic = await broker.topic()
        first = await member(topic, broker.name("group"))
        async with asyncio.timeout(10):
            assert await first.reader.poll(60_000) == []
            assert await first.reader.poll(0) == []
        assert first.partitions == [0]

    async def test_what_was_fetched_of_a_revoked_partition_is_not_handed_out(
        self, broker: TestBroker, member: Callable[..., Awaitable[Member]]
    ) -> None:
        topic = await broker.topic()
        first = await member(topic, broker.name("group"))
        await until(lambda: first.partitions == [0], first)
        await fill(broker, topic, 6)
        while not await first.reader.poll(100, 1):
            pass
        revoking = asyncio.create_task(first.reader._revoked([0]))
        await asyncio.sleep(0)
        assert await first.reader.poll(0) == []
        assert first.history[-1] == ("revoked", [0])
        assert await first.reader.poll(0) == []
        await revoking

    async def test_what_ails_the_group_comes_out_of_poll(
        self, broker: TestBroker, member: Callable[..., Awaitable[Member]]
    ) -> None:
        topic, group = await broker.topic(), broker.name("group")
        first = await member(topic, group)
        await until(lambda: first.partitions == [0], first)
        ails = asyncio.get_running_loop().create_future()
        ails.set_exception(GroupAuthorizationFailedError(group))
        first.reader._watch = ails  # no broker of the tests has permissions
        with pytest.raises(UserError, match=f"forbids the group {group}"):
            await first.reader.poll(20)
        await fill(broker, topic, 3)
        await until(lambda: len(first.records) == 3, first)

    async def test_stop_while_a_rebalance_waits(self, broker: TestBroker) -> None:
        topic = await broker.topic()
        member = Member(broker, topic, broker.name("group"))
        await member.reader.start()
        await asyncio.sleep(0.7)  # it joins without being polled
        async with asyncio.timeout(5):
            await member.reader.stop()
        assert member.history == []

    @pytest.mark.kafka
    @pytest.mark.parametrize("broker", ["kafka"], indirect=True)  # the embedded one loses members that sync late
    async def test_two_members(self, broker: TestBroker, member: Callable[..., Awaitable[Member]]) -> None:
        topic, group = await broker.topic(partitions=4), broker.name("group")
        first = await member(topic, group)
        await until(lambda: first.partitions == [0, 1, 2, 3], first)
        second = await member(topic, group)
        await until(lambda: len(first.partitions) == len(second.partitions) == 2, first, second)
        assert sorted(first.partitions + second.partitions) == [0, 1, 2, 3]
        assert first.history[:2] == [("assigned", [0, 1, 2, 3]), ("revoked", [0, 1, 2, 3])]
        for partition in range(4):
            await fill(broker, topic, 3, partition)
        await until(lambda: len(first.records) == len(second.records) == 6, first, second)
        assert await first.reader.commit({(topic, first.partitions[0]): 3})
        assert not await first.reader.commit({(topic, second.partitions[0]): 3})
        await second.reader.stop()
        await until(lambda: first.partitions == [0, 1, 2, 3], first)

    @pytest.mark.kafka
    @pytest.mark.parametrize("broker", ["kafka"], indirect=True)
    async def test_a_member_that_is_stuck_cannot_commit(
        self, broker: TestBroker, member: Callable[..., Awaitable[Member]]
    ) -> None:
        topic, group = await broker.topic(), broker.name("group")
        stuck = await member(topic, group)
        await until(lambda: stuck.partitions == [0], stuck)
        time.sleep(3)  # noqa: ASYNC251 no heartbeats: the loop stands still
        other = await member(topic, group)
        await until(lambda: other.partitions == [0], other)
        assert not await stuck.reader.commit({(topic, 0): 1})


class TestOutage:
    async def test_nothing_is_lost_or_doubled(self, embedded: TestBroker) -> None:
        assert isinstance(embedded.server, EmbeddedBroker)
        topic = await embedded.topic()
        async with producer_of(embedded.settings) as producer, reader_of(embedded.settings, {(topic, 0): 0}) as reader:
            await producer.deliver(topic, 0, None, b"0")
            for i in range(1, 100):
                if i == 30:
                    embedded.server.pause()
                if i == 60:
                    await asyncio.sleep(0.3)
                    embedded.server.resume()
                producer.send(topic, 0, None, b"%d" % i)
                await asyncio.sleep(0.001)
            await producer.flush()
            records = await read(reader, 100)
            assert await reader.poll(50) == []
        assert [r.value for r in records] == [b"%d" % i for i in range(100)]

    async def test_stop_without_kafka(self, embedded: TestBroker, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("services.kafka.producer._STOP_S", 0.3)
        assert isinstance(embedded.server, EmbeddedBroker)
        topic = await embedded.topic()
        producer = Producer(embedded.settings)
        await producer.start()
        embedded.server.pause()
        waiting = asyncio.create_task(producer.deliver(topic, 0, None, b"lost"))
        await asyncio.sleep(0.05)
        async with asyncio.timeout(5):
            await producer.stop()
        with pytest.raises(DeliveryError, match="stopped"):
            await waiting
