"""The public keys of a user's own identity provider (JWKS, RFC 7517), from a file or an https address."""

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import jwt
import orjson

from services.auth.tokens import Key, algorithms_of

FRESH_S = 300.0
"""Seconds after which keys are fetched anew: so long does a key that the provider withdrew still count."""
RETRY_S = 10.0
"""Between two fetches at least, whatever tokens name as their key: nobody makes us flood the provider."""
TIMEOUT_S = 3.0
BYTES_MAX = 256 * 1024
KEYS_MAX = 100
RSA_BITS_MIN = 2_048

_log = logging.getLogger("depthcast.auth")


class KeysError(Exception):
    """There are no keys to be had; the text says why."""


def parse_jwks(data: bytes) -> dict[str, Key]:
    """Signature keys by their id. Keys of other uses and kinds are left out.

    Raises:
        KeysError: It is not a JWKS document, or no key of it can be used.
    """
    try:
        listed = orjson.loads(data)["keys"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        raise KeysError("it is not a JWKS document") from None
    found: dict[str, Key] = {}
    for i, item in enumerate(listed[:KEYS_MAX] if isinstance(listed, list) else []):
        if not isinstance(item, dict) or item.get("use", "sig") != "sig":
            continue
        fit = algorithms_of(str(item.get("kty")), str(item.get("crv", "")), str(item.get("alg", "")))
        if not fit:
            continue
        try:
            material = jwt.PyJWK({**item, "alg": fit[0]}).key
        except (jwt.PyJWTError, ValueError, TypeError):
            continue
        if getattr(material, "key_size", RSA_BITS_MIN) < RSA_BITS_MIN and item["kty"] == "RSA":
            continue
        kid = str(item.get("kid", f"#{i}"))
        found[kid] = Key(kid, tuple(fit), material)
    if not found:
        raise KeysError("it has no public key that can be used")
    return found


class JwksSource:
    """
    Args:
        where: Path of a file, or an https address. An http address is taken only of this machine.
    """

    def __init__(self, where: str, clock_s: Callable[[], float] = time.monotonic) -> None:
        self.where = where
        self._clock_s = clock_s
        self._keys: dict[str, Key] = {}
        self._read_s = float("-inf")
        self._tried_s = float("-inf")

    async def keys(self, wanted: str | None) -> dict[str, Key]:
        """The keys, fetched anew when they are old or ``wanted`` is not among them.

        Raises:
            KeysError: There are none.
        """
        now_s = self._clock_s()
        fresh = now_s - self._read_s < FRESH_S and (wanted is None or wanted in self._keys)
        if not fresh and now_s - self._tried_s >= RETRY_S:
            self._tried_s = now_s
            try:
                self._keys = parse_jwks(await self._read())
                self._read_s = now_s
            except (KeysError, OSError, httpx.HTTPError) as error:
                _log.error("cannot read the keys of the identity provider at %s: %s", self.where, error)
        if not self._keys:
            raise KeysError("the keys of the identity provider cannot be read")
        return self._keys

    async def _read(self) -> bytes:
        if "://" not in self.where:
            return await asyncio.to_thread(Path(self.where).read_bytes)
        data = b""
        async with (
            httpx.AsyncClient(timeout=TIMEOUT_S, follow_redirects=False, trust_env=False) as http,
            http.stream("GET", self.where, headers={"Accept": "application/json"}) as response,
        ):
            if response.status_code != httpx.codes.OK:
                raise KeysError(f"HTTP {response.status_code}")
            async for part in response.aiter_bytes():
                data += part
                if len(data) > BYTES_MAX:
                    raise KeysError(f"more than {BYTES_MAX} bytes")
        return data
