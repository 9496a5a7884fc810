"""A market that makes valid records and remembers every book it had, and a client that checks all it receives."""

import random
from collections.abc import Callable

import pytest

from protos.book import Book
from protos.codec import CODECS, Codec
from protos.messages import (
    BookState,
    BookUpdate,
    Channel,
    Digest,
    Flag,
    Levels,
    MarketMessage,
    Notice,
    NoticeCode,
    QuoteUpdate,
    Reason,
    Scale,
    StatusUpdate,
    Subscribed,
    Trade,
    TradesUpdate,
    Unsubscribed,
)
from tests.support.world import World

SCALE = Scale(-2, -3)
Position = tuple[int, int]


class Maker:
    """What ingest would publish for one instrument. Sequences ascend, with holes as Kafka offsets have."""

    def __init__(self, name: str, seed: int = 0) -> None:
        self.name = name
        self.rng = random.Random(seed)
        self.book = Book()
        self.epoch = 1_000
        self.seq = 10
        self.chains = dict.fromkeys(Channel, 0)
        self.books: dict[Position, tuple[Levels, Levels]] = {}
        self.trades: list[tuple[Position, int]] = []  # position, prev_seq: in the order published
        self.quotes: dict[Position, tuple[int, int, int, int]] = {}

    def _next(self, channel: Channel) -> tuple[int, int]:
        self.seq += self.rng.randint(1, 3)
        prev_seq, self.chains[channel] = self.chains[channel], self.seq
        return self.seq, prev_seq

    def snapshot(self, levels: int = 8, *, new_epoch: bool = True) -> BookUpdate:
        if new_epoch:
            self.epoch += 1
            self.chains = dict.fromkeys(Channel, 0)
        seq, _ = self._next(Channel.BOOK)
        mid = self.rng.randint(90, 110)
        bids = sorted((p, self.rng.randint(1, 9)) for p in self.rng.sample(range(mid - 20, mid), levels))
        asks = sorted((p, self.rng.randint(1, 9)) for p in self.rng.sample(range(mid, mid + 20), levels))
        update = BookUpdate(epoch=self.epoch, seq=seq, flags=Flag.SNAPSHOT, bids=bids, asks=asks, scale=SCALE)
        return self._remember(update)

    def delta(self, touched: int = 4) -> BookUpdate:
        seq, prev_seq = self._next(Channel.BOOK)
        sides: tuple[dict[int, int], dict[int, int]] = ({}, {})
        for _ in range(touched):
            side = self.rng.randint(0, 1)
            price = self.rng.randint(70, 102) if side == 0 else self.rng.randint(98, 130)
            sides[side][price] = self.rng.choice((0, 0, 1, 2, 3))
        return self._remember(
            BookUpdate(
                epoch=self.epoch,
                seq=seq,
                prev_seq=prev_seq,
                bids=sorted(sides[0].items()),
                asks=sorted(sides[1].items()),
            )
        )

    def _remember(self, update: BookUpdate) -> BookUpdate:
        self.book.apply(update)
        self.books[update.epoch, update.seq] = (self.book.bids.levels(), self.book.asks.levels())
        return update

    def trade(self, count: int = 1) -> TradesUpdate:
        seq, prev_seq = self._next(Channel.TRADES)
        self.trades.append(((self.epoch, seq), prev_seq))
        trades = [Trade(100, 1 + i, trade_id=f"{self.epoch}.{seq}.{i}") for i in range(count)]
        return TradesUpdate(
            epoch=self.epoch, seq=seq, prev_seq=prev_seq, trades=trades, scale=None if prev_seq else SCALE
        )

    def quote(self) -> QuoteUpdate:
        seq, prev_seq = self._next(Channel.BBO)
        values = (99, self.rng.randint(1, 9), 101, self.rng.randint(1, 9))
        self.quotes[self.epoch, seq] = values
        return QuoteUpdate(0, self.epoch, seq, prev_seq, 0, 0, 0, 0, *values, scale=None if prev_seq else SCALE)

    def status(self, state: BookState, reason: Reason = Reason.NONE) -> StatusUpdate:
        seq, prev_seq = self._next(Channel.STATUS)
        return StatusUpdate(epoch=self.epoch, seq=seq, prev_seq=prev_seq, state=state, reason=reason)


Key = tuple[str, int, int, int]


def key_of(subscribed: Subscribed) -> Key:
    return subscribed.instrument, subscribed.channel, subscribed.depth, subscribed.interval_ms


class Subscription:
    """What a client knows of one stream."""

    def __init__(self, subscribed: Subscribed) -> None:
        self.is_ = subscribed
        self.position: Position | None = None
        self.book = Book()
        self.quote: QuoteUpdate | None = None
        self.joined: Position | None = None
        self.trade_positions: set[Position] = set()
        self.skipped: list[tuple[Position, Position]] = []
        self.live = True
        self.updates = 0


class Client:
    """Applies every message, and fails on the first that breaks a promise."""

    def __init__(self, codec: Codec, makers: dict[str, Maker]) -> None:
        self.codec = codec
        self.makers = makers
        self.streams: dict[int, Subscription] = {}
        self.before: dict[Key, Subscription] = {}  # of the connection before this one
        self.notices: list[Notice] = []
        self.digests = 0
        self.conflated = 0
        self.received: list[object] = []

    def reconnected(self) -> None:
        self.before = {key_of(subscription.is_): subscription for subscription in self.streams.values()}
        self.streams = {}

    def feed(self, frame: bytes) -> None:
        for message in self.codec.decode(frame):
            self.received.append(message)
            if isinstance(message, Subscribed):
                known = self.streams.get(message.stream) or self.before.get(key_of(message))
                self.streams[message.stream] = known if known and message.resumed else Subscription(message)
            elif isinstance(message, Unsubscribed):
                del self.streams[message.stream]
            elif isinstance(message, Notice):
                self._on_notice(message)
            elif isinstance(message, Digest):
                self._on_digest(message)
            elif isinstance(message, BookUpdate | QuoteUpdate | TradesUpdate | StatusUpdate):
                self._on_update(message)

    def _on_notice(self, notice: Notice) -> None:
        self.notices.append(notice)
        if notice.stream == 0:
            return
        subscription = self.streams[notice.stream]
        if notice.code is NoticeCode.SKIPPED:
            position = subscription.position
            assert position is None or notice.from_seq in (0, position[1]) or notice.epoch > position[0]
            continues = position is None or position[0] == notice.epoch
            start = (notice.epoch, notice.from_seq) if continues else position  # what was left of the epoch before too
            subscription.position = (notice.epoch, notice.to_seq)
            subscription.skipped.append((start, subscription.position))
        else:
            subscription.live = notice.code is NoticeCode.RECOVERED

    def _on_digest(self, digest: Digest) -> None:
        subscription = self.streams[digest.stream]
        assert subscription.position == (digest.epoch, digest.seq)
        assert digest.crc32 == subscription.book.digest()
        self.digests += 1

    def _on_update(self, update: MarketMessage) -> None:
        subscription = self.streams[update.stream]
        subscription.updates += 1
        self.conflated += bool(update.flags & Flag.CONFLATED)
        subscription.live = not update.flags & (Flag.GAPPED | Flag.STALE)
        if update.flags & Flag.SNAPSHOT:
            assert update.prev_seq == 0
        elif isinstance(update, BookUpdate):
            assert subscription.position == (update.epoch, update.prev_seq), "the chain broke without a flag"
        else:
            position = subscription.position
            starts = update.prev_seq == 0 and (position is None or update.epoch > position[0])
            assert starts or position == (update.epoch, update.prev_seq), "the chain broke without a flag"
        subscription.position = (update.epoch, update.seq)
        subscription.joined = subscription.joined or subscription.position
        if isinstance(update, BookUpdate):
            subscription.book.apply(update)
            subscription.book.check()
            self._check_book(subscription, subscription.position)
        elif isinstance(update, QuoteUpdate):
            subscription.quote = update
            self._check_quote(subscription, update)
        elif isinstance(update, TradesUpdate):
            for trade in update.trades:
                epoch, seq, _ = trade.trade_id.split(".")
                subscription.trade_positions.add((int(epoch), int(seq)))

    def _check_book(self, subscription: Subscription, position: Position) -> None:
        """The design's promise: at every message, depth N is the top N of the full book at that seq."""
        bids, asks = self.makers[subscription.is_.instrument].books[position]
        depth = subscription.is_.depth
        assert subscription.book.bids.levels() == (bids[-depth:] if depth else bids)
        assert subscription.book.asks.levels() == (asks[:depth] if depth else asks)

    def _check_quote(self, subscription: Subscription, quote: QuoteUpdate) -> None:
        maker = self.makers[subscription.is_.instrument]
        have = (quote.bid_ticks, quote.bid_lots, quote.ask_ticks, quote.ask_lots)
        if quote.flags & Flag.DERIVED:
            bids, asks = maker.books[quote.epoch, quote.seq]
            assert have == ((bids[-1] if bids else (0, 0)) + (asks[0] if asks else (0, 0)))
        else:
            assert have == maker.quotes[quote.epoch, quote.seq]

    def check_trades(self, subscription: Subscription) -> None:
        """Every trade since the client joined came, or was named by a SKIPPED notice."""
        for (epoch, seq), _ in self.makers[subscription.is_.instrument].trades:
            joined = subscription.joined
            if joined is not None and (epoch, seq) > joined and (epoch, seq) not in subscription.trade_positions:
                announced = any(start < (epoch, seq) <= end for start, end in subscription.skipped)
                assert announced, f"silently lost {epoch}.{seq}"


@pytest.fixture(scope="session")
def maker() -> Callable[..., Maker]:
    return Maker


@pytest.fixture(scope="session")
def client() -> Callable[..., Client]:
    return Client


@pytest.fixture(scope="session")
def codec() -> Codec:
    return CODECS["depthcast.v1.proto"]


@pytest.fixture
def world(maker: Callable[..., Maker], codec: Codec) -> World:
    return World(maker, codec)
