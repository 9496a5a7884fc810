"""The rules table, row by row, and the state machine that reads it."""

import pytest

from ingest.events import BookEvent, SequenceRule
from ingest.sequence import BUFFERED_DELTAS_MAX, BUFFERED_LEVELS_MAX, CHAINS, Action, Sequence, Verdict
from protos.messages import BookState, Reason

LEVEL = [("1", "1")]
PREV_LINKED = [SequenceRule.OKX, SequenceRule.DERIBIT, SequenceRule.CANONICAL]
IN_STREAM = [rule for rule in SequenceRule if not CHAINS[rule].buffers]


def snapshot(last: int | None = None, *, reset: bool = False) -> BookEvent:
    return BookEvent(True, LEVEL, [], last=last, reset=reset)


def delta(first: int | None = None, last: int | None = None, prev: int | None = None) -> BookEvent:
    return BookEvent(False, LEVEL, [], first=first, last=last, prev=prev)


def follow(sequence: Sequence, *events: BookEvent) -> list[Verdict]:
    verdicts = []
    for event in events:
        verdict = sequence.judge(event)
        sequence.commit(event, verdict)
        verdicts.append(verdict)
    return verdicts


def actions(sequence: Sequence, *events: BookEvent) -> list[Action]:
    return [verdict.action for verdict in follow(sequence, *events)]


def number(text: str) -> int:
    """As parsed from a message: equal to another of its value, and not the same object."""
    return int(text)


def test_every_rule_has_a_row() -> None:
    assert set(CHAINS) == set(SequenceRule)


def test_only_venues_without_numbers_cannot_prove_a_loss() -> None:
    silent = {rule for rule, chain in CHAINS.items() if not chain.proves_loss}
    assert silent == {SequenceRule.KRAKEN, SequenceRule.COINBASE}


@pytest.mark.parametrize(
    ("event", "action"),
    [
        (delta(90, 100), Action.DROP),  # u <= lastUpdateId
        (delta(95, 101), Action.APPLY),  # U <= last + 1 <= u
        (delta(101, 105), Action.APPLY),
        (delta(102, 105), Action.GAP),
    ],
)
def test_binance_spot_joins_its_snapshot(event: BookEvent, action: Action) -> None:
    assert actions(Sequence(SequenceRule.BINANCE_SPOT), snapshot(100), event) == [Action.RESET, action]


@pytest.mark.parametrize(
    ("event", "action"),
    [
        (delta(106, 110), Action.APPLY),  # U == prev u + 1
        (delta(101, 105), Action.DROP),  # again
        (delta(104, 110), Action.GAP),  # overlaps: allowed only for the first after a snapshot
        (delta(107, 110), Action.GAP),
    ],
)
def test_binance_spot_chain(event: BookEvent, action: Action) -> None:
    sequence = Sequence(SequenceRule.BINANCE_SPOT)
    assert actions(sequence, snapshot(100), delta(95, 105), event)[-1] is action


@pytest.mark.parametrize(
    ("event", "action"),
    [
        (delta(80, 99, 79), Action.DROP),
        (delta(80, 120, 79), Action.APPLY),  # U <= last <= u
        (delta(100, 120, 79), Action.APPLY),
        (delta(101, 120, 79), Action.GAP),
        (delta(None, 120, 79), Action.GAP),
        (delta(105, 120, 100), Action.APPLY),  # ids are not dense, but pu links to the snapshot's
        (delta(105, 120, 103), Action.GAP),
    ],
)
def test_binance_futures_joins_its_snapshot(event: BookEvent, action: Action) -> None:
    assert actions(Sequence(SequenceRule.BINANCE_FUTURES), snapshot(100), event) == [Action.RESET, action]


@pytest.mark.parametrize(
    ("event", "action"),
    [
        (delta(150, 170, 120), Action.APPLY),  # pu == prev u
        (delta(90, 120, 79), Action.DROP),
        (delta(100, 170, 119), Action.GAP),
    ],
)
def test_binance_futures_chain(event: BookEvent, action: Action) -> None:
    sequence = Sequence(SequenceRule.BINANCE_FUTURES)
    assert actions(sequence, snapshot(100), delta(80, 120, 79), event)[-1] is action


def test_deltas_before_the_snapshot_are_kept_and_merged() -> None:
    sequence = Sequence(SequenceRule.BINANCE_SPOT)
    early = [delta(90, 95), delta(96, 102), delta(103, 107)]
    assert actions(sequence, *early) == [Action.BUFFER] * 3
    (verdict,) = follow(sequence, snapshot(100))
    assert verdict == Verdict(Action.RESET, Reason.SNAPSHOT, (early[1], early[2]))
    assert (sequence.state, sequence.last, sequence.buffer, sequence.buffered_levels) == (BookState.SYNCED, 107, [], 0)
    assert actions(sequence, delta(107, 108), delta(108, 110)) == [Action.GAP, Action.BUFFER]


def test_a_snapshot_too_old_for_the_buffer_leaves_it() -> None:
    sequence = Sequence(SequenceRule.BINANCE_SPOT)
    early = [delta(90, 95), delta(96, 102)]
    assert actions(sequence, *early, snapshot(50)) == [Action.BUFFER, Action.BUFFER, Action.DROP]
    assert sequence.state is BookState.WAITING
    assert follow(sequence, snapshot(95))[0].merged == (early[1],)


def test_a_snapshot_newer_than_the_buffer_stands_alone() -> None:
    sequence = Sequence(SequenceRule.BINANCE_FUTURES)
    verdicts = follow(sequence, delta(90, 95, 80), snapshot(100), delta(97, 103, 95))
    assert [verdict.action for verdict in verdicts] == [Action.BUFFER, Action.RESET, Action.APPLY]
    assert verdicts[1].merged == ()


def test_a_hole_in_the_buffer_makes_what_is_before_it_useless() -> None:
    sequence = Sequence(SequenceRule.BINANCE_SPOT)
    late = delta(110, 115)
    assert actions(sequence, delta(90, 95), delta(96, 100), late) == [Action.BUFFER] * 3
    assert sequence.buffer == [late]
    assert actions(sequence, snapshot(99)) == [Action.DROP]
    assert follow(sequence, snapshot(112))[0].merged == (late,)


def test_a_repeated_delta_is_not_buffered_twice() -> None:
    sequence = Sequence(SequenceRule.BINANCE_SPOT)
    assert actions(sequence, delta(90, 95), delta(90, 95)) == [Action.BUFFER, Action.DROP]


def test_after_a_gap_binance_buffers_again_and_recovers() -> None:
    sequence = Sequence(SequenceRule.BINANCE_SPOT)
    assert actions(sequence, snapshot(100), delta(103, 105), delta(106, 108)) == [
        Action.RESET,
        Action.GAP,
        Action.BUFFER,
    ]
    assert sequence.state is BookState.GAPPED
    assert len(follow(sequence, snapshot(104))[0].merged) == 2
    assert (sequence.state, sequence.last) == (BookState.SYNCED, 108)


def test_an_older_snapshot_does_not_turn_a_live_book_back() -> None:
    sequence = Sequence(SequenceRule.BINANCE_SPOT)
    assert actions(sequence, snapshot(100), snapshot(99), snapshot(100), snapshot(101)) == [
        Action.RESET,
        Action.DROP,
        Action.DROP,
        Action.RESET,
    ]


def test_what_the_newest_of_the_buffer_has_is_not_buffered_again() -> None:
    sequence = Sequence(SequenceRule.BINANCE_SPOT)
    early = [delta(90, 95), delta(96, 102)]
    assert actions(sequence, *early, delta(97, 101)) == [Action.BUFFER, Action.BUFFER, Action.DROP]
    assert sequence.buffer == early


def test_the_buffer_counts_the_levels_of_both_sides() -> None:
    sequence = Sequence(SequenceRule.BINANCE_SPOT)
    deltas = [BookEvent(False, LEVEL * 200, LEVEL * 300, first=i, last=i) for i in (1, 2, 3)]
    assert actions(sequence, *deltas) == [Action.BUFFER] * 3
    assert sequence.buffered_levels == 1_500


def test_the_buffer_is_bounded_by_deltas() -> None:
    sequence = Sequence(SequenceRule.BINANCE_SPOT)
    verdicts = follow(sequence, *(delta(i, i) for i in range(1, BUFFERED_DELTAS_MAX + 2)))
    assert {verdict.action for verdict in verdicts[:-1]} == {Action.BUFFER}
    assert verdicts[-1] == Verdict(Action.GAP, Reason.BUFFER_OVERFLOW)
    assert (sequence.state, len(sequence.buffer)) == (BookState.GAPPED, 1)


def test_the_buffer_is_bounded_by_levels() -> None:
    sequence = Sequence(SequenceRule.BINANCE_SPOT)
    big = [BookEvent(False, LEVEL * BUFFERED_LEVELS_MAX, [], first=i, last=i) for i in (1, 2)]
    assert actions(sequence, *big) == [Action.BUFFER, Action.GAP]
    assert sequence.buffered_levels == BUFFERED_LEVELS_MAX
    huge = BookEvent(False, LEVEL * (BUFFERED_LEVELS_MAX + 1), [], first=3, last=3)
    assert actions(sequence, huge) == [Action.GAP]
    assert (sequence.buffer, sequence.buffered_levels) == ([], 0)


@pytest.mark.parametrize("rule", IN_STREAM)
def test_in_stream_venues_do_not_buffer(rule: SequenceRule) -> None:
    sequence = Sequence(rule)
    assert actions(sequence, delta(None, 5, 4), snapshot(7)) == [Action.DROP, Action.RESET]
    assert sequence.state is BookState.SYNCED


@pytest.mark.parametrize("rule", PREV_LINKED)
def test_linked_venues(rule: SequenceRule) -> None:
    sequence = Sequence(rule)
    assert actions(
        sequence,
        snapshot(10),
        delta(None, 15, 10),
        delta(None, 15, 10),  # again
        delta(None, 15, 15),  # heartbeat
        delta(None, 18, 15),
        delta(None, 25, 20),
        delta(None, 30, 25),
        snapshot(40),
    ) == [
        Action.RESET,
        Action.APPLY,
        Action.DROP,
        Action.APPLY,
        Action.APPLY,
        Action.GAP,
        Action.DROP,
        Action.RESET,
    ]


@pytest.mark.parametrize("rule", PREV_LINKED)
def test_links_are_equal_numbers(rule: SequenceRule) -> None:
    sequence = Sequence(rule)
    again = delta(None, number("90000"), number("70000"))
    assert actions(sequence, snapshot(number("70000")), delta(None, number("90000"), number("70000")), again) == [
        Action.RESET,
        Action.APPLY,
        Action.DROP,
    ]
    heartbeat = delta(None, number("90000"), number("90000"))
    assert actions(sequence, heartbeat) == [Action.APPLY]


def test_okx_maintenance_reset_is_no_gap() -> None:
    sequence = Sequence(SequenceRule.OKX)
    lower = delta(None, 3, 15)
    lower.reset = True
    assert actions(sequence, snapshot(15), lower, delta(None, 5, 3)) == [Action.RESET, Action.APPLY, Action.APPLY]


def test_okx_lower_number_without_link_is_a_gap() -> None:
    assert actions(Sequence(SequenceRule.OKX), snapshot(15), delta(None, 3, 14)) == [Action.RESET, Action.GAP]


def test_okx_without_numbers_relies_on_the_checksum() -> None:
    assert actions(Sequence(SequenceRule.OKX), snapshot(), delta(), delta()) == [
        Action.RESET,
        Action.APPLY,
        Action.APPLY,
    ]
    assert actions(Sequence(SequenceRule.OKX), snapshot(15), delta(), delta(None, 18, 15)) == [
        Action.RESET,
        Action.APPLY,
        Action.APPLY,
    ]


def test_bybit() -> None:
    sequence = Sequence(SequenceRule.BYBIT)
    verdicts = follow(
        sequence,
        snapshot(10),
        delta(None, 11),
        delta(None, 11),
        snapshot(20),
        delta(None, 21),
        snapshot(1, reset=True),
        delta(None, 2),
        delta(None, 4),
    )
    assert [(verdict.action, verdict.reason) for verdict in verdicts] == [
        (Action.RESET, Reason.SNAPSHOT),
        (Action.APPLY, Reason.NONE),
        (Action.DROP, Reason.NONE),
        (Action.RESET, Reason.SNAPSHOT),
        (Action.APPLY, Reason.NONE),
        (Action.RESET, Reason.VENUE_RESET),
        (Action.APPLY, Reason.NONE),
        (Action.GAP, Reason.SEQUENCE_GAP),
    ]


@pytest.mark.parametrize("rule", [SequenceRule.KRAKEN, SequenceRule.COINBASE])
def test_venues_without_numbers_apply_all(rule: SequenceRule) -> None:
    assert not CHAINS[rule].proves_loss
    assert actions(Sequence(rule), snapshot(), delta(), delta(), snapshot()) == [
        Action.RESET,
        Action.APPLY,
        Action.APPLY,
        Action.RESET,
    ]


@pytest.mark.parametrize("rule", [rule for rule in SequenceRule if CHAINS[rule].proves_loss and rule.name != "OKX"])
def test_a_delta_without_its_numbers_never_continues(rule: SequenceRule) -> None:
    assert actions(Sequence(rule), snapshot(10), delta()) == [Action.RESET, Action.GAP]


@pytest.mark.parametrize("state", [BookState.GAPPED, BookState.STALE])
@pytest.mark.parametrize("rule", list(SequenceRule))
def test_what_the_feed_lost_needs_a_snapshot(rule: SequenceRule, state: BookState) -> None:
    sequence = Sequence(rule)
    follow(sequence, snapshot(10))
    sequence.lose(state)
    (early,) = follow(sequence, delta(11, 11, 10))
    assert early.action in (Action.DROP, Action.BUFFER)
    assert sequence.state is state
    follow(sequence, snapshot(10))
    assert sequence.state is BookState.SYNCED


def test_judging_changes_nothing() -> None:
    sequence = Sequence(SequenceRule.BINANCE_SPOT)
    follow(sequence, delta(90, 95))
    before = repr(sequence)
    for event in (snapshot(92), snapshot(50), delta(96, 97), delta(200, 201), delta(90, 95)):
        sequence.judge(event)
    assert repr(sequence) == before
