"""What a token says, and what it grants. No I/O.

The standard claims (RFC 7519) say who, from whom, for whom and until when. The claim `depthcast` is the grant:

    {"instruments": ["binance:spot:*"], "channels": ["book", "bbo"], "depth_max": 50, "commands_per_s": 10}
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from protos.messages import Channel, CloseCode
from protos.topics import INSTRUMENT_BYTES_MAX
from streamer.access import CHANNELS, Access, Refusal

CLAIM = "depthcast"
REQUIRED = ("exp", "iat", "aud", "iss", "sub")
SUBJECT_CHARS_MAX = 256
PATTERNS_MAX = 200
RATE_MAX = 1_000

Pattern = Annotated[str, StringConstraints(pattern=r"^[^\s\[\]]+$", max_length=INSTRUMENT_BYTES_MAX)]
ChannelName = Literal["book", "bbo", "trades", "raw", "status"]


class Grant(BaseModel):
    """What a subject may have. A field that is left out does not limit, but for the instruments."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    instruments: list[Pattern] = Field(
        min_length=1, max_length=PATTERNS_MAX, description="Patterns with * and ?, as in binance:spot:*."
    )
    channels: list[ChannelName] | None = Field(None, min_length=1, description="Of book, bbo, trades, raw, status.")
    depth_max: int = Field(0, ge=0, le=10_000, description="Levels of each side of a book; 0 is the full book.")
    commands_per_s: int = Field(0, ge=0, le=RATE_MAX, description="Commands a second; 0 is the server's limit.")
    connections_max: int = Field(0, ge=0, le=1_000_000, description="Connections; 0 is the server's limit.")


class GrantError(ValueError):
    """The grant is not one; the text says what is wrong with it."""


def parse_grant(value: object) -> Grant:
    """The value of the claim `depthcast`.

    Raises:
        GrantError: It is not a grant.
    """
    try:
        return Grant.model_validate(value)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, fault["loc"])) or "the grant"
        raise GrantError(f"{where}: {fault['msg']}") from None


def granted_access(claims: Mapping[str, Any]) -> Access | Refusal:
    """What verified claims of one of our own tokens allow."""
    try:
        grant = parse_grant(claims.get(CLAIM))
    except GrantError as error:
        return Refusal(CloseCode.FORBIDDEN, f"the token's grant is wrong: {error}")
    return Access(
        subject=claims["sub"],
        token_id=claims["jti"],
        expires_ns=int(claims["exp"] * 1_000_000_000),
        instruments=tuple(grant.instruments),
        channels=CHANNELS if grant.channels is None else frozenset(Channel[name.upper()] for name in grant.channels),
        depth_max=grant.depth_max,
        commands_per_s=grant.commands_per_s,
        connections_max=grant.connections_max,
    )


def check_claims(claims: Mapping[str, Any], now_s: float, leeway_s: float) -> str:
    """What is wrong with the times and names of claims whose signature, issuer and audience hold; "" when nothing is.

    Args:
        leeway_s: By how much the issuer's clock may differ from ours.
    """
    for name in ("exp", "iat", "nbf"):
        value = claims.get(name)
        if value is None and name == "nbf":
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e11:  # NaN is not either
            return f"{name} is not a time in seconds"
    subject = claims.get("sub")
    if type(subject) is not str or not 0 < len(subject) <= SUBJECT_CHARS_MAX or not subject.isprintable():
        return f"sub is not text of 1 to {SUBJECT_CHARS_MAX} characters"
    if claims["exp"] + leeway_s <= now_s:
        return "it has expired"
    if claims["iat"] - leeway_s > now_s or claims.get("nbf", 0) - leeway_s > now_s:
        return "it is not valid yet"
    return ""
