"""The client's address, when proxies stand between. No I/O.

`X-Forwarded-For` is a list to which each proxy appends the address it was called from. Whoever calls us can send any
list, so it is read from the right, and only as far as the addresses are proxies of ours.
"""

from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Network = IPv4Network | IPv6Network
HOPS_MAX = 20


def parse_networks(text: str) -> tuple[Network, ...]:
    """Networks or addresses, separated by commas.

    Raises:
        ValueError: One is neither, or has bits beyond its mask.
    """
    return tuple(ip_network(part.strip()) for part in text.split(",") if part.strip())


def client_address(peer: str, forwarded: Sequence[str], proxies: Sequence[Network]) -> str:
    """The address nearest to us that is not one of our proxies.

    Args:
        peer: Of the TCP connection.
        forwarded: Values of the `X-Forwarded-For` headers, in their order.
    """
    if not proxies:
        return _canonical(peer)
    address = _address(peer)
    if address is None:
        return peer
    hops = [hop.strip() for value in forwarded for hop in value.split(",")][-HOPS_MAX:]
    while hops and any(address in network for network in proxies):
        before = _address(hops.pop())
        if before is None:  # not an address: whoever wrote it, we know no further
            break
        address = before
    return str(address)


@lru_cache(4_096)  # asked at each handshake, as the next
def _canonical(peer: str) -> str:
    """One way to write an address, as the one that is counted."""
    return str(_address(peer) or peer)


@lru_cache(4_096)
def _address(text: str) -> IPv4Address | IPv6Address | None:
    """With an optional port, as some proxies write it; IPv4 in IPv6 is IPv4."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address
