"""From one venue connection's messages to records for the ticks topic."""

from typing import NamedTuple

from ingest.mappers import mapper_for
from ingest.mappers.coinbase import ConnectionSequence
from protos.tick import CONTENT_PROTO, Tick, TickKind, encode_tick
from protos.topics import HEADER_CONTENT_TYPE, HEADER_FEED, HEADER_RECEIVED_NS


class TickOut(NamedTuple):
    """A record for the ticks topic, but for its partition."""

    instrument: str
    value: bytes
    headers: dict[str, bytes]


class Router:
    """Splits and labels the messages of one connection, in their order.

    Where only the connection can show that messages were lost (Coinbase), each of its instruments gets a GAP tick
    before the message that shows it.
    """

    def __init__(self, feed: str) -> None:
        self._mapper = mapper_for(feed)
        self._feed = feed
        self._sequence = ConnectionSequence() if feed == "coinbase" else None
        self._lost = False  # and not yet said so
        self._instruments: dict[str, None] = {}  # in the order of their first message, so that replays are alike

    def route(self, message: bytes, received_ns: int, symbol_hint: str = "") -> list[TickOut]:
        """The records of the next message; none for acknowledgements and the like.

        Raises:
            MapError: The message cannot be used.
        """
        if self._sequence is not None:
            self._lost = self._sequence.lost(message) or self._lost
        routed = self._mapper.split(self._feed, message, symbol_hint)
        out = [self.control(TickKind.GAP, name, received_ns) for name in self._instruments] if self._lost else []
        self._lost = False
        headers = {HEADER_FEED: self._feed.encode(), HEADER_RECEIVED_NS: str(received_ns).encode()}
        for instrument, value in routed:
            self._instruments[instrument] = None
            out.append(TickOut(instrument, value, headers))
        return out

    def control(self, kind: TickKind, instrument: str, received_ns: int) -> TickOut:
        """What the feed itself has to say of an instrument: it lost messages (GAP) or the venue (DISCONNECTED)."""
        headers = {
            HEADER_FEED: self._feed.encode(),
            HEADER_RECEIVED_NS: str(received_ns).encode(),
            HEADER_CONTENT_TYPE: CONTENT_PROTO.encode(),
        }
        return TickOut(instrument, encode_tick(Tick(kind)), headers)
