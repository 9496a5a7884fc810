"""How every client connects: settings, one clear line when it cannot, and aiokafka's log cut down to single lines."""

import asyncio
import logging
import socket
import ssl
import time
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

from aiokafka.client import ConnectionGroup
from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.errors import (
    AuthenticationFailedError,
    KafkaConnectionError,
    KafkaError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)

from services.config import Settings
from services.errors import UserError

REQUEST_TIMEOUT_MS = 40_000
"""A broker that does not answer a request in this time is given up and reconnected to. To join a group takes up to the
rebalance timeout."""
RETRY_BACKOFF_MS = 100
METADATA_MAX_AGE_MS = 60_000
"""Leaders are looked up this often without cause; every error looks them up at once."""
CONNECTIONS_MAX_IDLE_MS = 540_000


class BrokerError(Exception):
    """Kafka answered with an error that retrying does not mend. Its name is in the message; start anew."""


_REFUSALS = (AuthenticationFailedError, SaslAuthenticationFailed, UnsupportedSaslMechanismError)
_RETRY_CONNECT_S = 0.25
_LOG_INTERVAL_S = 10.0
_log = logging.getLogger("depthcast.kafka")
_send = AIOKafkaConnection.send


def _send_or_close(connection: Any, request: Any, expect_response: bool = True) -> Any:  # noqa: ANN401
    """uvloop raises RuntimeError for a connection that was just reset, where asyncio does nothing. aiokafka does not
    expect it: its fetcher or its sender ends, and the consumer or producer hangs for ever."""
    try:
        return _send(connection, request, expect_response)
    except KafkaError:  # a RuntimeError too
        raise
    except RuntimeError as error:
        connection.close(reason=CloseReason.CONNECTION_BROKEN)
        raise KafkaConnectionError(str(error)) from error


AIOKafkaConnection.send = _send_or_close


class _Frames:
    """Cuts what comes into frames. aiokafka's task, which was woken twice for each, only waits for the end."""

    def __init__(self, connection: Any) -> None:  # noqa: ANN401
        self._connection = weakref.ref(connection)
        self._data = bytearray()

    def feed(self, received: bytes) -> None:
        connection, data = self._connection(), self._data
        data += received
        while len(data) >= 4 and len(data) >= (end := 4 + int.from_bytes(data[:4], "big")):
            if connection is None or connection._reader is None:  # noqa: SLF001 closed, perhaps by the last frame
                return
            frame = bytes(data[4:end])
            del data[:end]
            try:
                connection._handle_frame(frame)  # noqa: SLF001
            except Exception as error:  # the task raises it, and aiokafka closes the connection
                connection._reader.set_exception(error)  # noqa: SLF001
                return


_create_reader_task = AIOKafkaConnection._create_reader_task  # noqa: SLF001


def _read_frames(connection: Any) -> Any:  # noqa: ANN401
    connection._reader.feed_data = _Frames(connection).feed  # noqa: SLF001
    return _create_reader_task(connection)


AIOKafkaConnection._create_reader_task = _read_frames  # noqa: SLF001


def connection_to(client: Any, node: int) -> Any:  # noqa: ANN401
    """A client's connection to a broker, if it is open; `client.ready` opens it."""
    connection = client._conns.get((node, ConnectionGroup.DEFAULT))  # noqa: SLF001
    return connection if connection is not None and connection.connected() else None


def ask(connection: Any, request: Any, answer: Any) -> None:  # noqa: ANN401
    """As `AIOKafkaConnection.send`, without a task, a timer and two turns of the event loop for each request.

    Args:
        connection: Of `connection_to`.
        request: A `services.kafka.fetch.FetchRequest`.
        answer: In place of a future; it is told at once, and looks itself after the time.

    Raises:
        KafkaError: It cannot be sent.
    """
    request.prepare(connection._versions)  # noqa: SLF001
    correlation_id = connection._next_correlation_id()  # noqa: SLF001
    try:
        connection._writer.write(request.frame(correlation_id))  # noqa: SLF001
    except (OSError, RuntimeError) as error:
        connection.close(reason=CloseReason.CONNECTION_BROKEN)
        raise KafkaConnectionError(str(error)) from error
    connection._requests.append((correlation_id, request, answer))  # noqa: SLF001


class _OneLine(logging.Handler):
    """aiokafka repeats each complaint several times a second, some with a traceback: pass on one line each 10 s.

    The error of the last failed connection is kept: aiokafka logs it and raises another one that does not tell. While
    `connect` tries, nothing is passed on: it says itself how that ended.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.cause: BaseException | None = None
        self.connecting = 0
        self._said: dict[str, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        for arg in record.args if isinstance(record.args, tuple) else ():
            if isinstance(arg, BaseException):
                self.cause = arg
        if self.connecting:
            return
        now = time.monotonic()
        if now - self._said.get(record.msg, -_LOG_INTERVAL_S) >= _LOG_INTERVAL_S:
            self._said[record.msg] = now
            error = record.exc_info[1] if record.exc_info else None
            _log.warning("%s%s", record.getMessage(), f": {error!r}" if error else "")


_complaints = _OneLine()
_aiokafka_log = logging.getLogger("aiokafka")
_aiokafka_log.setLevel(logging.WARNING)
_aiokafka_log.propagate = False
_aiokafka_log.addHandler(_complaints)


def client_options(settings: Settings) -> dict[str, Any]:
    """Keyword arguments that producer, consumer and admin client share.

    Raises:
        UserError: ``kafka_ca_file`` cannot be read.
    """
    options: dict[str, Any] = {
        "bootstrap_servers": settings.kafka_bootstrap,
        "client_id": settings.kafka_client_id,
        "request_timeout_ms": REQUEST_TIMEOUT_MS,
        "retry_backoff_ms": RETRY_BACKOFF_MS,
        "metadata_max_age_ms": METADATA_MAX_AGE_MS,
        "connections_max_idle_ms": CONNECTIONS_MAX_IDLE_MS,
        "security_protocol": settings.kafka_security_protocol,
    }
    if settings.kafka_security_protocol.endswith("SSL"):
        options["ssl_context"] = _ssl_context(settings)
    if settings.kafka_security_protocol.startswith("SASL"):
        options["sasl_mechanism"] = settings.kafka_sasl_mechanism
        options["sasl_plain_username"] = settings.kafka_sasl_username
        options["sasl_plain_password"] = settings.kafka_sasl_password.get_secret_value()
    return options


def _ssl_context(settings: Settings) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=settings.kafka_ca_file)
    except OSError as error:
        raise UserError(
            f"cannot read {settings.kafka_ca_file} ({error.strerror or error}): "
            "DEPTHCAST_KAFKA_CA_FILE must name a PEM file of certificates"
        ) from None


async def connect(
    start: Callable[[], Awaitable[None]], stop: Callable[[], Awaitable[None]], settings: Settings
) -> None:
    """Run ``start``, again and again until ``kafka_connect_timeout_ms`` have passed: Kafka may be starting too.

    Raises:
        UserError: It was all in vain, or the login was refused; ``stop`` has been called.
    """
    timeout_s = settings.kafka_connect_timeout_ms / 1000
    _complaints.cause = None
    _complaints.connecting += 1
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    return await start()
                except (KafkaConnectionError, OSError):
                    if isinstance(_complaints.cause, _REFUSALS):
                        break
                    await asyncio.sleep(_RETRY_CONNECT_S)
    except TimeoutError:
        pass
    except BaseException:
        await stop()
        raise
    finally:
        _complaints.connecting -= 1
    await stop()
    raise UserError(_explain(_complaints.cause, settings))


def _explain(cause: BaseException | None, settings: Settings) -> str:
    where = f"Kafka at {settings.kafka_bootstrap}"
    if isinstance(cause, _REFUSALS):
        return (
            f"{where} refused the login of {settings.kafka_sasl_username!r} by {settings.kafka_sasl_mechanism}: "
            "check DEPTHCAST_KAFKA_SASL_MECHANISM, _USERNAME and _PASSWORD"
        )
    if isinstance(cause, ssl.SSLError):
        return (
            f"cannot reach {where}: TLS failed ({cause.reason or cause}); "
            "check DEPTHCAST_KAFKA_SECURITY_PROTOCOL and DEPTHCAST_KAFKA_CA_FILE"
        )
    reason = f"no answer within {settings.kafka_connect_timeout_ms / 1000:g} s"
    hint = "start it, or set DEPTHCAST_KAFKA_BOOTSTRAP to its HOST:PORT"
    if isinstance(cause, socket.gaierror):
        reason = "unknown host"
    elif isinstance(cause, ConnectionRefusedError) or "Connect call failed" in str(cause):  # of one address, of all
        reason = "connection refused"
    elif isinstance(cause, KafkaError | ConnectionError):
        reason, hint = "it hangs up", f"check that it speaks {settings.kafka_security_protocol} there"
    return f"cannot reach {where}: {reason}; {hint}"
