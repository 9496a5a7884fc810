"""The session's limits to the unit: mutants of `streamer/session.py` that lived, until these tests."""

import pytest

from protos.messages import (
    Auth,
    Channel,
    CloseCode,
    Error,
    ErrorCode,
    Notice,
    NoticeCode,
    Ping,
    Pong,
    Restored,
    SlowPolicy,
    Subscribe,
)
from streamer.access import NEVER_NS, Access
from streamer.effects import DoClose, DoPing, Effect, Reply
from streamer.limits import Limits
from streamer.session import Session
from streamer.streams import StreamKey
from tests.support.sessions import NAME, Catalog, Door, S, connect, error_of, guest

NOW_NS = 1_700_000_000 * S + 1


def admitted(access: Access, limits: Limits | None = None, now_ns: int = NOW_NS) -> Session:
    return Session("s1", limits or Limits(), Catalog(), {3}, now_ns, Door(), access)


def passes(session: Session, now_ns: int) -> bool:
    """Whether a command is within the rate."""
    (effect, *_) = session.receive(Ping(1), now_ns)
    assert isinstance(effect, Reply)
    if isinstance(effect.message, Error):
        assert effect.message.code is ErrorCode.LIMIT
    return isinstance(effect.message, Pong)


@pytest.mark.parametrize(
    ("burst", "per_s", "granted", "expected"), [(20, 10, 3, 6), (20, 10, 1, 2), (20, 100, 1, 1), (20, 10, 0, 20)]
)
def test_a_burst_is_in_proportion_to_the_granted_rate(burst: int, per_s: int, granted: int, expected: int) -> None:
    session = admitted(Access(commands_per_s=granted), Limits(commands_burst=burst, commands_per_s=per_s))
    assert [passes(session, NOW_NS) for _ in range(expected + 1)] == [True] * expected + [False]


def test_a_command_is_allowed_again_after_its_share_of_a_second_and_not_before() -> None:
    session = admitted(Access(), Limits(commands_burst=1, commands_per_s=10))
    assert [passes(session, NOW_NS + ns) for ns in (0, S // 10 - 1, S // 10)] == [True, False, True]


def test_a_burst_is_of_whole_commands() -> None:
    """A third of 10 is 3: the fourth has to wait for all of its share of a second."""
    session = admitted(Access(commands_per_s=1), Limits(commands_burst=10, commands_per_s=3))
    assert [passes(session, NOW_NS + ns) for ns in (0, 0, 0, S * 9 // 10, S)] == [True, True, True, False, True]


@pytest.mark.parametrize("granted", [1, 100])
def test_a_token_of_another_rate_replaces_it(granted: int) -> None:
    limits = Limits(commands_burst=20, commands_per_s=10)
    session = guest(Access("desk", "t1", commands_per_s=10), limits, other=Access("desk", "t2", commands_per_s=granted))
    session.receive(Auth(1, "other"), 0)
    assert sum(passes(session, 0) for _ in range(2 * granted + 1)) == 2 * granted


def test_a_close_names_what_there_was_too_much_of() -> None:
    session = connect().session
    effects: list[Effect] = []
    for i in range(10):
        effects = session.bad_command(i)
        assert error_of(effects).id == 0
    assert effects[-1] == DoClose(CloseCode.BAD_COMMANDS, "too many bad commands")
    session = connect(Limits(commands_burst=1, commands_per_s=1)).session
    for _ in range(11):
        effects = session.receive(Ping(1), 0)
    assert effects[-1] == DoClose(CloseCode.TOO_MANY, "too many commands")


def test_the_time_to_show_a_token_counts_from_the_beginning() -> None:
    session = Session("s1", Limits(auth_wait_ms=2_500), Catalog(), {3}, NOW_NS, Door())
    assert session.due_ns == NOW_NS + 5 * S // 2
    assert session.expire(NOW_NS + 5 * S // 2 - 1) == []
    assert session.expire(NOW_NS + 5 * S // 2) == [DoClose(CloseCode.UNAUTHORIZED, "no token within 2.5 s")]


def test_a_short_token_is_warned_of_at_half_of_what_is_left() -> None:
    session = admitted(Access("desk", "t1", expires_ns=NOW_NS + 6 * S))
    assert session.due_ns == NOW_NS + 3 * S
    assert type(session.due_ns) is int
    late = session.expire(NOW_NS + 4 * S + 1)
    assert late == [Reply(Notice(NoticeCode.AUTH_EXPIRING, retry_after_ms=1_999))], "whole milliseconds"


def test_who_is_looked_at_late_is_closed_too() -> None:
    """The wheel that looks may be held up."""
    session = admitted(Access("desk", "t1", expires_ns=NOW_NS + 6 * S))
    assert session.expire(NOW_NS + 6 * S + 1) == [DoClose(CloseCode.UNAUTHORIZED, "the token has expired")]
    session = admitted(Access(), Limits(pongs_missed_max=2, heartbeat_interval_ms=1_000))
    assert session.tick(NOW_NS + 4 * S) == [DoClose(CloseCode.HEARTBEAT_TIMEOUT, "no answer to pings")]


def test_a_token_without_an_end_is_never_due() -> None:
    assert admitted(Access("desk", "t1", expires_ns=int(str(NEVER_NS)))).due_ns == NEVER_NS


def test_the_same_subject_is_an_equal_name() -> None:
    session = guest(Access("desk", "t1"), again=Access(b"desk".decode(), "t2"))
    assert session.receive(Auth(1, "again"), 5)[0] == Reply(Pong(1, 5))


def test_a_late_tick_pings_all_the_same() -> None:
    session = connect(Limits(heartbeat_interval_ms=1_000)).session
    assert session.tick(S - 1) == []
    assert session.tick(S + 7) == [DoPing()]


def test_nothing_is_restored_where_there_is_no_room() -> None:
    session = guest(Access(), Limits(subscriptions_max=1))
    assert session.restored(1, [(StreamKey(NAME, Channel.BBO), SlowPolicy.CLOSE)]) == [Reply(Restored(1, 0))]


def test_a_name_that_nobody_knows_is_repeated_to_its_64th_character() -> None:
    message = error_of(connect().session.receive(Subscribe(1, "x" * 65, Channel.BOOK), 0)).message
    assert f"'{'x' * 64}'" in message


@pytest.mark.parametrize("missed", [1, 2, 3])
def test_a_peer_may_miss_so_many_pings_and_no_more(missed: int) -> None:
    limits = Limits(pongs_missed_max=missed, heartbeat_interval_ms=1_000)
    for late_ns, closes in ((0, False), (1, True)):
        effects = admitted(Access(), limits, 0).tick((missed + 1) * S + late_ns)
        assert [isinstance(effect, DoClose) for effect in effects] == [closes]


@pytest.mark.parametrize("other", ["a", "z"])
def test_no_other_subject_takes_a_connection_over(other: str) -> None:
    session = guest(Access("m", "t1"), other=Access(other, "t2"))
    assert error_of(session.receive(Auth(1, "other"), 0)).code is ErrorCode.FORBIDDEN
    assert session.access.subject == "m"


def test_a_token_of_the_same_rate_refills_nothing() -> None:
    limits, rates = Limits(commands_burst=3, commands_per_s=300), [int("300"), int("300")]
    session = guest(
        Access("m", "t1", commands_per_s=rates[0]), limits, other=Access("m", "t2", commands_per_s=rates[1])
    )
    assert [passes(session, 0) for _ in range(2)] == [True, True]
    session.receive(Auth(1, "other"), 0)
    assert not passes(session, 0)
