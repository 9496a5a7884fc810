"""The protocol table: every state and command, the limits, and the heartbeat."""

from collections.abc import Callable

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
    Restore,
    Restored,
    Resume,
    SlowPolicy,
    Subscribe,
    Unsubscribe,
    Welcome,
)
from streamer.access import NEVER_NS, Access, Refusal
from streamer.bucket import Bucket
from streamer.effects import (
    DoAdmit,
    DoClose,
    DoPing,
    DoRestore,
    DoSubscribe,
    DoUnsubscribe,
    Effect,
    Reply,
)
from streamer.limits import Limits
from streamer.session import State
from streamer.streams import StreamKey
from tests.support.sessions import NAME, Peer, S, connect, error_of, guest


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
        (State.OPEN, Restore(7, "s0"), DoRestore(7, "s0")),
        (State.DRAINING, Restore(7, "s0"), ErrorCode.NOT_READY),
        (State.ANONYMOUS, SUBSCRIBE, ErrorCode.FORBIDDEN),
        (State.ANONYMOUS, Unsubscribe(2, 3), ErrorCode.FORBIDDEN),
        (State.ANONYMOUS, Restore(7, "s0"), ErrorCode.FORBIDDEN),
        (State.ANONYMOUS, Ping(5), Reply(Pong(5, 11))),
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
        (lambda peer: setattr(peer.catalog, "ready", False), Restore(7, "s0"), ErrorCode.NOT_READY),
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


# ---- who it is


MINUTE = Access("desk", "t1", expires_ns=60 * S)


def test_without_a_token_there_is_nothing_and_after_ten_seconds_the_end() -> None:
    session = guest()
    assert error_of(session.receive(SUBSCRIBE, 0)).code is ErrorCode.FORBIDDEN
    assert session.due_ns == 10 * S
    assert session.expire(10 * S - 1) == []
    (end,) = session.expire(10 * S)
    assert isinstance(end, DoClose)
    assert end.code is CloseCode.UNAUTHORIZED
    assert session.expire(11 * S) == [], "said once"


def test_a_token_as_the_first_message_opens_the_session() -> None:
    session = guest(good=MINUTE)
    assert session.receive(Auth(1, "good"), 9 * S) == [Reply(Pong(1, 9 * S)), DoAdmit(MINUTE)]
    assert session.state is State.OPEN
    assert isinstance(session.receive(SUBSCRIBE, 9 * S)[0], DoSubscribe)


def test_a_wrong_first_token_costs_the_connection_and_a_wrong_later_one_a_fault() -> None:
    refused = Refusal(CloseCode.FORBIDDEN, "revoked")
    session = guest(revoked=refused)
    error, end = session.receive(Auth(1, "revoked"), 0)
    assert error == Reply(Error(1, ErrorCode.FORBIDDEN, "revoked"))
    assert end == DoClose(CloseCode.FORBIDDEN, "revoked")
    session = guest(MINUTE)
    assert error_of(session.receive(Auth(2, "wrong"), 0)).code is ErrorCode.FORBIDDEN
    assert session.state is State.OPEN
    for i in range(9):
        session.receive(Auth(i, "wrong"), 0)
    assert session.state is State.CLOSED, "the tenth fault"


def test_expiry_is_announced_and_another_token_extends() -> None:
    later = Access("desk", "t2", expires_ns=200 * S)
    session = guest(MINUTE, good=later)
    assert session.due_ns == 30 * S
    assert session.expire(30 * S) == [Reply(Notice(NoticeCode.AUTH_EXPIRING, retry_after_ms=30_000))]
    assert session.expire(31 * S) == [], "once"
    assert session.due_ns == 60 * S
    assert session.receive(Auth(1, "good"), 50 * S) == [Reply(Pong(1, 50 * S)), DoAdmit(later)]
    assert session.expire(60 * S) == []
    assert session.due_ns == 170 * S
    assert session.expire(200 * S) == [DoClose(CloseCode.UNAUTHORIZED, "the token has expired")]


def test_a_token_that_ends_soon_is_announced_at_half_of_its_time() -> None:
    session = guest(Access("desk", "t", expires_ns=4 * S))
    assert session.due_ns == 2 * S


def test_another_subject_needs_another_connection() -> None:
    session = guest(MINUTE, other=Access("somebody", "t9"))
    assert "another subject" in error_of(session.receive(Auth(1, "other"), 0)).message
    assert session.access is MINUTE


def test_draining_takes_a_token_still_but_no_subscription() -> None:
    session = guest(good=MINUTE)
    session.drain(100)
    assert session.receive(Auth(1, "good"), 0)[1] == DoAdmit(MINUTE)
    assert session.state is State.DRAINING


def test_without_authentication_nothing_is_ever_due() -> None:
    assert connect().session.due_ns == NEVER_NS


@pytest.mark.parametrize(
    ("access", "command", "allowed"),
    [
        (Access(instruments=("binance:*",)), SUBSCRIBE, True),
        (Access(instruments=("kraken:*", "binance:spot:BTC????")), SUBSCRIBE, True),
        (Access(instruments=("kraken:*",)), SUBSCRIBE, False),
        (Access(instruments=("BINANCE:*",)), SUBSCRIBE, False),
        (Access(instruments=("binance:spot",)), SUBSCRIBE, False),
        (Access(instruments=()), SUBSCRIBE, False),
        (Access(channels=frozenset({Channel.TRADES})), SUBSCRIBE, False),
        (Access(channels=frozenset({Channel.TRADES})), Subscribe(1, NAME, Channel.TRADES), True),
        (Access(depth_max=50), Subscribe(1, NAME, Channel.BOOK, 50), True),
        (Access(depth_max=50), Subscribe(1, NAME, Channel.BOOK, 200), False),
        (Access(depth_max=50), SUBSCRIBE, False),
        (Access(depth_max=50), Subscribe(1, NAME, Channel.RAW), False),
        (Access(depth_max=50), Subscribe(1, NAME, Channel.BBO), True),
        (Access(instruments=("kraken:*",)), Subscribe(1, "binance:spot:NONE", Channel.BOOK), False),
    ],
)
def test_a_grant_is_a_limit(access: Access, command: Subscribe, allowed: bool) -> None:
    effects = guest(access).receive(command, 0)
    if allowed:
        assert isinstance(effects[0], DoSubscribe)
    else:
        assert error_of(effects).code is ErrorCode.FORBIDDEN


def test_a_granted_rate_replaces_the_servers_and_a_new_token_does_not_refill_it() -> None:
    slow = Access("desk", "t1", commands_per_s=1)
    session = guest(slow, Limits(commands_burst=20, commands_per_s=10), again=slow)
    assert [type(session.receive(Ping(i), 0)[0]) for i in range(2)] == [Reply, Reply]
    assert error_of(session.receive(Ping(3), 0)).code is ErrorCode.LIMIT, "a burst of a tenth of 20"
    assert session.receive(Auth(4, "again"), S)[-1] == DoAdmit(slow)
    assert error_of(session.receive(Ping(5), S)).code is ErrorCode.LIMIT


def test_restoring_leaves_out_what_may_not_be_had_and_happens_once() -> None:
    session = guest(Access(depth_max=10), Limits(subscriptions_max=3))
    assert session.receive(Restore(1, "s0"), 0) == [DoRestore(1, "s0")]
    ten, full = StreamKey(NAME, Channel.BOOK, 10), StreamKey(NAME, Channel.BOOK)
    trades, unknown = StreamKey(NAME, Channel.TRADES), StreamKey("no:such:thing", Channel.BBO)
    wanted = [(ten, SlowPolicy.CLOSE), (full, SlowPolicy.CLOSE), (trades, SlowPolicy.SKIP), (unknown, SlowPolicy.CLOSE)]
    assert session.restored(1, wanted) == [
        Reply(Restored(1, 2)),
        DoSubscribe(0, ten, None, SlowPolicy.CLOSE),
        DoSubscribe(0, trades, None, SlowPolicy.SKIP),
    ]
    assert error_of(session.receive(Restore(2, "s0"), 0)).code is ErrorCode.LIMIT
    session.drain(1)
    assert error_of(session.restored(3, wanted)).code is ErrorCode.NOT_READY


def test_no_more_is_restored_than_there_is_room_for() -> None:
    session = guest(Access(), Limits(subscriptions_max=2))
    wanted = [(StreamKey(NAME, channel), SlowPolicy.CLOSE) for channel in (Channel.BBO, Channel.TRADES)]
    assert session.restored(1, wanted)[0] == Reply(Restored(1, 1)), "one is taken"
