"""Tokens as a streamer of the tests issues and accepts them."""

import time
from typing import Any

import jwt

from protos.messages import Channel, Command, Subscribe
from services.auth.grants import Grant, parse_grant
from services.auth.tokens import Signer
from tests.support.endpoint import BTC

SECRET = "a-secret-of-the-tests-that-is-long-enough"
SETTINGS: dict[str, object] = {"auth": "token", "auth_signing_keys": f"t1:{SECRET}"}
EVERYTHING = parse_grant({"instruments": ["*"]})
SUBSCRIBE: Command = Subscribe(1, BTC, Channel.BOOK)


def token(subject: str = "desk-1", ttl_s: float = 300.0, grant: Grant = EVERYTHING, **limits: object) -> str:
    """A valid token of ours; ``limits`` are fields of the grant."""
    if limits:
        grant = parse_grant({"instruments": ["*"], **limits})
    return Signer({"t1": SECRET}, "depthcast", "depthcast", ttl_s, 5.0).issue(subject, grant, time.time())[0]


def forged(
    header: dict[str, Any] | None = None, key: str = SECRET, now_s: float | None = None, **changes: object
) -> str:
    """A token with other claims or headers; None leaves a claim out."""
    now = int(time.time() if now_s is None else now_s)
    claims: dict[str, object] = {
        "iss": "depthcast",
        "aud": "depthcast",
        "sub": "desk-1",
        "iat": now,
        "exp": now + 60,
        "jti": "j1",
        "depthcast": {"instruments": ["*"]},
        **changes,
    }
    return jwt.encode(
        {name: value for name, value in claims.items() if value is not None},
        key,
        "HS256",
        {"kid": "t1", **(header or {})},
    )
