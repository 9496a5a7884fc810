"""What the market topic says about one instrument, each update checked against the chain of its channel."""

from collections import deque
from enum import Enum

from protos import ring
from protos.book import Book, prices_of
from protos.delta import advance
from protos.messages import BookState, BookUpdate, Flag, QuoteUpdate, Reason, Scale, StatusUpdate, Trade, TradesUpdate
from protos.ring import Ring
from streamer.limits import Limits

_SNAPSHOT = Flag.SNAPSHOT.value
"""A plain integer, as in `protos.book`."""


class Link(Enum):
    """How an update stands to the chain read so far."""

    NEXT = "next"  # prev_seq is our seq
    START = "start"  # begins the chain of a new epoch, or begins it again
    BROKEN = "broken"  # something between is missing
    DUPLICATE = "duplicate"  # read before: ingest replayed, or the topics overlap
    OLD_EPOCH = "old-epoch"  # of an epoch that is over


NEXT, START, BROKEN, DUPLICATE, OLD_EPOCH = Link  # found once: to find a member takes as long as to compare three


class Chain:
    """Position of one channel. Epoch 0: nothing read yet."""

    __slots__ = ("epoch", "seq")

    def __init__(self) -> None:
        self.epoch = 0
        self.seq = 0

    def link(self, epoch: int, seq: int, prev_seq: int) -> Link:
        if epoch < self.epoch:
            return OLD_EPOCH
        if epoch == self.epoch:
            if seq <= self.seq:
                return DUPLICATE
            if prev_seq == self.seq:
                return NEXT
        return START if prev_seq == 0 else BROKEN

    def move(self, epoch: int, seq: int) -> None:
        self.epoch = epoch
        self.seq = seq


class Market:
    """One instrument: its book, quote, last trades and status, and how far each can be trusted."""

    __slots__ = (
        "_trades_kept",
        "book",
        "gapped",
        "limits",
        "name",
        "quote",
        "quotes",
        "reason",
        "ring",
        "scale",
        "stale",
        "status",
        "statuses",
        "tape",
        "trades",
        "ts_event_ns",
        "ts_received_ns",
        "venue_depth",
    )

    def __init__(self, name: str, limits: Limits) -> None:
        self.name = name
        self.limits = limits
        self.book = Book()  # epoch 0: none yet
        self.ring: Ring = ring.new_ring(limits.since_updates_max, limits.since_prices_max)
        self.trades = Chain()
        self.quotes = Chain()
        self.statuses = Chain()
        self.quote: QuoteUpdate | None = None  # the venue's last
        self.status = StatusUpdate()  # epoch 0: none yet
        self.tape: deque[TradesUpdate] = deque()
        self._trades_kept = 0
        self.scale: Scale | None = None
        self.gapped = False
        self.stale = False
        self.reason = Reason.NONE  # of the last change of gapped or stale
        self.ts_event_ns = 0  # of the last book update
        self.ts_received_ns = 0
        self.venue_depth = 0

    @property
    def state(self) -> BookState:
        """GAPPED before STALE: a book that lost its chain is wrong, a stale one only old."""
        if self.book.epoch == 0:
            return BookState.WAITING
        if self.gapped:
            return BookState.GAPPED
        return BookState.STALE if self.stale else BookState.SYNCED

    def link_book(self, update: BookUpdate) -> Link:
        """Only a snapshot starts a chain, and only a snapshot ends a gap."""
        book = self.book
        if update.epoch < book.epoch:
            return OLD_EPOCH
        if update.epoch == book.epoch and update.seq <= book.seq:
            return DUPLICATE
        if update.flags & _SNAPSHOT:
            return START
        if update.epoch == book.epoch and update.prev_seq == book.seq and not self.gapped:
            return NEXT
        return BROKEN

    def apply_book(self, update: BookUpdate) -> None:
        """Apply an update whose link is NEXT or START."""
        self.book.apply(update)
        self.ts_event_ns = update.ts_event_ns
        self.ts_received_ns = update.ts_received_ns
        if update.flags & _SNAPSHOT:
            self.ring.reset(update.epoch, update.seq)
            self.venue_depth = update.venue_depth
        else:
            self.ring.add(update.seq, prices_of(update.bids), prices_of(update.asks))
        self.learn(update.scale)

    def advance(self, record: bytes, prices: list[list[int]] | None) -> int:
        """Apply a record of the market topic, if it is a delta that continues the book.

        Args:
            prices: As of `protos.delta.advance`.

        Returns:
            Its flags; -1: it is something else, and nothing has happened.
        """
        advanced = None if self.gapped else advance(record, self.book, self.ring, prices)
        if advanced is None:
            return -1
        _, flags, self.ts_event_ns, self.ts_received_ns = advanced
        return flags

    def learn(self, scale: Scale | None) -> None:
        if scale is not None:
            self.scale = scale

    def keep_trades(self, update: TradesUpdate) -> None:
        """Add to the tape, after it was published; the oldest updates leave when it holds too many trades."""
        update.scale = self.scale
        self.tape.append(update)
        self._trades_kept += len(update.trades)
        while self._trades_kept > self.limits.trades_kept and len(self.tape) > 1:
            self._trades_kept -= len(self.tape.popleft().trades)

    def forget_trades(self) -> None:
        """Trades are missing: what is on the tape cannot continue."""
        self.tape.clear()
        self._trades_kept = 0

    def last_trades(self, trades_max: int) -> list[Trade]:
        """The last trades, oldest first, as far as they are counted in the scale of now."""
        last: list[Trade] = []
        for update in reversed(self.tape):
            if update.scale != self.scale or len(last) >= trades_max:
                break
            last.extend(reversed(update.trades[-(trades_max - len(last)) :]))
        last.reverse()
        return last
