"""Which web pages may connect (RFC 6455 section 10.2) and call the API (CORS). No I/O.

An origin is scheme, host and port, and all three must be equal. Who is no browser sends none; it needs a token, not a
page's permission.
"""

import re
from collections.abc import Collection
from typing import NamedTuple

SELF = "self"
ANY = "*"
_PORTS = {"http": 80, "https": 443}
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
_ORIGIN = re.compile(r"(https?)://([a-z0-9._-]{1,253}|\[[0-9a-f:.]{2,45}\])(?::([0-9]{1,5}))?")


class Origin(NamedTuple):
    scheme: str
    host: str
    port: int


def parse_origin(text: str) -> Origin | None:
    """An origin as browsers write it (RFC 6454 section 6.2); None is anything else, also ``null``."""
    found = _ORIGIN.fullmatch(text)
    if found is None:
        return None
    scheme, host, port = found.groups()
    number = _PORTS[scheme] if port is None else int(port)
    return Origin(scheme, host, number) if 0 < number < 65_536 else None


class Origins:
    """
    Args:
        allowed: Origins; ``self``: the page that this server sends; ``*``: all.
        loopback: We listen on this machine only. Then ``self`` is this machine by name or number, so that a name which
            an attacker points to 127.0.0.1 (DNS rebinding) is not "self".

    Raises:
        ValueError: One is no origin.
    """

    def __init__(self, allowed: Collection[str], *, loopback: bool) -> None:
        self._any = ANY in allowed
        self._self = SELF in allowed
        self._loopback = loopback
        self._allowed: set[Origin] = set()
        for text in allowed:
            if text in (ANY, SELF):
                continue
            origin = parse_origin(text)
            if origin is None:
                raise ValueError(f"{text!r} is no origin; write it as https://example.org or http://127.0.0.1:3000")
            self._allowed.add(origin)

    def allow(self, origin: str | None, host: str) -> bool:
        """Whether a request may come from ``origin``; None: it names none.

        Args:
            host: The request's Host header.
        """
        if origin is None or self._any:
            return True
        found = parse_origin(origin)
        if found is None:  # null as well: sandboxed frames and files
            return False
        if found in self._allowed:
            return True
        if not self._self or (self._loopback and found.host not in _LOOPBACK):
            return False
        return found == parse_origin(f"{found.scheme}://{host.lower()}")
