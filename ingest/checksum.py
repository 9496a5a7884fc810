"""The venues' own book checksums, from integer ticks and lots and the scale alone: what a client has.

Sources: Kraken, "Guide: book checksum" (v1 and v2 alike); OKX v5, "Order book channel / Checksum".
"""

from collections.abc import Callable
from typing import Protocol
from zlib import crc32

from protos.fixed import to_text
from protos.messages import Levels, Scale

KRAKEN_DEPTH = 10
OKX_DEPTH = 25


class Book(Protocol):
    """Ours or a client's."""

    def top(self, depth: int) -> tuple[Levels, Levels]: ...


def kraken_checksum(book: Book, _scale: Scale) -> int:
    """CRC-32 over the 10 best asks, then the 10 best bids, each price and size as the venue's text without the dot and
    leading zeros. That text is the integer itself, as the scale is the decimals the venue writes."""
    bids, asks = book.top(KRAKEN_DEPTH)
    return crc32("".join([f"{ticks}{lots}" for ticks, lots in asks + bids]).encode())


def okx_checksum(book: Book, scale: Scale) -> int:
    """CRC-32 (unsigned; the venue sends it signed) over ``bidPx:bidSz:askPx:askSz:...`` of the 25 best levels,
    interleaved; when one side is shorter, the rest of the other follows. Numbers have no trailing zeros."""
    bids, asks = book.top(OKX_DEPTH)
    parts: list[str] = []
    for i in range(max(len(bids), len(asks))):
        for side in (bids, asks):
            if i < len(side):
                parts.append(_plain(side[i][0], scale.price_exponent))
                parts.append(_plain(side[i][1], scale.size_exponent))
    return crc32(":".join(parts).encode())


def _plain(value: int, exponent: int) -> str:
    text = to_text(value, exponent)
    return text.rstrip("0").rstrip(".") if exponent < 0 else text


CHECKSUMS: dict[str, Callable[[Book, Scale], int]] = {"kraken": kraken_checksum, "okx": okx_checksum}
"""By venue, the first part of the instrument's name. Venues that are not here send no checksum."""
