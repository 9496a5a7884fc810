"""Tokens and tickets over HTTP: `POST /v1/token`, `POST /v1/ticket`, and who may read the other routes."""

import orjson
from fastapi import FastAPI
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from protos.messages import CloseCode
from services.auth.credentials import CredentialsError, bearer_of, check_address
from services.auth.exchange import Exchange, Unavailable
from services.auth.gate import TICKET_S, Gate
from services.auth.origins import Origins
from services.auth.store import StoreDown
from services.streamer.entrance import STATUSES
from services.streamer.problems import described, problem
from streamer.access import EVERYTHING, Access, Refusal

NOT_KEPT = {"Cache-Control": "no-store"}
RETRY_AFTER = {"Retry-After": "2"}
_RESPONSES = described(400, 401, 403, 404, 503)


class TokenReply(BaseModel):
    access_token: str = Field(description="Show it as `Authorization: Bearer`.", examples=["eyJhbGciOiJIUzI1NiJ9..."])
    token_type: str = Field("Bearer", examples=["Bearer"])
    expires_in: int = Field(description="Seconds.", examples=[300])


class TicketReply(BaseModel):
    ticket: str = Field(description="Connect with `?ticket=`, once.", examples=["2Vq0RkK0d0m5N9x..."])
    expires_in: int = Field(description="Seconds.", examples=[30])


def caller(gate: Gate, request: Request) -> Access:
    """What the caller of a route may have.

    Raises:
        HTTPException: 400, 401 or 403.
    """
    if gate.door is None:
        return EVERYTHING
    verdict = gate.check(_bearer(request), int(gate.now_s * 1e9))
    return _accepted(verdict)


def _bearer(request: Request) -> str:
    try:
        token = bearer_of(request.headers.getlist("authorization"))
    except CredentialsError as error:
        raise HTTPException(400, str(error)) from None
    if not token:
        raise HTTPException(
            401, "send Authorization: Bearer with a token from POST /v1/token", {"WWW-Authenticate": "Bearer"}
        )
    return token


def _accepted(verdict: Access | Refusal) -> Access:
    if isinstance(verdict, Refusal):
        raise HTTPException(STATUSES[verdict.code], verdict.text, _challenge(verdict))
    return verdict


def _challenge(refusal: Refusal) -> dict[str, str] | None:
    return {"WWW-Authenticate": "Bearer"} if refusal.code is CloseCode.UNAUTHORIZED else None


def add_accounts(api: FastAPI, gate: Gate, exchange: Exchange) -> None:
    """The two routes. Without authentication they say so."""

    def check_on() -> None:
        if gate.signer is None:
            raise HTTPException(404, "no token is needed here: DEPTHCAST_AUTH=none")

    @api.post("/v1/token", response_model=TokenReply, responses=_RESPONSES)
    async def issue_token(request: Request) -> Response:
        """A token for at most five minutes, for an API key or a token of the identity provider, shown as Bearer."""
        check_on()
        try:
            proven = await exchange.prove(_bearer(request), gate.now_s)
        except Unavailable as error:
            raise HTTPException(503, str(error), RETRY_AFTER) from None
        if isinstance(proven, Refusal):
            raise HTTPException(STATUSES[proven.code], proven.text, _challenge(proven))
        if gate.revocations.revokes(Access(subject=proven.subject)):
            raise HTTPException(403, "the subject was revoked")
        assert gate.signer is not None  # noqa: S101 - `check_on`
        token, seconds = gate.signer.issue(proven.subject, proven.grant, gate.now_s, proven.until_s)
        gate.metrics.tokens_issued.labels(proven.by).inc()
        body = {"access_token": token, "token_type": "Bearer", "expires_in": seconds}
        return Response(orjson.dumps(body), headers=NOT_KEPT, media_type="application/json")

    @api.post("/v1/ticket", response_model=TicketReply, responses=_RESPONSES)
    async def issue_ticket(request: Request) -> Response:
        """A ticket for one connection within 30 seconds, for a token shown as Bearer."""
        check_on()
        try:
            ticket = await gate.ticket_for(_bearer(request))
        except StoreDown:
            raise HTTPException(503, "tickets cannot be kept now", RETRY_AFTER) from None
        if isinstance(ticket, Refusal):
            raise HTTPException(STATUSES[ticket.code], ticket.text, _challenge(ticket))
        body = {"ticket": ticket, "expires_in": int(TICKET_S)}
        return Response(orjson.dumps(body), headers=NOT_KEPT, media_type="application/json")


class Cors(CORSMiddleware):
    """CORS by the same list as the handshakes. A page asks its own server without it."""

    def __init__(self, app: ASGIApp, origins: Origins) -> None:
        super().__init__(
            app,
            allow_methods=("GET", "POST"),
            allow_headers=("Authorization", "Content-Type"),
            expose_headers=("Retry-After",),
        )
        self._origins = origins

    def is_allowed_origin(self, origin: str) -> bool:
        return self._origins.allow(origin, "")


class AddressCheck:
    """Refuses requests with a secret in their address, before anything can log it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["query_string"]:
            try:
                check_address("/?" + scope["query_string"].decode("latin-1"))
            except CredentialsError as error:
                await problem(400, str(error))(scope, receive, send)
                return
        await self._app(scope, receive, send)
