"""What one client may have: what its token grants, or, without authentication, everything."""

from dataclasses import dataclass
from fnmatch import fnmatchcase

from protos.messages import Channel, CloseCode
from streamer.streams import StreamKey

NEVER_NS = 1 << 63
CHANNELS = frozenset(Channel) - {Channel.UNKNOWN}


@dataclass(slots=True, frozen=True)
class Refusal:
    """Why a token is not accepted. ``code`` is UNAUTHORIZED, FORBIDDEN or TOO_MANY; ``text`` is for the client."""

    code: CloseCode
    text: str


@dataclass(slots=True, frozen=True)
class Access:
    """
    Args:
        subject: Who it is; "" without authentication.
        token_id: The token's ``jti``, by which it can be revoked.
        expires_ns: When the client must have shown another token.
        instruments: Patterns with ``*`` and ``?``; one must match.
        depth_max: Levels of each side; 0 is the full book.
        commands_per_s: 0: as `Limits` says.
        connections_max: Of the subject, over all streamers; 0: as the settings say.
    """

    subject: str = ""
    token_id: str = ""
    expires_ns: int = NEVER_NS
    instruments: tuple[str, ...] = ("*",)
    channels: frozenset[Channel] = CHANNELS
    depth_max: int = 0
    commands_per_s: int = 0
    connections_max: int = 0

    def covers(self, instrument: str) -> bool:
        return "*" in self.instruments or any(fnmatchcase(instrument, pattern) for pattern in self.instruments)

    def refuses(self, key: StreamKey) -> str:
        """What the client may not have of a stream, in words; "" when it may have it."""
        if not self.covers(key.instrument):
            return f"your token does not allow {key.instrument[:64]!r}"
        if key.channel not in self.channels:
            return f"your token does not allow channel {key.channel.name.lower()}"
        if key.channel in (Channel.BOOK, Channel.RAW):
            return self.refuses_depth(key.depth)
        return ""

    def refuses_depth(self, depth: int) -> str:
        """As `refuses`, of so many levels of a book; 0 is the full book."""
        if self.depth_max and not 0 < depth <= self.depth_max:
            return f"your token allows {self.depth_max} levels of a book"
        return ""


EVERYTHING = Access()
NOTHING = Access(instruments=())
"""Of a client that has not shown a token yet."""
