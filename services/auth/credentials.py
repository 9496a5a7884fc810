"""What a request shows to get in. No I/O.

- ``Authorization: Bearer TOKEN``, from whatever can set headers;
- ``bearer.TOKEN`` among the offered subprotocols, from browsers, which cannot (it is never the chosen one);
- ``?ticket=TICKET``: it is good once, for seconds.

Anything else of that kind in the address is refused: addresses end up in logs, histories and Referer headers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

SUBPROTOCOL_PREFIX = "bearer."
TICKET_CHARS_MAX = 128
_SECRET_NAMES = frozenset(
    {"token", "access_token", "id_token", "refresh_token", "jwt", "bearer", "authorization", "auth"}
    | {"api_key", "apikey", "api-key", "key", "secret", "password"}
)
_JWT_START = "eyJ"
"""Base64 of ``{"``: how every JWT begins."""
_API_KEY_START = "dck_"


class CredentialsError(ValueError):
    """The request shows its credentials in a way that is not accepted; the text never repeats them."""


@dataclass(slots=True, frozen=True)
class Credentials:
    """At most one of them is set."""

    token: str = ""
    ticket: str = ""


def check_address(path: str) -> str:
    """The ticket in the address of a request; "" without one.

    Raises:
        CredentialsError: There is a long-lived secret in it.
    """
    query = urlsplit(path).query
    if not query:
        return ""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=100)
    except ValueError:
        raise CredentialsError("there are too many parameters") from None
    tickets = [value for name, value in pairs if name == "ticket"]
    for name, value in pairs:
        if name.strip().lower() in _SECRET_NAMES or value.startswith((_JWT_START, _API_KEY_START)):
            raise CredentialsError(
                "a token in the address ends up in logs: send it as a header, as a subprotocol, or as the first message"
            )
    if len(tickets) > 1 or any(not 0 < len(ticket) <= TICKET_CHARS_MAX for ticket in tickets):
        raise CredentialsError("there must be one ticket, as POST /v1/ticket gave it")
    return tickets[0] if tickets else ""


def bearer_of(authorizations: Sequence[str]) -> str:
    """The token of `Authorization` headers (RFC 6750 section 2.1); "" without any.

    Raises:
        CredentialsError: There are several, or it is another scheme.
    """
    if not authorizations:
        return ""
    scheme, _, token = authorizations[0].strip().partition(" ")
    if len(authorizations) > 1 or scheme.lower() != "bearer" or not token.strip():
        raise CredentialsError("send one header Authorization: Bearer TOKEN")
    return token.strip()


def credentials_of(path: str, authorizations: Sequence[str], subprotocols: Sequence[str]) -> Credentials:
    """What a handshake shows.

    Raises:
        CredentialsError: A secret in the address, or more than one credential.
    """
    ticket = check_address(path)
    tokens = [name.removeprefix(SUBPROTOCOL_PREFIX) for name in subprotocols if name.startswith(SUBPROTOCOL_PREFIX)]
    if token := bearer_of(authorizations):
        tokens.append(token)
    if len(tokens) + bool(ticket) > 1:
        raise CredentialsError("show one token or one ticket, not several")
    return Credentials(tokens[0] if tokens else "", ticket)
