"""Signed tokens (JWT, RFC 7519), checked as RFC 8725 advises. No I/O; time is an argument.

Every key has its own list of algorithms, and the token's header only chooses among what the key allows: an RSA key
never checks an HMAC, and ``none`` is nobody's algorithm. Keys come from our configuration; a token that brings one, or
says where to fetch one, is refused.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jwt

from protos.messages import CloseCode
from protos.wire import TOKEN_MAX
from services.auth.grants import CLAIM, REQUIRED, Grant, check_claims, granted_access
from streamer.access import Access, Refusal

ALGORITHM = "HS256"
"""Of our own tokens: streamers sign and check with the same secret, and one check costs 30 us."""
SECRET_CHARS_MIN = 32
"""As many bytes as the hash has (RFC 7518 section 3.2)."""
TTL_MAX_S = 300
"""A token that leaks is of use for so long."""
_FORBIDDEN_HEADERS = ("jku", "x5u", "jwk", "x5c", "crit", "b64", "zip")


class TokenError(Exception):
    """The token is not valid; the text says why, and nothing of what is in it."""


@dataclass(slots=True, frozen=True)
class Key:
    """One key that checks signatures, and the algorithms it may be used with."""

    id: str
    algorithms: tuple[str, ...]
    material: Any


def verify(
    token: str, keys: Mapping[str, Key], issuer: str, audience: str, now_s: float, leeway_s: float
) -> dict[str, Any]:
    """The claims of a valid token.

    Args:
        keys: By their id. A token without ``kid`` is accepted when there is only one.

    Raises:
        TokenError: It is not valid.
    """
    key = _key_of(token, keys)
    try:
        claims: dict[str, Any] = jwt.decode(
            token,
            key.material,
            algorithms=list(key.algorithms),
            issuer=issuer,
            audience=audience,
            options={"require": list(REQUIRED), "verify_exp": False, "verify_iat": False, "verify_nbf": False},
        )  # `check_claims` looks at the times, by our clock, which does not step
    except jwt.MissingRequiredClaimError as error:
        raise TokenError(f"it has no {error.claim}") from None
    except jwt.InvalidIssuerError:
        raise TokenError("its issuer is another") from None
    except jwt.InvalidAudienceError:
        raise TokenError("it is for another audience") from None
    except jwt.InvalidTokenError:
        raise TokenError("its signature or form is wrong") from None
    if problem := check_claims(claims, now_s, leeway_s):
        raise TokenError(problem)
    return claims


def key_id(token: str) -> str | None:
    """``kid`` of the header, unverified: to know whether keys must be fetched anew. None: the token names none.

    Raises:
        TokenError: The token is not a JWT.
    """
    found = _header(token).get("kid")
    return found if isinstance(found, str) else None


def _header(token: str) -> dict[str, Any]:
    if len(token) > TOKEN_MAX or token.count(".") != 2 or not token.isascii():
        raise TokenError("it is not a JWT")
    try:
        header: dict[str, Any] = jwt.get_unverified_header(token)
    except (jwt.InvalidTokenError, RecursionError):
        raise TokenError("it is not a JWT") from None
    return header


def _key_of(token: str, keys: Mapping[str, Key]) -> Key:
    header = _header(token)
    for name in _FORBIDDEN_HEADERS:
        if name in header:
            raise TokenError(f"its header has {name}")
    kid = header.get("kid")
    key = next(iter(keys.values())) if kid is None and len(keys) == 1 else keys.get(kid or "")
    if key is None:
        raise TokenError("its key is unknown")
    if header.get("alg") not in key.algorithms:
        raise TokenError("its algorithm is not the key's")
    return key


class Signer:
    """Issues and checks our own tokens.

    Args:
        secrets_by_id: Key id -> secret. The first signs, all are accepted: so keys are changed without an outage.
        ttl_s: Seconds that a token is valid.
    """

    def __init__(
        self, secrets_by_id: Mapping[str, str], issuer: str, audience: str, ttl_s: float, leeway_s: float
    ) -> None:
        self._keys = {kid: Key(kid, (ALGORITHM,), secret.encode()) for kid, secret in secrets_by_id.items()}
        self._signing = next(iter(self._keys.values()))
        self._issuer, self._audience = issuer, audience
        self._ttl_s, self._leeway_s = ttl_s, leeway_s

    def issue(self, subject: str, grant: Grant, now_s: float, until_s: float = float("inf")) -> tuple[str, int]:
        """A new token, and the whole seconds that it is valid.

        Args:
            until_s: It ends no later than this: a token bought with another does not outlive it.
        """
        issued_s = int(now_s)
        expires_s = int(min(now_s + self._ttl_s, until_s))
        claims = {
            "iss": self._issuer,
            "aud": self._audience,
            "sub": subject,
            "iat": issued_s,
            "exp": expires_s,
            "jti": secrets.token_hex(12),
            CLAIM: grant.model_dump(exclude_defaults=True),
        }
        token = jwt.encode(claims, self._signing.material, ALGORITHM, {"kid": self._signing.id})
        return token, expires_s - issued_s

    def claims(self, token: str, now_s: float) -> dict[str, Any]:
        """The claims of one of our tokens.

        Raises:
            TokenError: It is not valid, or not one of ours.
        """
        claims = verify(token, self._keys, self._issuer, self._audience, now_s, self._leeway_s)
        if type(claims.get("jti")) is not str:
            raise TokenError("it has no jti")
        if claims["exp"] - claims["iat"] > TTL_MAX_S:
            raise TokenError("it is valid for too long")
        return claims

    def access(self, token: str, now_s: float) -> Access | Refusal:
        """What one of our tokens grants."""
        try:
            return granted_access(self.claims(token, now_s))
        except TokenError as error:
            return Refusal(CloseCode.UNAUTHORIZED, f"the token is not valid: {error}")


def parse_secrets(text: str) -> dict[str, str]:
    """``KID:SECRET`` pairs, separated by commas.

    Raises:
        ValueError: One is not such a pair, comes twice, or is too short. The text names no secret.
    """
    found: dict[str, str] = {}
    for i, pair in enumerate(text.split(","), 1):
        kid, colon, secret = pair.strip().partition(":")
        if not (colon and kid and kid.isascii() and kid.isalnum()):
            raise ValueError(f"entry {i} must be KID:SECRET, with letters and digits as KID")
        if len(secret) < SECRET_CHARS_MIN:
            raise ValueError(f"the secret of {kid} must have at least {SECRET_CHARS_MIN} characters")
        if kid in found or secret in found.values():
            raise ValueError(f"{kid} or its secret comes twice")
        found[kid] = secret
    return found


def algorithms_of(key_type: str, curve: str, stated: str) -> Sequence[str]:
    """Algorithms that a public key of a provider may be used with.

    Args:
        key_type: ``kty`` of the key (RFC 7517); symmetric keys have no business in a public document.
        curve: ``crv``.
        stated: ``alg`` of the key; "" when it says none.
    """
    fit: tuple[str, ...] = {
        ("RSA", ""): ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
        ("EC", "P-256"): ("ES256",),
        ("EC", "P-384"): ("ES384",),
        ("EC", "P-521"): ("ES512",),
        ("OKP", "Ed25519"): ("EdDSA",),
    }.get((key_type, curve), ())
    if stated:
        return (stated,) if stated in fit else ()
    return fit[:1]
