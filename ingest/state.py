"""An instrument's whole state to its record on the snapshots topic and back.

What streamers need is in the fields of `InstrumentState`; what only ingest needs is in ``ingest_state``, as msgpack.
What is merely remembered (converted texts) is left out: with or without it, the outputs are the same.
"""

from dataclasses import replace

import msgpack

from ingest.events import BookEvent
from ingest.instrument import STATE_FLAGS, Instrument
from ingest.scaling import Scaler
from protos.messages import BookState, BookUpdate, Flag, InstrumentState, Scale
from protos.wire import CodecError

VERSION = 1


def export_state(instrument: Instrument, ticks_offset: int) -> InstrumentState:
    """The state after all ticks below ``ticks_offset``."""
    scale = instrument.scaler.scale
    return InstrumentState(
        ticks_offset,
        book=_snapshot(instrument) if instrument.book.epoch else None,
        ingest_state=_pack(instrument),
        status=instrument.status,
        bbo=instrument.bbo and replace(instrument.bbo, prev_seq=0, scale=scale),
        trades=instrument.trades and replace(instrument.trades, prev_seq=0, scale=scale),
    )


def restore_state(instrument: Instrument, state: InstrumentState) -> None:
    """Make a new ``instrument`` the one that was exported.

    Raises:
        CodecError: ``ingest_state`` is not of this version.
    """
    try:
        _unpack(instrument, state.ingest_state)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise CodecError(f"ingest state cannot be read: {error}") from None
    if state.book:
        instrument.book.apply(state.book)
        instrument.times = (state.book.ts_event_ns, state.book.ts_received_ns)
        instrument.depth = state.book.venue_depth
    instrument.status, instrument.bbo, instrument.trades = state.status, state.bbo, state.trades


def feed_of(state: InstrumentState) -> str:
    """The feed that the instrument came from. Raises `CodecError`."""
    try:
        version, feed, *_ = msgpack.unpackb(state.ingest_state)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise CodecError(f"ingest state cannot be read: {error}") from None
    if version != VERSION or not isinstance(feed, str):
        raise CodecError(f"ingest state has version {version!r}, this program reads version {VERSION}")
    return feed


def _snapshot(instrument: Instrument) -> BookUpdate:
    book = instrument.book
    flags = int(Flag.SNAPSHOT) | STATE_FLAGS.get(instrument.sequence.state, 0)
    if book.crossed:
        flags |= int(Flag.CROSSED)
    ts_event_ns, ts_received_ns = instrument.times
    update = BookUpdate(0, book.epoch, book.seq, 0, flags, ts_event_ns, ts_received_ns)
    update.bids, update.asks = book.bids.levels(), book.asks.levels()
    update.scale, update.venue_depth = instrument.scaler.scale, instrument.depth
    return update


def _pack(instrument: Instrument) -> bytes:
    sequence, scale = instrument.sequence, instrument.scaler.scale
    buffer = [
        (delta.first, delta.last, delta.prev, delta.ts_event_ns, delta.bids, delta.asks) for delta in sequence.buffer
    ]
    fields = (
        VERSION,
        instrument.feed,
        (int(sequence.state), sequence.last, sequence.joined, buffer),
        (scale.price_exponent, scale.size_exponent),
        instrument.epoch,
        instrument.positions,
        list(instrument.quotes.items()),
    )
    packed: bytes = msgpack.packb(fields)
    return packed


def _unpack(instrument: Instrument, data: bytes) -> None:
    _, _, sequence, exponents, epoch, positions, quotes = msgpack.unpackb(data)
    state, last, joined, buffer = sequence
    instrument.sequence.state = BookState(state)
    instrument.sequence.last, instrument.sequence.joined = last, joined
    for first, last_of_delta, prev, ts_event_ns, bids, asks in buffer:
        instrument.sequence.keep(BookEvent(False, bids, asks, ts_event_ns, first, last_of_delta, prev))
    instrument.scaler = Scaler(instrument.scaler.trims, Scale(*exponents))
    instrument.epoch, instrument.positions = epoch, positions
    instrument.quotes = {venue_sequence: tuple(quote) for venue_sequence, quote in quotes}
