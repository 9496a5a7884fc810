"""A uvicorn server that our own process starts and stops, on a socket that we open ourselves.

uvicorn's own ``serve()`` takes over SIGTERM and then closes every socket at once; a streamer drains instead.
"""

import asyncio
import errno
import os
import resource
import socket
import ssl
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn

from services.errors import UserError

BACKLOG = 4096
"""Connections the kernel holds until we accept them: all of a pod's clients may come back at once. The kernel cuts it
to net.core.somaxconn."""
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""For TLS 1.2; those of 1.3 are all good. uvicorn's default takes what TLS 1.0 had."""


def raise_descriptor_limit() -> None:
    """Allow this process as many open files as it may have at most: each connection is one, and a common default is
    1,024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def listen(host: str, port: int, setting: str) -> socket.socket:
    """As `bind`, and the kernel takes connections from now on."""
    listener = bind(host, port, setting)
    listener.listen(BACKLOG)
    return listener


def bind(host: str, port: int, setting: str, *, shared: bool = False) -> socket.socket:
    """Take a TCP port; 0 takes a free one. Nobody can connect before `Server.start`.

    Args:
        setting: The variable that sets the port, for the message.
        shared: Other processes of ours may take it too (SO_REUSEPORT): the kernel spreads connections over those that
            listen.

    Raises:
        UserError: The port is taken, or the address is not ours.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"port {port} is taken; stop what uses it or set {setting} to another one") from None
        raise UserError(f"cannot listen on {host}:{port}: {os.strerror(error.errno or 0)}; set {setting}") from None
    return listener


def tls_options(certfile: Path | None, keyfile: Path | None) -> dict[str, str]:
    """Options of `Server` for TLS; none without a certificate.

    Raises:
        UserError: The files are no certificate and its key.
    """
    if certfile is None:
        if keyfile is not None:
            raise UserError("DEPTHCAST_SSL_KEYFILE needs DEPTHCAST_SSL_CERTFILE")
        return {}
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certfile, keyfile)
    except (OSError, ssl.SSLError) as error:
        reason = getattr(error, "reason", None) or error.strerror
        raise UserError(f"cannot use {certfile} with key {keyfile or certfile}: {reason}") from None
    options = {"ssl_certfile": str(certfile), "ssl_ciphers": CIPHERS}
    return options | ({"ssl_keyfile": str(keyfile)} if keyfile else {})


class Server:
    """One ASGI application on one listening socket.

    Args:
        tls_timeout_s: For a peer's TLS handshake, before which no protocol of ours knows of it; asyncio's own is 60 s.
        options: Further settings of `uvicorn.Config`.
    """

    def __init__(
        self,
        app: Any,  # noqa: ANN401 - uvicorn's types
        listener: socket.socket,
        tls_timeout_s: float = 10.0,
        **options: Any,  # noqa: ANN401
    ) -> None:
        defaults: dict[str, Any] = {"ws": "none", "http": "httptools", "timeout_keep_alive": 5}
        self._config = uvicorn.Config(
            app,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=1,
            backlog=BACKLOG,
            **{**defaults, **options},
        )
        self._server = uvicorn.Server(self._config)
        self._listener = listener
        self._tls_timeout_s = tls_timeout_s
        self.port: int = listener.getsockname()[1]
        self._loop: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Accept connections from now on."""
        config, server = self._config, self._server
        config.load()
        server.lifespan = config.lifespan_class(config)
        await server.startup(sockets=[])  # it would open ours without a deadline for TLS
        protocol = partial(
            config.http_protocol_class,  # type: ignore[call-arg]  # as in uvicorn itself
            config=config,
            server_state=server.server_state,
            app_state=server.lifespan.state,
        )
        listening = await asyncio.get_running_loop().create_server(
            protocol,
            sock=self._listener,
            backlog=BACKLOG,
            ssl=config.ssl,
            ssl_handshake_timeout=self._tls_timeout_s if config.ssl else None,
        )
        server.servers.append(listening)
        self._loop = asyncio.create_task(self._server.main_loop(), name="uvicorn")

    def stop_accepting(self) -> None:
        """Close the listening socket; open connections go on."""
        for server in self._server.servers:
            server.close()
        self._listener.close()

    async def stop(self) -> None:
        """Close the listening socket, let running requests end (1 s at most), close the connections."""
        if self._loop is None:
            self._listener.close()
            return
        self._server.should_exit = True
        await self._loop
        await self._server.shutdown(sockets=[self._listener])
