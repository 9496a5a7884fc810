"""`POST /revocations` on the admin port: throw a subject or one token out, on every streamer."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from services.auth.gate import Gate
from services.auth.grants import SUBJECT_CHARS_MAX
from services.auth.store import StoreDown

PATH = "/revocations"
DAY_S = 86_400
BODY_BYTES_MAX = 4_096

Name = Annotated[str, StringConstraints(min_length=1, max_length=SUBJECT_CHARS_MAX)]


class Revocation(BaseModel):
    """Who, and for how long. 0 seconds permit again."""

    model_config = ConfigDict(extra="forbid", strict=True)

    sub: Name | None = None
    jti: Name | None = None
    seconds: int = Field(DAY_S, ge=0, le=366 * DAY_S)

    def names(self) -> list[str]:
        return [f"{kind}:{name}" for kind, name in (("sub", self.sub), ("jti", self.jti)) if name]


def revocations_route(gate: Gate) -> Route:
    """The route, for `Admin`."""

    async def revoke(request: Request) -> Response:
        # a page that somebody with access to this port looks at must not be able to do this (CSRF)
        if "origin" in request.headers or request.headers.get("content-type") != "application/json":
            return PlainTextResponse("send JSON, and not from a browser\n", 415)
        try:
            revocation = Revocation.model_validate_json((await request.body())[:BODY_BYTES_MAX])
        except ValidationError as error:
            fault = error.errors(include_url=False, include_input=False)[0]
            return PlainTextResponse(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}\n", 422)
        if not revocation.names():
            return PlainTextResponse("say sub or jti\n", 422)
        try:
            await gate.revocations.revoke(dict.fromkeys(revocation.names(), gate.now_s + revocation.seconds))
        except StoreDown:
            return PlainTextResponse("in force here; the other streamers learn it when Redis is back\n", 503)
        return PlainTextResponse("done\n")

    return Route(PATH, revoke, methods=["POST"])
