"""Settings into the parts of the gate, with a clear word when they do not add up."""

import logging
from ipaddress import ip_address

from services.auth.forwarded import Network, parse_networks
from services.auth.origins import Origins
from services.auth.redis_store import RedisStore
from services.auth.store import MemoryStore, Store
from services.auth.tokens import Signer, parse_secrets
from services.config import Settings
from services.errors import UserError
from services.metrics import Metrics

_log = logging.getLogger("depthcast.auth")


def open_store(settings: Settings, metrics: Metrics) -> Store:
    """Redis when there is one, else this process's memory."""
    url = settings.redis_url.get_secret_value()
    if not url:
        return MemoryStore()
    try:
        return RedisStore(url, settings.topic_prefix, settings.redis_timeout_ms / 1e3, metrics)
    except ValueError as error:
        raise UserError(f"DEPTHCAST_REDIS_URL: {error}") from None


def check_exposure(settings: Settings) -> None:
    """Say loudly that there is no authentication, and do not let it happen by accident.

    Raises:
        UserError: It would be open to other machines, or streamers could not share what they must.
    """
    if settings.auth == "token":
        if settings.workers > 1 and not settings.redis_url.get_secret_value():
            raise UserError("several workers with DEPTHCAST_AUTH=token need DEPTHCAST_REDIS_URL, to share tickets")
        return
    if not (is_loopback(settings.http_host) or settings.auth_none_public):
        raise UserError(
            f"DEPTHCAST_AUTH=none lets everyone in, and DEPTHCAST_HTTP_HOST={settings.http_host} is reached from other"
            " machines: set DEPTHCAST_AUTH=token (docs/security.md), or DEPTHCAST_AUTH_NONE_PUBLIC=true if you mean it"
        )
    whom = "this machine" if is_loopback(settings.http_host) else f"everyone who reaches {settings.http_host}"
    _log.warning("AUTHENTICATION IS OFF (DEPTHCAST_AUTH=none): %s gets everything", whom)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def make_signer(settings: Settings) -> Signer | None:
    if settings.auth == "none":
        return None
    try:
        found = parse_secrets(settings.auth_signing_keys.get_secret_value())
    except ValueError as error:
        raise UserError(f"DEPTHCAST_AUTH_SIGNING_KEYS: {error}") from None
    return Signer(
        found,
        settings.auth_issuer,
        settings.auth_audience,
        settings.auth_token_ttl_ms / 1e3,
        settings.auth_leeway_ms / 1e3,
    )


def parse_origins(settings: Settings) -> Origins:
    allowed = [text.strip() for text in settings.origins.split(",") if text.strip()]
    try:
        return Origins(allowed, loopback=is_loopback(settings.http_host))
    except ValueError as error:
        raise UserError(f"DEPTHCAST_ORIGINS: {error}") from None


def parse_proxies(settings: Settings) -> tuple[Network, ...]:
    try:
        return parse_networks(settings.trusted_proxies)
    except ValueError as error:
        raise UserError(f"DEPTHCAST_TRUSTED_PROXIES: {error}") from None
