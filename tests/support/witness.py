"""What a client sees, remembered."""

import time
from collections import Counter, defaultdict
from typing import NamedTuple

from protos.book import Book
from protos.messages import Channel, Flag, MarketMessage, Notice, NoticeCode
from services.client.events import (
    BrokenChain,
    DigestChecked,
    Disconnected,
    Event,
    Noticed,
    Refused,
    Started,
    StateChanged,
    StreamState,
    Updated,
)
from services.client.subscription import Subscription


class View(NamedTuple):
    """A client's book right after a message."""

    instrument: str
    depth: int
    interval_ms: int
    epoch: int
    seq: int
    flags: int
    top: int  # hash of its levels


class Witness:
    """Takes the events of one client.

    Attributes:
        views: Of books, after each message.
        positions: Of everything, by channel and instrument, in the order received.
        faults: What must not happen without a fault: broken chains, gaps, failed digests, refusals.
        jumps: What must never happen: those of ``faults`` that the server did not announce.
        latencies: When each update came (monotonic clock), and seconds since the feed had it.
        resumed: Of each subscription that was accepted: its instrument, and whether it continued.
        started: When that was, on the monotonic clock.
        lost: Of each connection that ended, and of each vain attempt: when, why, milliseconds until the next attempt.
        retry_after_ms: Of the server's SHUTDOWN notices.
    """

    def __init__(self) -> None:
        self.subscriptions: list[Subscription] = []
        self.views: list[View] = []
        self.positions: defaultdict[tuple[Channel, str], list[tuple[int, int]]] = defaultdict(list)
        self.faults: list[str] = []
        self.jumps: list[str] = []
        self.latencies: list[tuple[float, float]] = []
        self.resumed: list[tuple[str, bool]] = []
        self.started: list[float] = []
        self.lost: list[tuple[float, str, int]] = []
        self.retry_after_ms: list[int] = []
        self.digests = 0
        self.notices: Counter[NoticeCode] = Counter()

    def see(self, event: Event) -> None:
        """The next event."""
        if isinstance(event, Updated):
            self._updated(event.subscription, event.message)
        elif isinstance(event, Started):
            self.resumed.append((event.subscription.instrument, event.resumed))
            self.started.append(time.monotonic())
        elif isinstance(event, Disconnected):
            self.lost.append((time.monotonic(), event.why, event.delay_ms))
        elif isinstance(event, DigestChecked):
            self.digests += 1
            if not event.passed:
                self.jumps.append(f"digest of {event.subscription.key} at {event.seq} failed")
                self.faults.append(self.jumps[-1])
        elif isinstance(event, Noticed):
            self._noticed(event.notice)
        elif isinstance(event, BrokenChain | Refused) or (
            isinstance(event, StateChanged) and event.state is StreamState.GAPPED
        ):
            self.faults.append(str(event))
            if isinstance(event, BrokenChain):
                self.jumps.append(str(event))

    def _updated(self, subscription: Subscription, message: MarketMessage) -> None:
        if not message.flags & (Flag.SNAPSHOT | Flag.CONFLATED):  # those tell of older things
            self.latencies.append((time.monotonic(), (time.time_ns() - message.ts_received_ns) / 1e9))
        self.positions[subscription.channel, subscription.instrument].append((message.epoch, message.seq))
        if subscription.channel is Channel.BOOK:
            self.views.append(
                View(
                    subscription.instrument,
                    subscription.depth,
                    subscription.interval_ms,
                    message.epoch,
                    message.seq,
                    message.flags,
                    top_of(subscription.book, subscription.depth),
                )
            )

    def _noticed(self, notice: Notice) -> None:
        self.notices[notice.code] += 1
        if notice.code is NoticeCode.GAP:
            self.faults.append(str(notice))
        elif notice.code is NoticeCode.SHUTDOWN:
            self.retry_after_ms.append(notice.retry_after_ms)


def top_of(book: Book, depth: int) -> int:
    """A hash, the same in every process."""
    bids, asks = book.top(depth)
    return hash((tuple(bids), tuple(asks)))
