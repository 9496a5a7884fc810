"""Who may connect now: bounds on connections, on those of one address, and on how fast they come."""

from http import HTTPStatus
from ipaddress import IPv6Address
from typing import NamedTuple

from services.config import Settings
from streamer.bucket import Bucket

SITE_PREFIX = 64
"""Bits of an IPv6 address that a customer cannot choose: one home has 2^64 addresses."""
SOCKETS_SPARE = 1_000
"""Sockets beyond the stream connections: HTTP requests, and handshakes that are told to come back."""
RETRY_AFTER_S = 2
RETRY_AFTER_MAX_S = 30
"""As long as a client waits at most without a hint."""


class Full(NamedTuple):
    """Why a connection is not taken; ``limit`` is its name in the metrics."""

    limit: str
    status: HTTPStatus
    reason: str
    retry_after_s: int = RETRY_AFTER_S


class Admission:
    """Counts the stream connections of this process."""

    def __init__(self, settings: Settings) -> None:
        self.open = 0
        self._max = settings.connections_max
        self._per_address_max = settings.connections_per_address_max
        self._period_ns = 1_000_000_000 // settings.handshakes_per_s
        self._handshakes = Bucket(settings.handshakes_per_s, self._period_ns)
        self._promised_ns = 0
        self._by_address: dict[str, int] = {}

    def ask(self, address: str, now_ns: int) -> Full | None:
        """Whether a handshake from ``address`` is one too many; None: it is not."""
        if full := self.full(address):
            return full
        if not self._handshakes.take(now_ns):
            reason = "too many are connecting at once"
            return Full("handshake_rate", HTTPStatus.SERVICE_UNAVAILABLE, reason, self._promise_s(now_ns))
        return None

    def _promise_s(self, now_ns: int) -> int:
        """Seconds until it is the turn of one that is sent away: as many are told a second as can be taken in it. Told
        the same, all would be back together, and most be sent away again."""
        promised_ns = max(self._promised_ns, now_ns) + self._period_ns
        self._promised_ns = min(promised_ns, now_ns + (RETRY_AFTER_MAX_S - 1) * 1_000_000_000)
        return 1 + (self._promised_ns - now_ns) // 1_000_000_000

    def full(self, address: str) -> Full | None:
        """Whether one more connection from ``address`` is too many."""
        if self.open >= self._max:
            reason = "this server has all the connections it may have"
            return Full("connections", HTTPStatus.SERVICE_UNAVAILABLE, reason)
        if self._by_address.get(site(address), 0) >= self._per_address_max:
            reason = "your address has all the connections it may have"
            return Full("connections_per_address", HTTPStatus.TOO_MANY_REQUESTS, reason)
        return None

    def crowded(self, sockets: int) -> bool:
        """Whether a socket is too many, when there are ``sockets`` besides the stream connections."""
        return self.open + sockets > self._max + SOCKETS_SPARE

    def enter(self, address: str) -> None:
        self.open += 1
        key = site(address)
        self._by_address[key] = self._by_address.get(key, 0) + 1

    def leave(self, address: str) -> None:
        self.open -= 1
        key = site(address)
        left = self._by_address.pop(key) - 1
        if left:
            self._by_address[key] = left


def site(address: str) -> str:
    """What is counted as one address: all of IPv4, the network of IPv6."""
    if ":" not in address:
        return address
    try:
        number = IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    if number.ipv4_mapped is not None:
        return str(number.ipv4_mapped)
    return str(IPv6Address(int(number) >> (128 - SITE_PREFIX) << (128 - SITE_PREFIX)))
