"""The HTTP side of the public port: uvicorn's protocol with bounds on the request head, and the way to a stream.

What differs from uvicorn's own:
- The head has a deadline, a size and a number of headers; what exceeds them gets a real 431.
- Bytes that arrive together with the upgrade request reach the stream connection; uvicorn loses them.
- The upgrade request is not written out and parsed again.
"""

import asyncio
from contextlib import suppress
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.utils import is_ssl
from uvicorn.server import ServerState
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from protos.codec import Codec
from services.auth.store import StoreDown
from services.streamer.clients import Clients
from services.streamer.entrance import Denied, Ticketed, admit, enter
from services.streamer.handshake import plain, respond, unavailable
from services.streamer.ws import Connection
from streamer.access import Access

HEAD_BYTES_MAX = 16 * 1024
"""Request line and headers. A token of 4 KiB and a browser's cookies fit."""
HEADERS_MAX = 100
RETRY_AFTER_S = 2


class StreamHttpProtocol(HttpToolsProtocol):
    """One TCP connection until it is a stream; for HTTP requests, all of its life.

    Args:
        clients: What stream connections share.
    """

    def __init__(
        self,
        clients: Clients,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._clients = clients
        self._head_bytes = 0
        self._in_head = False
        self._refused = False
        self._redeeming: asyncio.Task[None] | None = None
        self._early = b""  # what came before the stream was open

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.connections.add(self)
        self.transport = transport
        self.flow = FlowControl(transport)
        self.scheme = "https" if is_ssl(transport) else "http"
        self._clients.heads.start(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._clients.heads.stop(self)
        self._clients.endings.stop(self)
        if self._redeeming is not None:
            self._redeeming.cancel()
        super().connection_lost(exc)

    def abort(self) -> None:
        """The deadline has passed."""
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self._redeeming is not None:  # TLS had it already when reading was paused
            self._early += data
            return
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._should_upgrade():
                self._upgrade(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError:
            self._refuse(HTTPStatus.BAD_REQUEST, "this is not an HTTP/1.1 request")
            return
        if self._in_head:
            self._head_bytes += len(data)
            self._check_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = 0
        self._clients.heads.start(self)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._clients.heads.stop(self)
        self._head_bytes = len(self.url) + sum([len(name) + len(value) + 4 for name, value in self.headers])
        self._check_head()
        if not self._refused:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._refused:
            super().on_message_complete()

    def _check_head(self) -> None:
        if self._head_bytes > HEAD_BYTES_MAX or len(self.headers) > HEADERS_MAX:
            text = f"the request head may have {HEAD_BYTES_MAX} bytes and {HEADERS_MAX} headers"
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, text)

    def _refuse(self, status: HTTPStatus, text: str) -> None:
        if not self._refused:
            self._end_with(plain(status, text))

    def _end_with(self, response: Response) -> None:
        """Send ``response`` and half-close: closing at once, with input unread, would reset it away."""
        self._refused = True
        self.transport.write(response.serialize())
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self._clients.endings.start(self)
        else:
            self.transport.close()

    def _upgrade(self, rest: bytes) -> None:
        if self._refused:  # for its head, by a callback of the parser
            return
        clients, request = self._clients, self._request()
        response, codec = respond(request)
        if codec is None:
            self._deny(response)
            return
        if reason := clients.why_closed():
            self._deny(unavailable(reason, RETRY_AFTER_S))
            return
        entry = enter(clients.gate, request, clients.clock.now_ns())
        if isinstance(entry, Denied):
            self._deny(plain(entry.status, entry.text))
        elif isinstance(entry, Ticketed):
            self.transport.pause_reading()
            self._early = rest
            clients.heads.start(self)
            self._redeeming = asyncio.create_task(self._redeem(entry.ticket, response, codec), name="ticket")
        else:
            self._open(response, codec, rest, entry)

    async def _redeem(self, ticket: str, response: Response, codec: Codec) -> None:
        clients, entry = self._clients, None
        with suppress(StoreDown):
            entry = admit(clients.gate, await clients.gate.redeem(ticket))
        clients.heads.stop(self)
        self.transport.resume_reading()
        if entry is None:  # who cannot be checked does not come in
            self._deny(unavailable("tickets cannot be redeemed now", RETRY_AFTER_S))
        elif isinstance(entry, Denied):
            self._deny(plain(entry.status, entry.text))
        elif reason := clients.why_closed():
            self._deny(unavailable(reason, RETRY_AFTER_S))
        else:
            self._open(response, codec, self._early, entry)

    def _deny(self, response: Response) -> None:
        self._clients.metrics.handshakes.labels(str(int(response.status_code))).inc()
        self._end_with(response)

    def _open(self, response: Response, codec: Codec, rest: bytes, access: Access | None) -> None:
        self._clients.metrics.handshakes.labels("101").inc()
        connection = Connection(self._clients, codec, self.transport, access)
        self.connections.discard(self)
        self.transport.set_protocol(connection)
        self.parser = None  # type: ignore[assignment]  # it refers to us: without this the pair would live until the next garbage collection
        connection.open(response.serialize())
        if rest:
            connection.data_received(rest)

    def _request(self) -> Request:
        return Request(
            self.url.decode("latin-1"),
            Headers([(name.decode("latin-1"), value.decode("latin-1")) for name, value in self.scope["headers"]]),
            self.scope["method"],
            f"HTTP/{self.scope['http_version']}",
        )
