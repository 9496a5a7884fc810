"""What one shows to get a token: an API key, or a token of one's own identity provider."""

from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import urlsplit

import orjson

from protos.messages import CloseCode
from services.auth.api_keys import PREFIX, ApiKeys
from services.auth.grants import CLAIM, Grant, GrantError, parse_grant
from services.auth.jwks import JwksSource, KeysError
from services.auth.setup import is_loopback
from services.auth.tokens import TokenError, key_id, verify
from services.config import Settings
from services.errors import UserError
from streamer.access import Refusal


class Unavailable(Exception):  # noqa: N818 - a state of the world, not a bug
    """The identity provider cannot be asked now."""


class Proven:
    """Who it is, and what it may have.

    Args:
        until_s: When the proof itself ends.
    """

    def __init__(
        self, by: Literal["api_key", "identity_provider"], subject: str, grant: Grant, until_s: float = float("inf")
    ) -> None:
        self.by, self.subject, self.grant, self.until_s = by, subject, grant, until_s


class Exchange:
    """
    Raises:
        UserError: The settings do not add up.
    """

    def __init__(self, settings: Settings) -> None:
        self._keys = ApiKeys(settings.auth_api_keys_file)
        self._jwks = JwksSource(settings.auth_jwks) if settings.auth_jwks else None
        self._issuer, self._audience = settings.auth_jwks_issuer, settings.auth_jwks_audience
        if settings.auth_jwks and not (self._issuer and self._audience):
            raise UserError("DEPTHCAST_AUTH_JWKS needs DEPTHCAST_AUTH_JWKS_ISSUER and DEPTHCAST_AUTH_JWKS_AUDIENCE")
        if settings.auth_jwks.startswith("http://") and not is_loopback(urlsplit(settings.auth_jwks).hostname or ""):
            raise UserError("DEPTHCAST_AUTH_JWKS: keys are fetched over https")
        self._leeway_s = settings.auth_leeway_ms / 1e3
        self._default: Grant | None = None
        if settings.auth_jwks_grant:
            try:
                self._default = parse_grant(orjson.loads(settings.auth_jwks_grant))
            except (orjson.JSONDecodeError, GrantError) as error:
                raise UserError(f"DEPTHCAST_AUTH_JWKS_GRANT: {error}") from None

    async def prove(self, bearer: str, now_s: float) -> Proven | Refusal:
        """
        Raises:
            Unavailable: The keys of the identity provider cannot be read.
        """
        if bearer.startswith(PREFIX):
            entry = self._keys.find(bearer)
            if entry is None:
                return Refusal(CloseCode.UNAUTHORIZED, "the API key is not known")
            return Proven("api_key", entry.subject, entry.grant)
        if self._jwks is None:
            return Refusal(CloseCode.UNAUTHORIZED, "show an API key")
        try:
            keys = await self._jwks.keys(key_id(bearer))
            claims = verify(bearer, keys, self._issuer, self._audience, now_s, self._leeway_s)
        except KeysError as error:
            raise Unavailable(str(error)) from None
        except TokenError as error:
            return Refusal(CloseCode.UNAUTHORIZED, f"the identity provider's token is not valid: {error}")
        return self._granted(claims)

    def _granted(self, claims: Mapping[str, Any]) -> Proven | Refusal:
        if CLAIM not in claims and self._default is None:
            return Refusal(CloseCode.FORBIDDEN, f"the identity provider grants nothing here: no claim {CLAIM}")
        try:
            grant = parse_grant(claims[CLAIM]) if CLAIM in claims else self._default
        except GrantError as error:
            return Refusal(CloseCode.FORBIDDEN, f"the identity provider's grant is wrong: {error}")
        assert grant is not None  # noqa: S101 - checked above
        return Proven("identity_provider", claims["sub"], grant, claims["exp"])
