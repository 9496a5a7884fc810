"""Settings from the environment (``DEPTHCAST_*``). The only module that reads it.

Units are in the names. ``streamer/limits.py`` has the reasons for its defaults, and the bounds that are no operator's
business.
"""

import os
import re
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.errors import UserError
from streamer.limits import Limits

PREFIX = "DEPTHCAST_"
CHECKPOINTS_RETAINED_MIN = 4
"""Market retention over checkpoint interval: streamers seek to a checkpoint; what follows it must still be there."""

NOT_SETTINGS = frozenset({"DEPTHCAST_CAPTURES", "DEPTHCAST_COMPILE"})
"""Variables that only the tests and the build read."""

_LIMITS = Limits()
_BROKERS = re.compile(r"[^\s,]+:\d{1,5}(,[^\s,]+:\d{1,5})*")
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,64}")
_AGREES_WITH = {
    "checkpoint_interval_ms": "market_retention_ms",
    "outbox_hard_bytes": "outbox_soft_bytes",
    "admin_port": "http_port",
}
"""Field -> an earlier field it must agree with."""

PORT_MAX = 65_535
Port = Annotated[int, Field(ge=0, le=PORT_MAX)]
Milliseconds = Annotated[int, Field(ge=1, le=31_536_000_000)]
Bytes = Annotated[int, Field(ge=1, le=1 << 30)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]


class Settings(BaseSettings):
    """Immutable. Each description is a line of docs/operations.md, where a test looks for it."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore", env_ignore_empty=True)

    kafka_bootstrap: str = Field(
        "127.0.0.1:9092",
        description="Kafka brokers, HOST:PORT, separated by commas.",
    )
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="How to talk to Kafka."
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "SCRAM-SHA-512", description="How to log in, with SASL_PLAINTEXT and SASL_SSL."
    )
    kafka_sasl_username: str = Field("", description="Kafka user, with SASL.")
    kafka_sasl_password: SecretStr = Field(SecretStr(""), description="Kafka password, with SASL.")
    kafka_ca_file: Path | None = Field(
        None, description="PEM file with the authority that signed the brokers' certificates; the system's when empty."
    )
    kafka_client_id: str = Field(
        "depthcast", min_length=1, description="Name of this client in the brokers' logs and quotas."
    )
    kafka_connect_timeout_ms: Milliseconds = Field(
        5_000, description="Milliseconds to wait for Kafka at start before giving up with a clear line."
    )
    kafka_session_timeout_ms: Milliseconds = Field(
        10_000,
        description="Milliseconds without a heartbeat after which an ingest worker's partitions go to the others.",
    )
    kafka_fetch_max_wait_ms: Milliseconds = Field(
        100,
        description="Milliseconds a broker may hold an empty fetch. A real broker answers earlier when there is data.",
    )
    kafka_linger_ms: int = Field(
        0, ge=0, le=1_000, description="Milliseconds a producer waits to fill a batch. 0 is the lowest latency."
    )
    kafka_compression: Literal["none", "lz4", "zstd"] = Field("none", description="Compression of what we produce.")

    topic_prefix: str = Field(
        "depthcast",
        description="The topics are PREFIX.ticks, .market, .snapshots and .dlq.",
    )
    partitions: int = Field(
        8, ge=1, le=1_024, description="Partitions of each topic: the most ingest workers that can share the work."
    )
    replication_factor: int = Field(
        1, ge=1, le=9, description="Copies of each partition when topics are created. 3 in production."
    )
    ticks_retention_ms: Milliseconds = Field(86_400_000, description="Milliseconds that raw ticks are kept.")
    market_retention_ms: Milliseconds = Field(
        3_600_000, description="Milliseconds that updates are kept; at least 4 checkpoint intervals."
    )
    dlq_retention_ms: Milliseconds = Field(604_800_000, description="Milliseconds that unusable records are kept.")

    ingest_group: str = Field("depthcast-ingest", min_length=1, description="Consumer group of the ingest workers.")
    checkpoint_interval_ms: Milliseconds = Field(
        10_000, description="Milliseconds between checkpoints of an ingest worker: what a new one replays at most."
    )
    tick_bytes_max: Bytes = Field(
        1_000_000, description="Bytes of the largest tick that is processed; larger ones go to the dead letter topic."
    )
    stale_after_ms: Milliseconds = Field(
        _LIMITS.stale_after_ms, description="Milliseconds without an update after which a book is flagged STALE."
    )

    http_host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="Address for the stream endpoint and the HTTP API; 0.0.0.0 in a container.",
    )
    http_port: Port = Field(8080, description="Port for the stream endpoint and the HTTP API; 0 takes a free one.")
    ssl_certfile: Path | None = Field(
        None,
        description="PEM file with the certificate chain, and its key if that has no file: wss and https on the port.",
    )
    ssl_keyfile: Path | None = Field(None, description="PEM file with the key of DEPTHCAST_SSL_CERTFILE.")
    workers: int = Field(
        1,
        ge=1,
        le=256,
        description="Streamer processes on the one public port; their admin ports count up from DEPTHCAST_ADMIN_PORT.",
    )
    admin_host: str = Field(
        "127.0.0.1", min_length=1, description="Address for /livez, /readyz and /metrics; never a public one."
    )
    admin_port: Port = Field(8081, description="Port for /livez, /readyz and /metrics; 0 takes a free one.")

    auth: Literal["none", "token"] = Field(
        "none", description="Who may connect: none lets everyone in, token asks each client for a token."
    )
    auth_none_public: bool = Field(
        False, description="Whether DEPTHCAST_AUTH=none may listen beyond this machine: everyone gets everything."
    )
    auth_signing_keys: SecretStr = Field(
        SecretStr(""),
        description="Secrets that sign tokens, KID:SECRET separated by commas; the first signs, all are accepted.",
    )
    auth_token_ttl_ms: int = Field(
        300_000, ge=10_000, le=300_000, description="Milliseconds that a token is valid; clients renew it in time."
    )
    auth_issuer: str = Field("depthcast", min_length=1, description="Issuer (`iss`) of our tokens.")
    auth_audience: str = Field("depthcast", min_length=1, description="Audience (`aud`) of our tokens.")
    auth_leeway_ms: int = Field(
        5_000, ge=0, le=60_000, description="Milliseconds by which the clocks of issuers may differ from ours."
    )
    auth_api_keys_file: Path | None = Field(
        None, description="JSON file with hashed API keys and what each may have; read again when it changes."
    )
    auth_jwks: str = Field(
        "", description="Public keys of an identity provider: path of a JWKS file, or an https address."
    )
    auth_jwks_issuer: str = Field("", description="Issuer (`iss`) of the identity provider's tokens.")
    auth_jwks_audience: str = Field("", description="Audience (`aud`) of the identity provider's tokens.")
    auth_jwks_grant: str = Field(
        "", description="What its users may have whose token has no claim `depthcast`, as JSON; nothing when empty."
    )
    connections_per_token_max: Count = Field(
        100, description="Connections of one token's subject over all streamers, unless the token says otherwise."
    )
    redis_url: SecretStr = Field(
        SecretStr(""), description="Redis that streamers share, redis:// or rediss://; one streamer needs none."
    )
    redis_timeout_ms: int = Field(
        200, ge=10, le=250, description="Milliseconds that anything waits for Redis; then it goes on without."
    )
    origins: str = Field(
        "self",
        description="Web pages that may connect: origins separated by commas, self for the page at /, * for all.",
    )
    trusted_proxies: str = Field(
        "", description="Networks of proxies whose X-Forwarded-For is believed, separated by commas."
    )
    token: SecretStr = Field(SecretStr(""), description="Token or API key that `depthcast watch` shows to a streamer.")

    connections_max: Count = Field(
        20_000, description="Connections that one streamer accepts; the next gets 503 and a Retry-After."
    )
    connections_per_address_max: Count = Field(
        10_000,
        description="Connections of one IP address (IPv6: /64 network) to one streamer; the next gets 429.",
    )
    handshakes_per_s: Count = Field(
        2_000, description="Connections that one streamer accepts per second, and at once; the next gets 503."
    )
    connection_age_max_ms: Milliseconds = Field(
        _LIMITS.connection_age_max_ms,
        description="Milliseconds after which, or up to a tenth earlier, a connection is told to reconnect: 1012.",
    )
    request_timeout_ms: Milliseconds = Field(
        _LIMITS.request_timeout_ms,
        description="Milliseconds for a handshake or an HTTP request to arrive, and for its response to be read.",
    )
    head_bytes_max: Bytes = Field(
        _LIMITS.head_bytes_max, description="Bytes of a request line and its headers; more get 431."
    )
    headers_max: Count = Field(_LIMITS.headers_max, description="Headers of a request; more get 431.")
    body_bytes_max: Bytes = Field(_LIMITS.body_bytes_max, description="Bytes of a request's body; more get 413.")
    subscriptions_max: Count = Field(_LIMITS.subscriptions_max, description="Subscriptions of one connection.")
    command_bytes_max: Bytes = Field(
        _LIMITS.command_bytes_max, description="Bytes of one command; a longer one closes with 1009."
    )
    commands_per_s: Count = Field(
        _LIMITS.commands_per_s, description="Commands of one connection per second, after a burst."
    )
    commands_burst: Count = Field(
        _LIMITS.commands_burst,
        description="Commands that one connection may send at once; each over the rate is a fault.",
    )
    controls_max: Count = Field(
        _LIMITS.controls_max, description="Pings and pongs of a client per heartbeat interval; more close with 1008."
    )
    fragments_max: Count = Field(_LIMITS.fragments_max, description="Frames of one message; more close with 1008.")
    flush_interval_min_ms: float = Field(
        1.0,
        ge=0.1,
        le=1_000,
        description="Milliseconds between two writes to a client at least: the latency of an idle streamer.",
    )
    flush_duty_max: float = Field(
        0.6, gt=0, le=0.95, description="Share of a core that flushes may take; under load the interval grows instead."
    )
    flush_slice_clients: int = Field(
        128,
        ge=1,
        le=10_000,
        description="Least clients to write to before the event loop gets its turn; more if they take less than 2 ms.",
    )
    outbox_soft_bytes: Bytes = Field(
        _LIMITS.outbox_soft_bytes,
        description="Bytes waiting for a client above which book and quote updates are conflated.",
    )
    outbox_hard_bytes: Bytes = Field(
        _LIMITS.outbox_hard_bytes, description="Bytes waiting for a client above which it is closed with 4008."
    )
    outbox_stall_ms: Milliseconds = Field(
        _LIMITS.outbox_stall_ms,
        description="Milliseconds without progress after which a client with data waiting is closed with 4008.",
    )
    heartbeat_interval_ms: Milliseconds = Field(
        _LIMITS.heartbeat_interval_ms,
        description="Milliseconds between pings; after two without any answer the connection is closed with 4009.",
    )
    digest_interval_ms: Milliseconds = Field(
        _LIMITS.digest_interval_ms, description="Milliseconds between digests of each book stream."
    )
    drain_ms: int = Field(
        5_000, ge=0, le=600_000, description="Milliseconds over which a stopping streamer sends its clients elsewhere."
    )

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The least severe level that is logged."
    )
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="json has one object per line; auto is console on a terminal and json elsewhere."
    )

    @field_validator(
        "kafka_bootstrap", "topic_prefix", "kafka_ca_file", "auth_api_keys_file", "ssl_certfile", "ssl_keyfile"
    )
    @classmethod
    def _well_formed(cls, value: object, info: ValidationInfo) -> object:
        if info.field_name == "kafka_bootstrap" and not _BROKERS.fullmatch(str(value)):
            raise ValueError("must be HOST:PORT, several separated by commas")
        if info.field_name == "topic_prefix" and not _TOPIC.fullmatch(str(value)):
            raise ValueError("must be 1 to 64 letters, digits, dots, dashes or underscores")
        if isinstance(value, Path) and not value.is_file():
            raise ValueError(f"there is no file {value}")
        return value

    @field_validator("kafka_sasl_password")
    @classmethod
    def _complete_login(cls, value: SecretStr, info: ValidationInfo) -> SecretStr:
        protocol = str(info.data.get("kafka_security_protocol"))
        if protocol.startswith("SASL") and not (value and info.data.get("kafka_sasl_username")):
            raise ValueError(f"{protocol} needs it and DEPTHCAST_KAFKA_SASL_USERNAME")
        return value

    @field_validator("checkpoint_interval_ms", "outbox_hard_bytes", "admin_port")
    @classmethod
    def _agrees(cls, value: int, info: ValidationInfo) -> int:
        other = info.data.get(_AGREES_WITH[str(info.field_name)])
        if other is None:  # it has its own fault
            return value
        if info.field_name == "checkpoint_interval_ms" and other < CHECKPOINTS_RETAINED_MIN * value:
            raise ValueError(f"must be at most a quarter of DEPTHCAST_MARKET_RETENTION_MS ({other})")
        if info.field_name == "outbox_hard_bytes" and value <= other:
            raise ValueError(f"must be more than DEPTHCAST_OUTBOX_SOFT_BYTES ({other})")
        if info.field_name == "admin_port" and value:
            last = value + int(info.data.get("workers", 1)) - 1
            if value <= other <= last:
                raise ValueError(f"must differ from DEPTHCAST_HTTP_PORT ({other}), for each of DEPTHCAST_WORKERS")
            if last > PORT_MAX:
                raise ValueError(f"must leave a port for each of DEPTHCAST_WORKERS: {last} is above {PORT_MAX}")
        return value


@cache
def load_settings(**overrides: object) -> Settings:
    """The settings: ``overrides``, else the environment, else the defaults. Cached.

    Raises:
        UserError: Some are wrong; the message names every one of them.
    """
    try:
        return Settings(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        raise UserError(_explain(error)) from None


def _explain(error: ValidationError) -> str:
    lines = []
    for fault in error.errors(include_url=False):
        message = fault["msg"].removeprefix("Value error, ").replace("Input should", "must")
        lines.append(f"  {PREFIX}{str(fault['loc'][0]).upper()}: {message}")
    return "wrong settings:\n" + "\n".join(lines)


def effective(settings: Settings) -> dict[str, str]:
    """Variable -> value as text, secrets masked, in the order of the class."""
    return {PREFIX + name.upper(): "" if value is None else str(value) for name, value in settings}


def environment_of(settings: Settings) -> dict[str, str]:
    """The whole environment for a child process that is to have these settings, secrets in clear."""
    secrets = {name: value.get_secret_value() for name, value in settings if isinstance(value, SecretStr)}
    return {**os.environ, **effective(settings), **{PREFIX + name.upper(): value for name, value in secrets.items()}}


def unknown_variables() -> list[str]:
    """``DEPTHCAST_*`` variables that are no setting: most likely a typing error."""
    known = {PREFIX + name.upper() for name in Settings.model_fields} | NOT_SETTINGS
    return sorted(name for name in os.environ if name.upper().startswith(PREFIX) and name.upper() not in known)
