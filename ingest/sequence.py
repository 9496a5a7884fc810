"""How each venue's book messages chain: a table, and the state machine of one instrument that reads it.

States and what moves between them (`protos.messages.BookState`, with a `Reason`)::

    WAITING --snapshot--> SYNCED --broken chain, wrong book, feed gap--> GAPPED --snapshot--> SYNCED
       any --the feed lost the venue--> STALE --snapshot--> SYNCED

Venues are of two kinds. Those with ``buffers`` (Binance) give the snapshot on request, beside the stream: deltas that
come before it are kept and merged into it, and a snapshot too old for them is dropped without losing them. All others
send the snapshot in the stream: deltas before it are of no use.

Sources: Binance "How to manage a local order book correctly" (spot; USD-M), OKX v5 "Order book channel / Sequence ID",
Bybit v5 "Orderbook", Deribit ``book.{instrument_name}.raw``, Kraken "Book", Coinbase Advanced Trade "level2".
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from ingest.events import BookEvent, SequenceRule
from protos.messages import BookState, Reason

BUFFERED_LEVELS_MAX = 15_000
"""Levels in buffered deltas: 40 s of BTCUSDT spot. With the largest book they still fit one snapshots record."""

BUFFERED_DELTAS_MAX = 2_000
"""Deltas without levels take memory too."""

Test = Callable[[BookEvent, int | None], bool]
"""A question about a delta and the venue sequence that the book is at."""


class Chain(NamedTuple):
    """One row of the table."""

    follows: Test  # the delta continues the one applied before
    joins: Test  # the delta continues the snapshot
    old: Test  # the book already has all of the delta
    buffers: bool = False  # the snapshot comes beside the stream, so deltas wait for it
    proves_loss: bool = True  # a missing delta shows in the next one


def _covers_next(event: BookEvent, last: int | None) -> bool:
    """Binance spot: ``U <= last + 1 <= u``."""
    return None not in (event.first, event.last, last) and event.first <= last + 1 <= event.last  # type: ignore[operator]


def _spans(event: BookEvent, last: int | None) -> bool:
    """Binance futures: ``U <= last <= u``; and ``pu == last``, when the one that ended in ``last`` came before it."""
    spans = None not in (event.first, event.last, last) and event.first <= last <= event.last  # type: ignore[operator]
    return spans or _linked(event, last)


def _consecutive(event: BookEvent, last: int | None) -> bool:
    return last is not None and (event.last if event.first is None else event.first) == last + 1


def _linked(event: BookEvent, last: int | None) -> bool:
    return last is not None and event.prev == last


def _linked_if_numbered(event: BookEvent, last: int | None) -> bool:
    """OKX: messages of before 2022 have no seqId; their continuity shows in the checksum alone."""
    return event.prev is None or last is None or event.prev == last


def _not_above(event: BookEvent, last: int | None) -> bool:
    return event.last is not None and last is not None and event.last <= last


def _repeated(event: BookEvent, last: int | None) -> bool:
    """The same message again. A heartbeat repeats its own number too, but links to it."""
    return event.last is not None and event.last == last and event.prev != last


def _always(_event: BookEvent, _last: int | None) -> bool:
    return True


def _never(_event: BookEvent, _last: int | None) -> bool:
    return False


CHAINS: dict[SequenceRule, Chain] = {
    SequenceRule.BINANCE_SPOT: Chain(_consecutive, _covers_next, _not_above, buffers=True),
    SequenceRule.BINANCE_FUTURES: Chain(_linked, _spans, _not_above, buffers=True),
    SequenceRule.KRAKEN: Chain(_always, _always, _never, proves_loss=False),
    SequenceRule.OKX: Chain(_linked_if_numbered, _linked_if_numbered, _repeated),
    SequenceRule.BYBIT: Chain(_consecutive, _consecutive, _repeated),
    SequenceRule.COINBASE: Chain(_always, _always, _never, proves_loss=False),
    SequenceRule.DERIBIT: Chain(_linked, _linked, _repeated),
    SequenceRule.CANONICAL: Chain(_linked, _linked, _repeated),
}


class Action(Enum):
    """What to do with a book event."""

    APPLY = "apply"  # the next delta
    DROP = "drop"  # the book has it already, or it is of no use
    BUFFER = "buffer"  # keep it until the snapshot
    GAP = "gap"  # continuity is lost
    RESET = "reset"  # replaces the book


class Verdict(NamedTuple):
    action: Action
    reason: Reason = Reason.NONE
    merged: tuple[BookEvent, ...] = ()  # RESET: buffered deltas that continue the snapshot, in order


_APPLY, _DROP, _BUFFER = Verdict(Action.APPLY), Verdict(Action.DROP), Verdict(Action.BUFFER)


@dataclass(slots=True)
class Sequence:
    """Where one instrument stands in its venue's sequence. `judge` decides and changes nothing; `commit` follows."""

    rule: SequenceRule
    state: BookState = BookState.WAITING
    last: int | None = None  # venue sequence of the book
    joined: bool = False  # a delta has continued the snapshot
    buffer: list[BookEvent] = field(default_factory=list)
    buffered_levels: int = 0

    def judge(self, event: BookEvent) -> Verdict:
        """What ``event`` means here and now."""
        chain = CHAINS[self.rule]
        if event.snapshot:
            return self._judge_snapshot(event, chain)
        if self.state is not BookState.SYNCED:
            return self._judge_early(event, chain)
        if chain.old(event, self.last):
            return _DROP
        continues = chain.follows if self.joined else chain.joins
        if continues(event, self.last):
            return _APPLY
        return Verdict(Action.GAP, Reason.SEQUENCE_GAP)

    def _judge_snapshot(self, event: BookEvent, chain: Chain) -> Verdict:
        if not chain.buffers:
            return Verdict(Action.RESET, Reason.VENUE_RESET if event.reset else Reason.SNAPSHOT)
        if self.state is BookState.SYNCED and _not_above(event, self.last):
            return _DROP
        kept = tuple(delta for delta in self.buffer if not chain.old(delta, event.last))
        if kept and not chain.joins(kept[0], event.last):
            return _DROP
        return Verdict(Action.RESET, Reason.SNAPSHOT, kept)

    def _judge_early(self, event: BookEvent, chain: Chain) -> Verdict:
        if not chain.buffers or (self.buffer and chain.old(event, self.buffer[-1].last)):
            return _DROP
        if self.buffered_levels + _size(event) > BUFFERED_LEVELS_MAX or len(self.buffer) >= BUFFERED_DELTAS_MAX:
            return Verdict(Action.GAP, Reason.BUFFER_OVERFLOW)
        return _BUFFER

    def commit(self, event: BookEvent, verdict: Verdict) -> None:
        """Move on as `judge` said."""
        if verdict.action is Action.APPLY:
            self.last, self.joined = event.last, True
        elif verdict.action is Action.RESET:
            self.state = BookState.SYNCED
            self.last, self.joined = (verdict.merged or (event,))[-1].last, bool(verdict.merged)
            self._forget()
        elif verdict.action is Action.BUFFER:
            self.keep(event)
        elif verdict.action is Action.GAP:
            self.lose(BookState.GAPPED)
            if CHAINS[self.rule].buffers and _size(event) <= BUFFERED_LEVELS_MAX:
                self.keep(event)

    def lose(self, state: BookState) -> None:
        """Continuity is lost (GAPPED), or the venue is (STALE): what was buffered has no successor."""
        self.state = state
        self.last, self.joined = None, False
        self._forget()

    def keep(self, event: BookEvent) -> None:
        """Buffer a delta. A hole before it makes all earlier ones useless: they cannot continue a snapshot."""
        if self.buffer and not CHAINS[self.rule].follows(event, self.buffer[-1].last):
            self._forget()
        self.buffer.append(event)
        self.buffered_levels += _size(event)

    def _forget(self) -> None:
        self.buffer.clear()
        self.buffered_levels = 0


def _size(event: BookEvent) -> int:
    return len(event.bids) + len(event.asks)
