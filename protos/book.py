"""The order book: what a snapshot and its deltas add up to. The same class serves ingest, streamer and clients."""

from bisect import bisect_left, insort
from collections.abc import Iterable
from zlib import crc32

from protos.messages import BookUpdate, Flag, Levels, Scale

DIGEST_DEPTH = 25
_SNAPSHOT = Flag.SNAPSHOT.value
"""A plain integer: `&` with a member makes a new member of the enum, for every update."""


class InvariantError(Exception):
    """The book is not a book: our fault, never the venue's."""


def prices_of(levels: Levels) -> list[int]:
    return [price for price, _ in levels]


class BookSide:
    """One side: prices ascending in a list, lots by price. Inserting into a list of thousands beats a tree."""

    __slots__ = ("lots", "prices")

    def __init__(self) -> None:
        self.prices: list[int] = []
        self.lots: dict[int, int] = {}

    def replace(self, levels: Iterable[tuple[int, int]]) -> None:
        """Forget all, then hold ``levels`` (any order; the last of equal prices wins; 0 lots are no level)."""
        lots = dict(levels)
        self.lots = {price: size for price, size in lots.items() if size}
        self.prices = sorted(self.lots)

    def apply(self, levels: Iterable[tuple[int, int]]) -> None:
        """Set each price to its absolute size; 0 lots remove it, and removing what is not there is no error."""
        lots, prices = self.lots, self.prices
        for price, size in levels:
            if size:
                if price not in lots:
                    insort(prices, price)
                lots[price] = size
            elif lots.pop(price, 0):
                del prices[bisect_left(prices, price)]

    def levels(self) -> Levels:
        """All levels, prices ascending."""
        lots = self.lots
        return [(price, lots[price]) for price in self.prices]

    def __len__(self) -> int:
        return len(self.prices)


class Book:
    """Both sides in ticks and lots, with the position (epoch, seq) they hold for."""

    __slots__ = ("asks", "bids", "epoch", "scale", "seq")

    def __init__(self) -> None:
        self.bids = BookSide()
        self.asks = BookSide()
        self.epoch = 0
        self.seq = 0
        self.scale: Scale | None = None

    def apply(self, update: BookUpdate) -> None:
        """Apply a snapshot (replaces) or a delta (absolute sizes). The caller has checked the chain."""
        if update.flags & _SNAPSHOT:
            self.bids.replace(update.bids)
            self.asks.replace(update.asks)
        else:
            self.bids.apply(update.bids)
            self.asks.apply(update.asks)
        if update.scale is not None:
            self.scale = update.scale
        self.epoch = update.epoch
        self.seq = update.seq

    def cut(self, depth: int) -> None:
        """Keep the best ``depth`` levels of each side, as venues do that send only the subscribed depth."""
        for prices, lots, worst in (
            (self.bids.prices, self.bids.lots, slice(None, -depth)),
            (self.asks.prices, self.asks.lots, slice(depth, None)),
        ):
            if len(prices) > depth:
                for price in prices[worst]:
                    del lots[price]
                del prices[worst]

    def top(self, depth: int) -> tuple[Levels, Levels]:
        """The best ``depth`` levels of each side (0: all), best first: bids descend, asks ascend."""
        bids, asks = self.bids, self.asks
        bid_prices = bids.prices[-depth:] if depth else bids.prices
        ask_prices = asks.prices[:depth] if depth else asks.prices
        bid_lots, ask_lots = bids.lots, asks.lots
        return [(p, bid_lots[p]) for p in reversed(bid_prices)], [(p, ask_lots[p]) for p in ask_prices]

    @property
    def crossed(self) -> bool:
        """Best bid at or above best ask. Venues send such books in auctions; it is flagged, not repaired."""
        bids, asks = self.bids.prices, self.asks.prices
        return bool(bids and asks and bids[-1] >= asks[0])

    def digest(self, depth: int = DIGEST_DEPTH) -> int:
        """CRC-32 of the top levels as ASCII integers, see `digest_of`. ``depth`` bounds what a tier can see."""
        bids, asks = self.top(min(depth, DIGEST_DEPTH) or DIGEST_DEPTH)
        return digest_of(bids, asks)

    def check(self) -> None:
        """Raise `InvariantError` unless prices ascend strictly and match the sizes, all positive."""
        for name, side in (("bids", self.bids), ("asks", self.asks)):
            if any(a >= b for a, b in zip(side.prices, side.prices[1:], strict=False)):
                raise InvariantError(f"{name}: prices do not ascend")
            if len(side.prices) != len(side.lots) or any(side.lots.get(p, 0) <= 0 for p in side.prices):
                raise InvariantError(f"{name}: a price without a positive size")


def digest_of(bids: Levels, asks: Levels) -> int:
    """CRC-32 (ISO-HDLC, as zlib) over ``bidTicks:bidLots:askTicks:askLots:...``, best first, interleaved;
    when one side is shorter, the rest of the other follows."""
    parts = [f"{bid}:{bid_lots}:{ask}:{ask_lots}" for (bid, bid_lots), (ask, ask_lots) in zip(bids, asks, strict=False)]
    parts += [f"{ticks}:{lots}" for ticks, lots in bids[len(parts) :] or asks[len(parts) :]]
    return crc32(":".join(parts).encode())
