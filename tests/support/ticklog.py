"""A ticks log in memory, and a reader of market updates that trusts nothing."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from ingest.pipeline import Outputs, Pipeline, TickRecord
from protos.book import Book
from protos.messages import BookState, BookUpdate, Flag, MarketMessage, QuoteUpdate, Reason, StatusUpdate, TradesUpdate
from protos.records import encode_market
from tests.support.captures import ticks_of

START_MS = 1_700_000_000_000
VALUE_BYTES_MAX = 1 << 26
"""A full Coinbase snapshot is some MB."""


def record(offset: int, instrument: str, value: bytes | None, feed: str, **headers: bytes) -> TickRecord:
    """A tick as a feed writes it, a millisecond after the one before."""
    named = {"feed": feed.encode(), "received_ns": b"%d" % ((START_MS + offset) * 1_000_000)}
    return TickRecord(0, offset, START_MS + offset, instrument.encode(), value, {**named, **headers})


def log_of(name: str, count: int | None = None) -> list[TickRecord]:
    """The ticks log of a capture, or its beginning."""
    ticks = ticks_of(name)[:count]
    return [record(i, tick.instrument, tick.value, tick.feed) for i, tick in enumerate(ticks)]


def renumbered(records: Iterable[TickRecord]) -> list[TickRecord]:
    """As one log, after records were added, removed or moved."""
    return [r._replace(offset=i, timestamp_ms=START_MS + i) for i, r in enumerate(records)]


def encoded(outputs: Outputs) -> list[tuple[bytes, bytes]]:
    return [(key, encode_market(update)) for key, update in outputs.market]


def run(pipeline: Pipeline, records: Iterable[TickRecord]) -> list[tuple[bytes, bytes]]:
    """What the market topic gets."""
    return [pair for r in records for pair in encoded(pipeline.process(r))]


@dataclass
class Follower:
    """One instrument as a reader of the market topic sees it. Asserts every chain and every flag on the way."""

    book: Book = field(default_factory=Book)
    state: BookState = BookState.WAITING
    reasons: list[Reason] = field(default_factory=list)  # of every status
    epoch: int = 0
    chains: dict[type, int] = field(default_factory=dict)
    bbo: QuoteUpdate | None = None
    updates: int = 0

    def apply(self, update: MarketMessage) -> None:
        if update.epoch > self.epoch:
            self.epoch, self.chains = update.epoch, {}
        assert update.epoch == self.epoch, "epochs never go back"
        assert update.prev_seq == self.chains.get(type(update), 0)
        assert update.seq > update.prev_seq
        self.chains[type(update)] = update.seq
        if not isinstance(update, StatusUpdate):
            assert (update.scale is not None) == (update.prev_seq == 0)
        self.updates += 1
        if isinstance(update, StatusUpdate):
            self.state = update.state
            self.reasons.append(update.reason)
        elif isinstance(update, QuoteUpdate):
            self.bbo = update
        elif isinstance(update, BookUpdate):
            self._apply_book(update)
        else:
            assert isinstance(update, TradesUpdate)
            assert update.trades

    def _apply_book(self, update: BookUpdate) -> None:
        assert self.state is BookState.SYNCED, "no book update while it is not live"
        assert bool(update.flags & Flag.SNAPSHOT) == (update.prev_seq == 0)
        for levels in (update.bids, update.asks):
            ticks = [level[0] for level in levels]
            assert ticks == sorted(set(ticks))
        for side, levels in ((self.book.bids, update.bids), (self.book.asks, update.asks)):
            assert update.prev_seq == 0 or all(lots or side.get(price, 0) for price, lots in levels), "useless removal"
        self.book.apply(replace(update))
        self.book.check()
        assert bool(update.flags & Flag.CROSSED) == self.book.crossed


class Followers(dict[str, Follower]):
    """By instrument."""

    def __missing__(self, name: str) -> Follower:
        follower = self[name] = Follower()
        return follower

    def apply(self, outputs: Outputs) -> None:
        for key, update in outputs.market:
            self[key.decode()].apply(update)
