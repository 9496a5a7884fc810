"""May this handshake become a stream? What the request shows, judged: in, out, or a ticket to redeem first. No I/O."""

from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus

from websockets.http11 import Request

from protos.messages import CloseCode
from services.auth.credentials import CredentialsError, check_address, credentials_of
from services.auth.forwarded import client_address
from services.auth.gate import Gate
from streamer.access import Access, Refusal

STATUSES = {
    CloseCode.UNAUTHORIZED: HTTPStatus.UNAUTHORIZED,
    CloseCode.FORBIDDEN: HTTPStatus.FORBIDDEN,
    CloseCode.TOO_MANY: HTTPStatus.TOO_MANY_REQUESTS,
}
"""How HTTP says what a close code would say."""


@dataclass(slots=True, frozen=True)
class Denied:
    """No stream, and the answer to give."""

    status: HTTPStatus
    text: str


@dataclass(slots=True, frozen=True)
class Ticketed:
    """`Gate.redeem` has the last word."""

    ticket: str


Entry = Access | None | Ticketed | Denied
"""None: nothing is shown, and nothing is needed yet."""


def enter(gate: Gate, request: Request, now_ns: int) -> Entry:
    """Judge an upgrade request that is a valid handshake."""
    headers = request.headers
    origins = headers.get_all("Origin")
    if not gate.origins.allow(", ".join(origins) if origins else None, headers.get("Host", "")):
        gate.metrics.origins_refused.inc()
        return Denied(HTTPStatus.FORBIDDEN, "pages of this origin may not connect; see DEPTHCAST_ORIGINS")
    try:
        if gate.door is None:
            check_address(request.path)
            return None
        offered = [name.strip() for value in headers.get_all("Sec-WebSocket-Protocol") for name in value.split(",")]
        shown = credentials_of(request.path, headers.get_all("Authorization"), offered)
    except CredentialsError as error:
        return Denied(HTTPStatus.BAD_REQUEST, str(error))
    if shown.ticket:
        return Ticketed(shown.ticket)
    return admit(gate, gate.check(shown.token, now_ns)) if shown.token else None


def admit(gate: Gate, verdict: Access | Refusal) -> Access | Denied:
    """The verdict on a token or ticket, as an answer to a handshake."""
    if isinstance(verdict, Access) and gate.presence.full(verdict):
        verdict = Refusal(CloseCode.TOO_MANY, "too many connections of your token's subject")
        gate.metrics.auth.labels("too_many").inc()
        gate.metrics.limited["connections_per_token"].inc()
    return Denied(STATUSES[verdict.code], verdict.text) if isinstance(verdict, Refusal) else verdict


def address_of(gate: Gate, peer: str, forwarded: Sequence[str]) -> str:
    """The client's address: the peer's, or what our own proxies say of it."""
    return client_address(peer, forwarded, gate.proxies)
