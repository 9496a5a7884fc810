"""Deltas of books on their way from the market topic to the clients, without a message in between.

Most records are deltas, and all that becomes of one is: its levels are set in the book, their prices are noted in a
ring, and its bytes go out with the stream's number and the time. In the compiled build that is done with the bytes
themselves (`protos.shortcut`).
"""

from protos import shortcut
from protos.book import Book
from protos.codec import Codec
from protos.codec_proto import ProtoCodec
from protos.messages import Scale
from protos.records import decode_market
from protos.ring import Ring
from protos.shortcut import Advanced

ADVANCES = shortcut.advance is not shortcut.leave
"""Whether `advance` ever does it: who reads every record need not ask in vain."""


def advance(record: bytes, book: Book, ring: Ring, prices: list[list[int]] | None) -> Advanced | None:
    """Apply a record of the market topic, if it is a plain delta that continues the book.

    Args:
        ring: Gets the prices whose sizes it sets.
        prices: Gets the same as two lists, of bids and of asks, if somebody needs them.

    Returns:
        None: it is something else, or left to `decode_market`; nothing has happened.
    """
    advanced = shortcut.advance(record, book.epoch, book.seq, book.bids, book.asks, ring, prices)
    if advanced is not None:
        book.seq = advanced[0]
    return advanced


def passed_on(record: bytes, stream: int, flags: int, ts_published_ns: int, codec: Codec, scale: Scale | None) -> bytes:
    """The chunk, in any codec, of a record that a book was advanced by, as an update of a stream."""
    if isinstance(codec, ProtoCodec):
        return shortcut.restamp(record, stream, flags, ts_published_ns)
    update = decode_market(record)
    update.stream, update.flags, update.ts_published_ns = stream, flags, ts_published_ns
    return codec.encode(update, scale)
