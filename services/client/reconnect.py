"""When to come back: close codes and HTTP statuses to a delay, or to the end."""

from dataclasses import dataclass
from random import Random

from protos.messages import CloseCode

BACKOFF_MIN_MS = 250
"""Bound of the first delay. Shorter, and all clients of a restarted server arrive within one round trip."""
BACKOFF_MAX_MS = 30_000
STEADY_NS = 10_000_000_000
"""A connection that lasted this long counts as a success: the next failure starts at the first delay again."""
RETRY_AFTER_MAX_MS = 600_000
"""Of a hint; a server that says more is not believed."""

_TERMINAL: dict[int, str] = {
    CloseCode.NORMAL: "the server ended the connection",
    CloseCode.POLICY_VIOLATION: "the server's policy forbids this connection",
    CloseCode.BAD_COMMANDS: "too many bad commands",
    CloseCode.UNAUTHORIZED: "the token is missing or wrong",
    CloseCode.FORBIDDEN: "the token does not allow this",
    CloseCode.TOO_MANY: "too many connections of this client",
}


@dataclass(slots=True, frozen=True)
class Reconnect:
    """Connect again after ``delay_ms``."""

    delay_ms: int
    why: str


@dataclass(slots=True, frozen=True)
class Terminal:
    """Do not connect again before somebody mended the cause."""

    reason: str


class Backoff:
    """Full jitter: uniform between 0 and a bound that doubles with each failure (AWS Architecture Blog, "Exponential
    Backoff And Jitter"). A hint of the server is waited for in full, then jittered, so that nobody returns at once.
    """

    def __init__(self) -> None:
        self._failures = 0
        self._opened_ns: int | None = None

    def opened(self, now_ns: int) -> None:
        """A connection is up."""
        self._opened_ns = now_ns

    def closed(self, code: int | None, retry_after_ms: int, now_ns: int, rng: Random) -> Reconnect | Terminal:
        """A connection ended, or an attempt failed.

        Args:
            code: Of the close frame; None without one.
            retry_after_ms: The server's hint; 0 without one.
        """
        if self._opened_ns is not None and now_ns - self._opened_ns >= STEADY_NS:
            self._failures = 0
        self._opened_ns = None
        if code is not None and (code in _TERMINAL or 4400 <= code < 4500):
            return Terminal(_TERMINAL.get(code, f"the server closed with {code}"))
        why = "connection lost" if code is None else f"connection closed by {_name(code)}"
        return Reconnect(self._delay_ms(retry_after_ms, rng), why)

    def refused(self, status: int, retry_after_ms: int, rng: Random) -> Reconnect | Terminal:
        """The handshake got an HTTP status instead of 101 (RFC 6455 section 4.1)."""
        self._opened_ns = None
        if 400 <= status < 500 and status not in (408, 425, 429):
            why = {401: "the token is missing or wrong", 403: "the token does not allow this"}.get(status)
            return Terminal(f"{why or 'the server refuses the connection'} (HTTP {status})")
        return Reconnect(self._delay_ms(retry_after_ms, rng), f"the server answers HTTP {status}")

    def _delay_ms(self, retry_after_ms: int, rng: Random) -> int:
        bound = min(BACKOFF_MAX_MS, BACKOFF_MIN_MS << min(self._failures, 16))
        self._failures += 1
        hint = min(retry_after_ms, RETRY_AFTER_MAX_MS)
        return hint + round(rng.uniform(0, max(bound, hint // 2)))


def _name(code: int) -> str:
    return CloseCode(code).name.lower().replace("_", " ") if code in set(CloseCode) else f"code {code}"
