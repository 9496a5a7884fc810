"""What a mapper makes of a venue's message: prices and sizes still as the venue's decimal text, exact.

A mapper is a module in `ingest.mappers` that satisfies `Mapper`; docs/add-a-venue.md says how to write one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, Protocol

from protos.messages import Reason, Side

TextLevel = Sequence[str]
"""Exactly two items, (price, size), as decimal text: a list straight out of the JSON parser, or a tuple."""


class MapError(Exception):
    """A message that cannot be used. ``reason`` is one word for metrics and the DLQ header; the message explains.

    Reasons: bad-json, unknown-feed, null-value, too-large, bad-price, bad-size, bad-field, bad-version,
    wrong-instrument.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Routed(NamedTuple):
    """One record for the ticks topic."""

    instrument: str
    value: bytes


class SequenceRule(Enum):
    """How a venue's book messages chain; the table is in `ingest.sequence`."""

    BINANCE_SPOT = "binance-spot"
    BINANCE_FUTURES = "binance-futures"
    KRAKEN = "kraken"
    OKX = "okx"
    BYBIT = "bybit"
    COINBASE = "coinbase"
    DERIBIT = "deribit"
    CANONICAL = "canonical"


@dataclass(slots=True)
class BookEvent:
    """Book snapshot or delta of one instrument. Sizes are absolute; text that equals zero removes a level."""

    snapshot: bool
    bids: Sequence[TextLevel]  # in the venue's order; of equal prices the last wins
    asks: Sequence[TextLevel]
    ts_event_ns: int = 0
    first: int | None = None  # first venue sequence it covers (Binance U)
    last: int | None = None  # last venue sequence it covers (u, seqId, change_id, ...)
    prev: int | None = None  # the venue's link to the message before (pu, prevSeqId, prev_change_id)
    checksum: int | None = None  # the venue's CRC-32 as unsigned; None: not given
    depth: int = (
        0  # levels per side the venue maintains, cut to after each message; 0: no cut (deltas: as the snapshot)
    )
    reset: bool = False  # the venue says it restarted its sequence (Bybit u == 1, OKX maintenance)


@dataclass(slots=True)
class TextTrade:
    price: str
    size: str
    side: Side
    trade_id: str
    ts_event_ns: int


@dataclass(slots=True)
class TradesEvent:
    trades: list[TextTrade] = field(default_factory=list)
    ts_event_ns: int = 0


@dataclass(slots=True)
class QuoteEvent:
    """The venue's own best bid and offer; ("", "") for an empty side."""

    bid: TextLevel
    ask: TextLevel
    ts_event_ns: int = 0
    last: int | None = None  # venue sequence it holds for, when it shares the book's (Binance u)


@dataclass(slots=True)
class ControlEvent:
    """The feed speaks: it lost messages (FEED_GAP) or the venue (FEED_DISCONNECTED)."""

    reason: Reason
    ts_event_ns: int = 0


Event = BookEvent | TradesEvent | QuoteEvent | ControlEvent


class Mapper(Protocol):
    """What a module in `ingest.mappers` provides. Pure: the same bytes always give the same result."""

    @property
    def RULES(self) -> dict[str, SequenceRule]:  # noqa: N802 - a module constant
        """The `feed` header values it understands, and how their book messages chain."""

    @property
    def TRIM(self) -> bool:  # noqa: N802 - a module constant
        """Drop trailing zeros when the scale is learned (False: the decimals as written are the scale)."""

    def split(self, feed: str, message: bytes, symbol_hint: str = "") -> list[Routed]:
        """Runs in the feed: one venue message to records for the ticks topic, one instrument each.

        Usually the same bytes; a message with several instruments is cut into one valid venue message each;
        messages without market data (acknowledgements, heartbeats, candles) give [].

        Args:
            feed: One of RULES.
            message: As received.
            symbol_hint: The symbol, for messages that do not name it (Binance's REST snapshot); for `canonical` the
                instrument.

        Raises:
            MapError: The message cannot be used.
        """

    def parse(self, feed: str, instrument: str, value: bytes, content_type: str = "") -> list[Event]:
        """Runs in ingest: at most one BookEvent, TradesEvent, QuoteEvent and ControlEvent for the record.

        Args:
            feed: One of RULES.
            instrument: The record's key; the message must be about it.
            value: The record's value.
            content_type: The record's `content-type` header; only `canonical` looks at it.

        Raises:
            MapError: The record cannot be used. Nothing else escapes, whatever the bytes.
        """
