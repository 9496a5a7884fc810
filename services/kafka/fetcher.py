"""Follows given partitions: one request at a time to each broker that leads some of them, the next when all was read.

In place of aiokafka's fetcher, which costs several times as much per request (see `services.kafka.fetch`) and per
record, and skips what came before a corrupt batch. Connections, leaders and the login are `AIOKafkaClient`'s.
"""

import asyncio
import logging
import math
import sys
from collections import deque
from collections.abc import Mapping
from typing import Any

from aiokafka import AIOKafkaClient
from aiokafka.conn import CloseReason
from aiokafka.errors import (
    KafkaError,
    NodeNotReadyError,
    OffsetOutOfRangeError,
    RequestTimedOutError,
    TopicAuthorizationFailedError,
    for_code,
)

from services.config import Settings
from services.kafka.connection import ask, client_options, connect, connection_to
from services.kafka.fetch import Fetched, FetchRequest
from services.kafka.follower import Follower, Partition, Record

FETCH_BYTES_MAX = 16 << 20
PARTITION_FETCH_BYTES_MAX = 1 << 20
"""What is fetched ahead at most, in all and for one partition. A larger record still comes, alone."""
FETCH_TIMEOUT_MS = 10_000
"""Without a group no request waits for others: a broker whose host has vanished is given up sooner, and its partitions
are read from who leads them now."""
_RETRY_S = 0.1
"""After an error, until the partition or the broker is asked again."""

_complaints = logging.getLogger("aiokafka.fetcher")  # cut down with aiokafka's, see `services.kafka.connection`


class _Plan:
    """What one broker is asked for, again and again."""

    def __init__(self, followers: list[Follower], request: FetchRequest) -> None:
        self.followers = followers
        self.request = request
        self.asked: dict[Partition, int] = {follower.name: follower.position for follower in followers}
        """The offsets in the request."""

    def seek(self) -> None:
        """To where the followers are."""
        for follower in self.followers:
            if self.asked[follower.name] != follower.position:
                self.asked[follower.name] = follower.position
                self.request.seek(follower.name, follower.position)


class _Asked:
    """A broker that is not to be asked: it is being asked or connected to, or rests. aiokafka takes it for a future."""

    def __init__(self, fetcher: "Fetcher", node: int, plan: _Plan, until_s: float) -> None:
        self.fetcher = fetcher
        self.node = node
        self.plan = plan
        self.until_s = until_s
        """When it is given up, on the loop's clock."""
        self.connection: Any = None
        self.task: asyncio.Task[None] | None = None
        self.is_done = False

    def done(self) -> bool:
        return self.is_done

    def set_result(self, answer: list[Fetched]) -> None:
        self.is_done = True
        self.fetcher.answered(self, answer)

    def set_exception(self, error: Exception) -> None:
        self.is_done = True
        self.fetcher.failed(self, error)


class Fetcher:
    """``start``, ``assign``, then ``poll`` for ever."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: Any = None
        self.partitions: dict[Partition, Follower] = {}
        self._unread: deque[Follower] = deque()
        self._plans: dict[int, _Plan] = {}  # by broker
        self._asked: dict[int, _Asked] = {}
        self._moved = False  # the plans are not what is wanted now
        self._changed = False  # since the brokers were asked; perhaps one of them can be asked again
        self._unexpected: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = 0.0
        self._until_s = 0.0  # poll waits, on the loop's clock

    async def start(self) -> None:
        """Connect.

        Raises:
            UserError: Kafka cannot be reached.
        """
        options = {**client_options(self._settings), "request_timeout_ms": FETCH_TIMEOUT_MS}
        self._use(AIOKafkaClient(**options))
        await connect(self._client.bootstrap, self._client.close, self._settings)

    def _use(self, client: Any) -> None:  # noqa: ANN401 aiokafka has no types
        self._client = client
        client.cluster.add_listener(self._plan_anew)

    async def stop(self) -> None:
        """Disconnect."""
        tasks = [asked.task for asked in self._asked.values() if asked.task is not None]
        for asked in self._asked.values():
            asked.is_done = True
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._timer is not None:
            self._timer.cancel()
        if self._client is not None:
            await self._client.close()

    async def assign(self, positions: Mapping[Partition, int], ends: Mapping[Partition, int]) -> None:
        """Read these partitions from now on, each from its position."""
        self.forget()
        self.partitions = {name: Follower(name, position, ends[name]) for name, position in positions.items()}
        self._moved = self._changed = True
        await self._client.set_topics({topic for topic, _ in positions})

    def forget(self) -> None:
        """Read nothing from now on; what came already is not handed out."""
        self.partitions = {}
        self._plans = {}
        self._unread.clear()

    def interrupt(self) -> None:
        """Let ``poll`` return now, with nothing if nothing has come."""
        self._until_s = 0.0
        self._wake()

    async def poll(self, timeout_s: float, records_max: int | None, *, ahead: bool = True) -> list[Record]:
        """Records that came, in order within each partition; empty when none came in time.

        Args:
            ahead: Ask for the next ones at once, while these are worked on. For who will pause it is better that the
                next poll asks, and gets what is newest then.

        Raises:
            KafkaError: Of one partition, which is where it was and is asked for again.
        """
        loop = asyncio.get_running_loop()
        self._until_s = loop.time() + timeout_s
        while True:
            records = self._take(records_max or sys.maxsize)
            now_s = loop.time()
            if ahead or not records:
                self._ask(now_s)
            if records or self._until_s <= now_s:
                return records
            await self._wait(loop, now_s)

    def _take(self, room: int) -> list[Record]:
        if (unexpected := self._unexpected) is not None:
            self._unexpected = None
            raise unexpected
        records: list[Record] = []
        while self._unread and len(records) < room:
            follower = self._unread[0]
            if error := follower.error:
                if not records:
                    follower.error = None
                    raise error
                break
            records += follower.take(room - len(records))
            if not follower.unread:
                self._unread.popleft()
                self._changed = True
        return records

    def _ask(self, now_s: float) -> None:
        """Ask each broker for its partitions, unless it is being asked, or something is unread."""
        if self._unread or not self._changed:
            return
        self._changed = False
        if self._moved:
            self._plan()
        for node, plan in self._plans.items():
            if node not in self._asked:
                self._send(_Asked(self, node, plan, now_s + FETCH_TIMEOUT_MS / 1000))

    def _plan(self) -> None:
        self._moved = False
        wanted: dict[int, list[Follower]] = {}
        for follower in self.partitions.values():
            if follower.rests:
                continue
            leader = self._client.cluster.leader_for_partition(follower.tp)
            if leader is None or leader == -1:
                self._look_up(follower)
            else:
                wanted.setdefault(leader, []).append(follower)
        self._plans = {}
        for node, followers in wanted.items():
            topics: dict[str, dict[int, int]] = {}
            for follower in followers:
                topic, partition = follower.name
                topics.setdefault(topic, {})[partition] = follower.position
            wait_ms, client_id = self._settings.kafka_fetch_max_wait_ms, self._settings.kafka_client_id
            request = FetchRequest(topics, wait_ms, FETCH_BYTES_MAX, PARTITION_FETCH_BYTES_MAX, client_id)
            self._plans[node] = _Plan(followers, request)

    def _send(self, asked: _Asked) -> None:
        self._asked[asked.node] = asked
        asked.connection = connection_to(self._client, asked.node)
        if asked.connection is None:
            asked.task = asyncio.create_task(self._connect(asked))
            return
        asked.plan.seek()
        try:
            ask(asked.connection, asked.plan.request, asked)
        except KafkaError as error:
            asked.set_exception(error)

    async def _connect(self, asked: _Asked) -> None:
        """It is asked at the next look, as are those whose connection was there."""
        asked.until_s = math.inf  # aiokafka gives up in time
        try:
            if await self._client.ready(asked.node):
                self._release(asked)
            else:
                asked.set_exception(NodeNotReadyError(f"broker {asked.node} cannot be reached"))
        except Exception as error:
            self._unexpected = error
            self._release(asked)

    def answered(self, asked: _Asked, answer: list[Fetched]) -> None:
        """Take what a broker answered."""
        try:
            self._receive(asked.plan.asked, answer)
        except Exception as error:  # which nobody expected: poll raises it
            self._unexpected = error
        self._release(asked)

    def failed(self, asked: _Asked, error: Exception) -> None:
        """Let a broker rest that did not answer."""
        _complaints.warning("no answer to a fetch from broker %s: %r", asked.node, error)
        asked.until_s = math.inf
        asyncio.get_running_loop().call_later(_RETRY_S, self._release, asked)

    def _release(self, asked: _Asked) -> None:
        if self._asked.get(asked.node) is asked:
            del self._asked[asked.node]
        self._wake()

    def _receive(self, asked: dict[Partition, int], answer: list[Fetched]) -> None:
        received = 0
        for topic, partition, code, end, data in answer:
            name = (topic, partition)
            follower = self.partitions.get(name)
            if follower is None:
                continue
            if not code:
                follower.end = end
                if not data:
                    continue
            # Nobody sought meanwhile, nor did another broker answer for it.
            if follower.position != asked[name] or follower.unread:
                continue
            if code:
                self._complain(follower, code)
                continue
            received += len(data)
            follower.put(data)
            self._unread.append(follower)
        if received > FETCH_BYTES_MAX // 2:  # where a broker stops to fill its answer: who got something is last then
            for follower in self._unread:
                if self.partitions.pop(follower.name, None):
                    self.partitions[follower.name] = follower
            self._moved = True

    def _complain(self, follower: Follower, code: int) -> None:
        kind = for_code(code)
        if kind is OffsetOutOfRangeError:
            follower.error = kind({follower.tp: follower.position})
        elif kind is TopicAuthorizationFailedError:
            follower.error = kind(follower.name[0])
        else:  # another broker leads it now, or it is being made or deleted
            _complaints.warning("%s/%d cannot be fetched: %s", *follower.name, kind.__name__)
            self._look_up(follower)
            return
        self._unread.append(follower)

    def _look_up(self, follower: Follower) -> None:
        """Find out who leads it now, and ask there. The timer ends the rest, and no clock is looked at: that of uvloop
        may say that it rang too early, and nobody would come a second time."""
        follower.rests = True
        self._moved = True
        asyncio.get_running_loop().call_later(_RETRY_S, self._rested, follower)
        self._client.force_metadata_update()

    def _rested(self, follower: Follower) -> None:
        follower.rests = False
        self._plan_anew()

    def _plan_anew(self, _metadata: Any = None) -> None:  # noqa: ANN401
        self._moved = True
        self._wake()

    async def _wait(self, loop: asyncio.AbstractEventLoop, now_s: float) -> None:
        """For an answer, until poll returns or a broker is to be given up. One timer lasts for many answers."""
        until_s = self._until_s
        for asked in list(self._asked.values()):
            if asked.until_s <= now_s:
                asked.is_done = True
                asked.connection.close(reason=CloseReason.CONNECTION_TIMEOUT)
                self.failed(asked, RequestTimedOutError())
            until_s = min(until_s, asked.until_s)
        if self._timer is None or self._timer_s > until_s:
            if self._timer is not None:
                self._timer.cancel()
            self._timer, self._timer_s = loop.call_at(until_s, self._ring), until_s
        self._waiter = loop.create_future()
        await self._waiter

    def _ring(self) -> None:
        self._timer = None
        self._wake()

    def _wake(self) -> None:
        self._changed = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
