"""The order book: what a snapshot and its deltas add up to. The same class serves ingest, streamer and clients."""

from itertools import pairwise
from zlib import crc32

from protos import ladder
from protos.ladder import END, Ladder
from protos.messages import BookUpdate, Flag, Levels, Scale

DIGEST_DEPTH = 25
_SNAPSHOT = Flag.SNAPSHOT.value
"""A plain integer: `&` with a member makes a new member of the enum, for every update."""


class InvariantError(Exception):
    """The book is not a book: our fault, never the venue's."""


def prices_of(levels: Levels) -> list[int]:
    return [price for price, _ in levels]


class Book:
    """Both sides in ticks and lots, with the position (epoch, seq) they hold for."""

    __slots__ = ("asks", "bids", "epoch", "scale", "seq")

    def __init__(self) -> None:
        self.bids: Ladder = ladder.new_ladder()
        self.asks: Ladder = ladder.new_ladder()
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
        bids, asks = self.bids, self.asks
        bids.apply([(price, 0) for price in bids.prices(0, -depth)])
        asks.apply([(price, 0) for price in asks.prices(depth, END)])

    def top(self, depth: int) -> tuple[Levels, Levels]:
        """The best ``depth`` levels of each side (0: all), best first: bids descend, asks ascend."""
        bids = self.bids.part(-depth, END)
        bids.reverse()
        return bids, self.asks.part(0, depth or END)

    @property
    def crossed(self) -> bool:
        """Best bid at or above best ask. Venues send such books in auctions; it is flagged, not repaired."""
        bid, ask = self.bids.highest, self.asks.lowest
        return bid is not None and ask is not None and bid >= ask

    def digest(self, depth: int = DIGEST_DEPTH) -> int:
        """CRC-32 of the top levels as ASCII integers, see `digest_of`. ``depth`` bounds what a tier can see."""
        bids, asks = self.top(min(depth, DIGEST_DEPTH) or DIGEST_DEPTH)
        return digest_of(bids, asks)

    def check(self) -> None:
        """Raise `InvariantError` unless prices ascend strictly and have sizes, all positive."""
        for name, side in (("bids", self.bids), ("asks", self.asks)):
            prices, lots_of = side.prices(0, END), side.get
            if any(a >= b for a, b in pairwise(prices)):
                raise InvariantError(f"{name}: prices do not ascend")
            if any(lots_of(price, 0) <= 0 for price in prices):
                raise InvariantError(f"{name}: a price without a positive size")


def digest_of(bids: Levels, asks: Levels) -> int:
    """CRC-32 (ISO-HDLC, as zlib) over ``bidTicks:bidLots:askTicks:askLots:...``, best first, interleaved;
    when one side is shorter, the rest of the other follows."""
    parts = [f"{bid}:{bid_lots}:{ask}:{ask_lots}" for (bid, bid_lots), (ask, ask_lots) in zip(bids, asks, strict=False)]
    parts += [f"{ticks}:{lots}" for ticks, lots in bids[len(parts) :] or asks[len(parts) :]]
    return crc32(":".join(parts).encode())
