"""Lines, queues and listeners of both builds against one contract, and against a model."""

import gc
import sys
import weakref
from collections.abc import Callable
from typing import Any, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from protos.codec import CODECS
from streamer.counters import Counters
from streamer.limits import Limits
from streamer.line import Line, Listeners, PlainLine, Queue
from streamer.outbox import Outbox, Segment
from tests.support.lines import KINDS, lines

CODEC = CODECS["depthcast.v1.proto"]
NEW: Callable[[], Line]


@pytest.fixture(params=KINDS)
def line(request: pytest.FixtureRequest) -> Line:
    return lines(request.param).new()


def segment() -> Segment:
    return Segment(b"", None, 0, 0, 0, 0)


def owner() -> Outbox:
    return Outbox(CODEC, Limits(), Counters(), PlainLine())


def test_a_new_queue(line: Line) -> None:
    outbox = Outbox(CODEC, Limits(), Counters(), line)
    queue = outbox.queue
    assert queue.owner is outbox
    assert (queue.first, queue.socket, queue.plain) == (outbox.first, -1, True)
    assert (len(queue), queue.segments(), len(line)) == (0, [], 0)
    queue.socket, queue.plain, queue.owner = 7, False, None
    assert (queue.socket, queue.plain, queue.owner) == (7, False, None)


def test_queues_are_equal_to_themselves_alone(line: Line) -> None:
    one, two = line.queue(owner(), 1), line.queue(owner(), 1)
    assert len({one, two, one}) == 2


def test_what_is_not_a_queue_does_not_listen(line: Line) -> None:
    listeners = line.listeners()
    listeners.discard(cast("Queue", object()))
    with pytest.raises(TypeError):
        listeners.add(cast("Queue", object()))
    assert len(listeners) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_queue_of_another_line_does_not_leave_this_one(kind: str) -> None:
    mine, other = lines(kind).new(), lines(kind).new()
    queues = [line.queue(owner(), 1) for line in (mine, other)]
    for queue in queues:
        queue.stand()
    mine.leave(queues[1])
    assert (mine.take(None), other.take(None)) == (queues[:1], queues[1:])


class Machine(RuleBasedStateMachine):
    """Any order of what the hub does, beside lists that do the same."""

    new: Callable[[], Line]

    @initialize()
    def begin(self) -> None:
        self.line: Line = type(self).new()
        self.queues: list[tuple[Queue, list[Segment]]] = [(self.line.queue(owner(), 1), []) for _ in range(6)]
        self.listeners: list[tuple[Listeners, list[int]]] = [(self.line.listeners(), []) for _ in range(3)]
        self.standing: list[int] = []

    def _stand(self, i: int) -> None:
        if i not in self.standing:
            self.standing.append(i)

    @rule(i=st.integers(0, 5), many=st.sampled_from((1, 2, 20, 90)))
    def append(self, i: int, many: int) -> None:
        queue, held = self.queues[i]
        for _ in range(many):
            held.append(segment())
            queue.append(held[-1])
        self._stand(i)

    @rule(i=st.integers(0, 5))
    def stand(self, i: int) -> None:
        self.queues[i][0].stand()
        self._stand(i)

    @rule(i=st.integers(0, 5), start=st.integers(0, 3), step=st.integers(1, 3))
    def replace(self, i: int, start: int, step: int) -> None:
        queue, held = self.queues[i]
        held[:] = held[start::step]
        queue.replace(held.copy())

    @rule(i=st.integers(0, 5), j=st.integers(0, 2))
    def listen(self, i: int, j: int) -> None:
        listeners, members = self.listeners[j]
        if i not in members:
            listeners.add(self.queues[i][0])
            members.append(i)

    @rule(i=st.integers(0, 5), j=st.integers(0, 2))
    def stop(self, i: int, j: int) -> None:
        listeners, members = self.listeners[j]
        listeners.discard(self.queues[i][0])
        if i in members:
            members.remove(i)

    @rule(j=st.integers(0, 2), many=st.sampled_from((1, 9)))
    def offer(self, j: int, many: int) -> None:
        listeners, members = self.listeners[j]
        before = len(self.standing)
        for _ in range(many):
            one = segment()
            listeners.offer(one)
            for i in members:
                self.queues[i][1].append(one)
                self._stand(i)
        # Those who listen to one stream come into the line together, in any order.
        self._adopt_order(before)

    def _adopt_order(self, before: int) -> None:
        taken = self.line.take(None)
        for queue in taken:
            queue.stand()
        order = [next(i for i, (mine, _) in enumerate(self.queues) if mine is queue) for queue in taken]
        assert order[:before] == self.standing[:before]
        assert sorted(order) == sorted(self.standing)
        self.standing = order

    @rule(most=st.sampled_from((0, 1, 3, 100, None)))
    def take(self, most: int | None) -> None:
        taken = self.line.take(most)
        count = len(self.standing) if most is None else most
        assert taken == [self.queues[i][0] for i in self.standing[:count]]
        del self.standing[:count]

    @rule(i=st.integers(0, 5))
    def leave(self, i: int) -> None:
        self.line.leave(self.queues[i][0])
        if i in self.standing:
            self.standing.remove(i)

    @invariant()
    def all_agree(self) -> None:
        if not hasattr(self, "line"):
            return
        assert len(self.line) == len(self.standing)
        for queue, held in self.queues:
            assert len(queue) == len(held)
            assert all(one is other for one, other in zip(queue.segments(), held, strict=True))
        for listeners, members in self.listeners:
            assert len(listeners) == len(members)
            assert [i for i, (queue, _) in enumerate(self.queues) if queue in listeners] == sorted(members)


@pytest.mark.parametrize("kind", KINDS)
def test_any_order_of_calls(kind: str) -> None:
    class Mine(Machine):
        new = staticmethod(lines(kind).new)

    run_state_machine_as_test(Mine, settings=settings(max_examples=60, stateful_step_count=40, deadline=None))


def test_nothing_is_kept_that_was_taken_or_left(line: Line) -> None:
    """References to segments and owners are counted right, whichever way they go."""
    one, who = segment(), owner()
    before = sys.getrefcount(one), sys.getrefcount(who)
    queue, listeners = line.queue(who, 1), line.listeners()
    listeners.add(queue)
    for _ in range(100):
        listeners.offer(one)
    queue.append(one)
    queue.replace(queue.segments()[:3])
    queue.replace([])
    queue.append(one)
    line.take(1)
    listeners.discard(queue)
    del queue
    assert (sys.getrefcount(one), sys.getrefcount(who)) == before


@pytest.mark.parametrize("kind", KINDS)
def test_what_refers_to_each_other_is_collected(kind: str) -> None:
    """Owners, queues, listeners and the line, in which something waits."""
    line = lines(kind).new()

    class Skips(set[Any]):
        """Can be referred to weakly, which an outbox of the compiled build cannot."""

    who = Outbox(CODEC, Limits(), Counters(), line)
    who.skips = Skips()
    queue = who.queue
    listeners = line.listeners()
    listeners.add(queue)
    listeners.offer(segment())
    gone = weakref.ref(who.skips)
    del who, queue, listeners, line
    gc.collect()
    assert gone() is None
