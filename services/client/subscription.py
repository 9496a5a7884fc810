"""One subscription: its book, how far it is proven, and what each message of the server does to that.

The rules, for books (`book`, `raw`):

- A snapshot replaces everything, wherever we are.
- A delta applies only if it continues our (epoch, seq). One that we have already is dropped.
- Anything else breaks the chain: never applied; the book stays as it was, GAPPED, until a snapshot.
- A digest holds for exactly one (epoch, seq). If ours differs there, the book is dropped.

A quote or a status is the whole state and trades stand alone, so those are always taken; a hole is reported.
"""

from collections.abc import Iterator

from protos.book import Book
from protos.messages import (
    BookState,
    BookUpdate,
    Channel,
    Digest,
    Flag,
    MarketMessage,
    Notice,
    NoticeCode,
    QuoteUpdate,
    Resume,
    Scale,
    SlowPolicy,
    StatusUpdate,
    Subscribed,
    TradesUpdate,
)
from services.client.events import (
    BrokenChain,
    DigestChecked,
    FrameError,
    Noticed,
    StateChanged,
    StreamEvent,
    StreamState,
    Updated,
)

REPAIRS_MAX = 5
"""Snapshots asked for since the last digest that passed. A server that breaks more chains is broken itself, and asking
on would be a loop at the speed of the network."""

_SNAPSHOT, _CONFLATED, _GAPPED, _STALE = (
    flag.value for flag in (Flag.SNAPSHOT, Flag.CONFLATED, Flag.GAPPED, Flag.STALE)
)
"""Plain integers: an ``&`` with a member of an enum makes a new member, which was two fifths of taking an update."""

_KIND: dict[Channel, type] = {
    Channel.BOOK: BookUpdate,
    Channel.RAW: BookUpdate,
    Channel.TRADES: TradesUpdate,
    Channel.BBO: QuoteUpdate,
    Channel.STATUS: StatusUpdate,
}
_STATE_OF = {
    BookState.WAITING: StreamState.WAITING,
    BookState.GAPPED: StreamState.GAPPED,
    BookState.STALE: StreamState.STALE,
}


class Subscription:
    """State of one stream. Read it while handling an event; `ClientCore` alone changes it.

    Attributes:
        book: For `book` and `raw`, at ``position``; trust it while ``state`` is LIVE. Empty before the first snapshot.
        quote: The last quote, for `bbo`.
        status: The last status, for `status`.
        position: (epoch, seq) up to which the chain is proven; None: nothing, or it broke.
        scale: Decimal exponents of prices and sizes; None until the server says.
        why: What made ``state`` what it is.
        damaged: The book cannot be continued; only subscribing anew gives a snapshot.
    """

    __slots__ = (
        "book",
        "broken",
        "channel",
        "conflated",
        "damaged",
        "depth",
        "digests_failed",
        "digests_passed",
        "duplicates",
        "instrument",
        "interval_ms",
        "position",
        "quote",
        "repairs",
        "scale",
        "slow_policy",
        "state",
        "status",
        "stream",
        "updates",
        "why",
    )

    def __init__(
        self,
        instrument: str,
        channel: Channel,
        depth: int = 0,
        interval_ms: int = 0,
        slow_policy: SlowPolicy = SlowPolicy.CLOSE,
    ) -> None:
        self.instrument = instrument
        self.channel = channel
        self.depth = depth
        self.interval_ms = interval_ms
        self.slow_policy = slow_policy
        self.stream = 0  # the server's id in this connection; 0: not subscribed
        self.state = StreamState.WAITING
        self.why = ""
        self.book = Book()
        self.quote: QuoteUpdate | None = None
        self.status: StatusUpdate | None = None
        self.position: Resume | None = None
        self.scale: Scale | None = None
        self.updates = 0
        self.duplicates = 0
        self.conflated = 0
        self.broken = 0
        self.digests_passed = 0
        self.digests_failed = 0
        self.repairs = 0
        self.damaged = False

    @property
    def key(self) -> tuple[str, Channel, int, int]:
        """What makes it one stream."""
        return self.instrument, self.channel, self.depth, self.interval_ms

    @property
    def has_book(self) -> bool:
        return self.channel in (Channel.BOOK, Channel.RAW)

    @property
    def live(self) -> bool:
        """Continuity is proven and nobody says that the source is silent or late."""
        return self.state is StreamState.LIVE

    def started(self, reply: Subscribed) -> Iterator[StreamEvent]:
        """The server accepted. Resumed: it continues from our position. Else a snapshot comes."""
        self.stream = reply.stream
        if reply.scale is not None:
            self._learn(reply.scale)
        self.damaged = False
        if reply.state is not BookState.SYNCED:
            yield from self._become(_STATE_OF[reply.state], "so says the server")
        elif reply.resumed:
            yield from self._become(StreamState.STALE, "resuming")
        if not reply.resumed and self.has_book:
            self.position = None

    def disconnected(self) -> Iterator[StreamEvent]:
        """What we have stays right at its position, and is no longer now."""
        self.stream = 0
        self.repairs = 0
        if self.state is StreamState.LIVE:
            yield from self._become(StreamState.STALE, "connection lost")

    def receive(self, message: MarketMessage) -> Iterator[StreamEvent]:
        """An update of this stream.

        Raises:
            FrameError: It is not of the stream's channel, has no scale, or breaks the chain too often.
        """
        if type(message) is not _KIND[self.channel]:
            raise FrameError(f"{type(message).__name__} on a stream of channel {self.channel.name.lower()}")
        if not isinstance(message, StatusUpdate) and message.scale is not None:
            self._learn(message.scale)
        if isinstance(message, BookUpdate):
            yield from self._book(message)
        else:
            yield from self._other(message)

    def _learn(self, scale: Scale) -> None:
        if not (-18 <= scale.price_exponent <= 18 and -18 <= scale.size_exponent <= 18):
            raise FrameError(f"scale {scale} is out of range")
        self.scale = scale

    def _book(self, update: BookUpdate) -> Iterator[StreamEvent]:
        have = self.position
        snapshot = bool(update.flags & _SNAPSHOT)
        if not snapshot:
            if have is not None and update.epoch == have.epoch and update.seq <= have.seq:
                self.duplicates += 1
                return
            if have is None or (update.epoch, update.prev_seq) != (have.epoch, have.seq):
                yield from self._break(update)
                return
        elif self.scale is None and (update.bids or update.asks):
            raise FrameError("snapshot without a scale")
        self.book.apply(update)
        changed = self._advance(update, proven=snapshot)
        yield Updated(self, update)
        yield from changed

    def _break(self, update: BookUpdate) -> Iterator[StreamEvent]:
        have = self.position
        self.broken += 1
        changed = self._damage(f"update {update.seq} does not continue the book")
        yield BrokenChain(self, have, update)
        yield from changed

    def _damage(self, why: str) -> list[StreamEvent]:
        self.position = None
        self.damaged = True
        self.repairs += 1
        changed = self._become(StreamState.GAPPED, why)
        if self.repairs > REPAIRS_MAX:
            raise FrameError(f"{self.instrument}: {why}, for the {self.repairs}th time")
        return changed

    def _other(self, update: TradesUpdate | QuoteUpdate | StatusUpdate) -> Iterator[StreamEvent]:
        have = self.position
        snapshot = bool(update.flags & _SNAPSHOT)
        if have is not None and not snapshot and update.epoch == have.epoch and update.seq <= have.seq:
            self.duplicates += 1
            return
        hole = self._hole(update)
        if isinstance(update, QuoteUpdate):
            self.quote = update
        elif isinstance(update, StatusUpdate):
            self.status = update
        changed = self._advance(update, proven=True)
        if hole:
            self.broken += 1
            yield BrokenChain(self, have, update)
        yield Updated(self, update)
        yield from changed

    def _hole(self, update: TradesUpdate | QuoteUpdate | StatusUpdate) -> bool:
        """Whether something is missing before it that nobody announced."""
        have = self.position
        if have is None:
            return False
        if isinstance(update, TradesUpdate) and update.flags & _SNAPSHOT:
            return (update.epoch, update.seq) != (have.epoch, have.seq)
        if update.flags & (_SNAPSHOT | _CONFLATED):
            return False
        return update.prev_seq != (have.seq if update.epoch == have.epoch else 0)

    def _advance(self, update: MarketMessage, proven: bool) -> list[StreamEvent]:
        """Move to the update's position and to the state that its flags say; only what is proven ends a gap."""
        self.position = Resume(update.epoch, update.seq)
        self.updates += 1
        if update.flags & _CONFLATED:
            self.conflated += 1
        if update.flags & _GAPPED:
            return self._become(StreamState.GAPPED, "the book lost continuity")
        if update.flags & _STALE:
            return self._become(StreamState.STALE, "the source is silent or late")
        if proven or self.state is not StreamState.GAPPED:
            return self._become(StreamState.LIVE, "")
        return []

    def digest(self, digest: Digest) -> Iterator[StreamEvent]:
        """Check the book if it is at exactly the digest's position; at any other the digest says nothing."""
        if not self.has_book or self.position != Resume(digest.epoch, digest.seq):
            return
        if self.book.digest(self.depth) == digest.crc32:
            self.digests_passed += 1
            self.repairs = 0
            yield DigestChecked(self, digest.seq, True)
            return
        self.digests_failed += 1
        self.book = Book()
        changed = self._damage(f"digest of {digest.seq} differs")
        yield DigestChecked(self, digest.seq, False)
        yield from changed

    def notice(self, notice: Notice) -> Iterator[StreamEvent]:
        """The server announces: the state follows it, a skipped stretch of trades is accounted for."""
        changed: list[StreamEvent] = []
        if notice.code is NoticeCode.SKIPPED and self.channel is Channel.TRADES:
            self.position = Resume(notice.epoch, notice.to_seq)
        elif notice.code is NoticeCode.GAP:
            changed = self._become(StreamState.GAPPED, notice.reason.name.lower().replace("_", " "))
        elif notice.code is NoticeCode.STALE and self.state is StreamState.LIVE:
            changed = self._become(StreamState.STALE, "the source is silent or late")
        elif notice.code is NoticeCode.RECOVERED and self.state is StreamState.STALE and self.position is not None:
            changed = self._become(StreamState.LIVE, "")
        yield Noticed(self, notice)
        yield from changed

    def _become(self, state: StreamState, why: str) -> list[StreamEvent]:
        """Takes effect at once, so that whoever handles any event of the message sees the state after it."""
        if state is self.state:
            return []
        self.state, self.why = state, why
        return [StateChanged(self, state, why)]
