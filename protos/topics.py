"""Topic names, record keys and the partitioner. One definition for feed, ingest and streamer."""

from dataclasses import dataclass

HEADER_FEED = "feed"
HEADER_RECEIVED_NS = "received_ns"
HEADER_CONTENT_TYPE = "content-type"
HEADER_REASON = "reason"
HEADER_SOURCE = "source"
"""On the DLQ: ``topic/partition/offset`` of the record that could not be used."""

_CHECKPOINT = "checkpoint/"


@dataclass(slots=True, frozen=True)
class Topics:
    """The four topics under one prefix."""

    prefix: str = "depthcast"

    @property
    def ticks(self) -> str:
        return f"{self.prefix}.ticks"

    @property
    def market(self) -> str:
        return f"{self.prefix}.market"

    @property
    def snapshots(self) -> str:
        return f"{self.prefix}.snapshots"

    @property
    def dlq(self) -> str:
        return f"{self.prefix}.dlq"


def checkpoint_key(partition: int) -> bytes:
    """Key of a partition's checkpoint on the snapshots topic. No instrument starts like it: those have two colons."""
    return f"{_CHECKPOINT}{partition}".encode()


def is_checkpoint_key(key: bytes) -> bool:
    return key.startswith(_CHECKPOINT.encode())


def partition_for(key: bytes, partitions: int) -> int:
    """Partition of a key: Kafka's default (murmur2), so that producers in other languages agree without effort."""
    return (_murmur2(key) & 0x7FFFFFFF) % partitions


def _murmur2(data: bytes) -> int:
    """MurmurHash2 as in Kafka's ``Utils.murmur2`` (seed 0x9747b28c), as an unsigned 32-bit integer."""
    m = 0x5BD1E995
    h = 0x9747B28C ^ len(data)
    whole = len(data) & ~3
    for i in range(0, whole, 4):
        k = int.from_bytes(data[i : i + 4], "little") * m & 0xFFFFFFFF
        k = (k ^ k >> 24) * m & 0xFFFFFFFF
        h = (h * m & 0xFFFFFFFF) ^ k
    if tail := data[whole:]:
        h = (h ^ int.from_bytes(tail, "little")) * m & 0xFFFFFFFF
    h = (h ^ h >> 13) * m & 0xFFFFFFFF
    return h ^ h >> 15


def instrument_name(venue: str, market: str, symbol: str) -> str:
    """``venue:market:symbol``, for example ``binance:spot:BTCUSDT``."""
    return f"{venue}:{market}:{symbol}"


INSTRUMENT_BYTES_MAX = 128


def check_instrument(name: str) -> str:
    """Return ``name`` if it is a well-formed instrument.

    Raises:
        ValueError: It is not ``venue:market:symbol`` in printable ASCII without spaces, or too long.
    """
    parts = name.split(":", 2)
    if len(parts) != 3 or not all(parts) or len(name) > INSTRUMENT_BYTES_MAX or not name.isascii():
        raise ValueError(f"instrument {name[:64]!r} is not venue:market:symbol, as in binance:spot:BTCUSDT")
    if not name.isprintable() or " " in name:
        raise ValueError(f"instrument {name[:64]!r} has a space or control character")
    return name
