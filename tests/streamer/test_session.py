"""The protocol table: every state and command, the limits, and the heartbeat."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos.messages import (
    DEPTHS,
    INTERVALS_MS,
    Auth,
    Channel,
    CloseCode,
    Command,
    Error,
    ErrorCode,
    Notice,
    NoticeCode,
    Ping,
    Pong,
    Resume,
    SlowPolicy,
    Subscribe,
    Unsubscribe,
    Welcome,
)
from streamer.limits import Limits
from streamer.session import (
    Bucket,
    DoClose,
    DoPing,
    DoSubscribe,
    DoUnsubscribe,
    Effect,
    Reply,
    Session,
    State,
)
from streamer.streams import StreamKey

S = 1_000_000_000
NAME = "binance:spot:BTCUSDT"


class Catalog:
    def __init__(self) -> None:
        self.ready = True

    def knows(self, instrument: str) -> bool:
        return instrument == NAME


class Peer(NamedTuple):
    session: Session
    catalog: Catalog
    streams: set[int]


def connect(limits: Limits | None = None) -> Peer:
    catalog, streams = Catalog(), {3}
    return Peer(Session("s1", limits or Limits(), catalog, streams, 0), catalog, streams)


def error_of(effects: list[Effect]) -> Error:
    reply = effects[0]
    assert isinstance(reply, Reply)
    assert isinstance(reply.message, Error)
    return reply.message


def test_welcome_tells_the_limits() -> None:
    limits = Limits(heartbeat_interval_ms=7_000, command_bytes_max=99, subscriptions_max=5)
    assert connect(limits).session.open() == [Reply(Welcome("s1", 7_000, 99, 5))]


@given(
    st.sampled_from(list(Channel)),
    st.sampled_from((*DEPTHS, 2, 100)),
    st.sampled_from((*INTERVALS_MS, 1, 99)),
)
def test_every_key_subscribes_or_gets_the_error_of_its_first_fault(channel: Channel, depth: int, interval: int) -> None:
    effects = connect().session.receive(Subscribe(9, NAME, channel, depth, interval), 0)
    plain = channel is not Channel.BOOK
    if channel is Channel.UNKNOWN:
        assert error_of(effects).code is ErrorCode.UNKNOWN_CHANNEL
    elif depth not in DEPTHS or (plain and depth):
        assert error_of(effects).code is ErrorCode.BAD_DEPTH
    elif interval not in INTERVALS_MS or (plain and interval):
        assert error_of(effects).code is ErrorCode.BAD_INTERVAL
    else:
        assert effects == [DoSubscribe(9, StreamKey(NAME, channel, depth, interval), None, SlowPolicy.CLOSE)]


def test_resume_and_policy_are_handed_on() -> None:
    command = Subscribe(1, NAME, Channel.TRADES, resume=Resume(4, 5), slow_policy=SlowPolicy.SKIP)
    (effect,) = connect().session.receive(command, 0)
    assert effect == DoSubscribe(1, StreamKey(NAME, Channel.TRADES), Resume(4, 5), SlowPolicy.SKIP)


SUBSCRIBE = Subscribe(1, NAME, Channel.BOOK)


@pytest.mark.parametrize(
    ("state", "command", "effect"),
    [
        (State.OPEN, SUBSCRIBE, DoSubscribe(1, StreamKey(NAME, Channel.BOOK), None, SlowPolicy.CLOSE)),
        (State.OPEN, Unsubscribe(2, 3), DoUnsubscribe(2, 3)),
        (State.OPEN, Unsubscribe(2, 4), ErrorCode.NOT_SUBSCRIBED),
        (State.OPEN, Ping(5), Reply(Pong(5, 11))),
        (State.OPEN, Auth(6, "token"), Reply(Pong(6, 11))),
        (State.DRAINING, SUBSCRIBE, ErrorCode.NOT_READY),
        (State.DRAINING, Unsubscribe(2, 3), DoUnsubscribe(2, 3)),
        (State.DRAINING, Ping(5), Reply(Pong(5, 11))),
        (State.DRAINING, Auth(6, "token"), Reply(Pong(6, 11))),
        (State.CLOSED, SUBSCRIBE, None),
        (State.CLOSED, Unsubscribe(2, 3), None),
        (State.CLOSED, Ping(5), None),
        (State.CLOSED, Auth(6, "token"), None),
    ],
)
def test_the_table(state: State, command: Command, effect: Effect | ErrorCode | None) -> None:
    session = connect().session
    session.state = state
    effects = session.receive(command, 11)
    if isinstance(effect, ErrorCode):
        error = error_of(effects)
        assert (error.id, error.code) == (command.id, effect)
        assert error.message
        assert len(effects) == 1
    else:
        assert effects == ([] if effect is None else [effect])


@pytest.mark.parametrize(
    ("change", "command", "code"),
    [
        (lambda peer: setattr(peer.catalog, "ready", False), SUBSCRIBE, ErrorCode.NOT_READY),
        (lambda peer: peer.streams.update(range(1_000)), SUBSCRIBE, ErrorCode.LIMIT),
        (lambda _: None, Subscribe(1, "no:such:thing", Channel.BOOK), ErrorCode.UNKNOWN_INSTRUMENT),
    ],
)
def test_what_the_server_cannot_do_now(change: Callable[[Peer], None], command: Command, code: ErrorCode) -> None:
    peer = connect()
    change(peer)
    assert error_of(peer.session.receive(command, 0)).code is code


def test_the_tenth_fault_closes_and_nothing_is_received_afterwards() -> None:
    session = connect().session
    for i in range(9):
        assert len(session.bad_command(i)) == 1
    effects = session.bad_command(9)
    assert error_of(effects).code is ErrorCode.BAD_COMMAND
    assert isinstance(effects[1], DoClose)
    assert effects[1].code is CloseCode.BAD_COMMANDS
    assert session.state is State.CLOSED
    assert session.bad_command(10) == session.receive(Ping(1), 10) == session.tick(10**15) == session.drain(1) == []


def test_one_fault_is_forgiven_per_minute() -> None:
    session = connect().session
    for i in range(100):
        assert len(session.bad_command(i * 60 * S)) == 1


def test_commands_over_the_rate_are_refused_and_finally_close_with_4429() -> None:
    session = connect(Limits(commands_burst=20, commands_per_s=10)).session
    for i in range(20):
        assert session.receive(Ping(i), 0) == [Reply(Pong(i, 0))]
    assert error_of(session.receive(Ping(21), 0)).code is ErrorCode.LIMIT
    assert session.receive(Ping(22), S // 10) == [Reply(Pong(22, S // 10))], "a tenth of a second makes room for one"
    effects: list[Effect] = []
    for i in range(9):
        effects = session.receive(Ping(30 + i), S // 10)
    assert isinstance(effects[-1], DoClose)
    assert effects[-1].code is CloseCode.TOO_MANY


def test_a_peer_that_answers_is_pinged_for_ever() -> None:
    session = connect(Limits(heartbeat_interval_ms=1_000)).session
    pings = 0
    for ms in range(0, 60_000, 500):
        effects = session.tick(ms * 1_000_000)
        pings += effects == [DoPing()]
        session.pong(ms * 1_000_000)
    assert pings == 59


def test_a_silent_peer_is_closed_after_two_pings_without_answer() -> None:
    session = connect(Limits(heartbeat_interval_ms=1_000, pongs_missed_max=2)).session
    for second in (1, 2, 3):
        assert session.tick(second * S) == [DoPing()]
    (effect,) = session.tick(3 * S + 1)
    assert isinstance(effect, DoClose)
    assert effect.code is CloseCode.HEARTBEAT_TIMEOUT


def test_draining_is_announced_once() -> None:
    session = connect().session
    assert session.drain(250) == [Reply(Notice(NoticeCode.SHUTDOWN, retry_after_ms=250))]
    assert session.drain(250) == []
    session.closed()
    assert session.state is State.CLOSED


@given(st.lists(st.integers(0, 30), max_size=60), st.integers(1, 5), st.integers(1, 10))
def test_no_window_lets_more_through_than_burst_and_rate(waits: list[int], burst: int, period: int) -> None:
    bucket = Bucket(burst, period)
    now = 0
    taken: list[int] = []
    for wait in waits:
        now += wait
        if bucket.take(now):
            taken.append(now)
        else:
            assert len([t for t in taken if t > now - burst * period]) >= 1, "refused only after use"
    for i, start in enumerate(taken):
        for j in range(i, len(taken)):
            assert j - i + 1 <= burst + (taken[j] - start) / period
