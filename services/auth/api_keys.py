"""API keys: a file of hashes, each with a subject and what it may have.

    [{"subject": "desk-1", "sha256": "9f86d081...", "grant": {"instruments": ["binance:*"]}}]

A key is 32 random bytes, so its plain SHA-256 tells nothing of it; a slow hash is for what people make up.
"""

import hashlib
import hmac
import logging
import secrets
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from services.auth.grants import SUBJECT_CHARS_MAX, Grant
from services.errors import UserError

PREFIX = "dck_"
"""So that scanners, people and `connect` tell a key from a token."""
KEYS_MAX = 10_000

_log = logging.getLogger("depthcast.auth")


class ApiKey(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    subject: Annotated[str, StringConstraints(min_length=1, max_length=SUBJECT_CHARS_MAX)]
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    grant: Grant


_LIST = TypeAdapter(Annotated[list[ApiKey], Field(max_length=KEYS_MAX)])


def new_key() -> tuple[str, str]:
    """A new key, and its hash for the file."""
    key = PREFIX + secrets.token_urlsafe(32)
    return key, hash_of(key)


def hash_of(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def parse_keys(data: bytes) -> list[ApiKey]:
    """The keys of a file.

    Raises:
        ValueError: It is not such a file; the text says where.
    """
    try:
        return _LIST.validate_json(data)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        raise ValueError(f"{'.'.join(map(str, fault['loc'])) or 'the list'}: {fault['msg']}") from None


class ApiKeys:
    """The file, read again when it changes: keys come and go without a restart.

    Raises:
        UserError: It cannot be read, or is not such a file.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._keys: list[ApiKey] = []
        self._stamp: tuple[int, int] | None = None
        if path is not None:
            try:
                self._load(path)
            except (OSError, ValueError) as error:
                raise UserError(f"DEPTHCAST_AUTH_API_KEYS_FILE {path}: {error}") from None

    def _load(self, path: Path) -> None:
        stat = path.stat()
        stamp = (stat.st_mtime_ns, stat.st_size)
        if stamp != self._stamp:
            self._stamp = stamp
            self._keys = parse_keys(path.read_bytes())

    def find(self, presented: str) -> ApiKey | None:
        """The entry of a key. All hashes are compared, each in constant time."""
        if self._path is not None:
            try:
                self._load(self._path)
            except (OSError, ValueError) as error:
                _log.error("API keys stay as they were: %s: %s", self._path, error)
        presented_hash = hash_of(presented)
        found = None
        for entry in self._keys:
            if hmac.compare_digest(entry.sha256, presented_hash):
                found = entry
        return found
