"""One module per venue: its messages to `ingest.events`. Add yours here; docs/add-a-venue.md has the steps."""

from ingest.events import MapError, Mapper, SequenceRule
from ingest.mappers import binance, bybit, canonical, coinbase, deribit, kraken, okx

_ALL: tuple[Mapper, ...] = (binance, bybit, canonical, coinbase, deribit, kraken, okx)
_BY_FEED: dict[str, Mapper] = {feed: mapper for mapper in _ALL for feed in mapper.RULES}

FEEDS: tuple[str, ...] = tuple(sorted(_BY_FEED))
"""Every value of the `feed` header that ingest understands."""


def mapper_for(feed: str) -> Mapper:
    """The mapper of a `feed` header.

    Raises:
        MapError: ``unknown-feed``.
    """
    try:
        return _BY_FEED[feed]
    except KeyError:
        raise MapError("unknown-feed", f"feed {feed[:40]!r} is not one of {', '.join(FEEDS)}") from None


def rule_for(feed: str) -> SequenceRule:
    """How the book messages of a feed chain. Raises `MapError` as `mapper_for`."""
    return mapper_for(feed).RULES[feed]
