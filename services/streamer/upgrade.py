"""The HTTP side of the public port: uvicorn's protocol with bounds on the request head, and the way to a stream.

What differs from uvicorn's own:
- A request has a deadline to arrive and a bound on its size: a real 408, 431 or 413, and the end. So has its response.
- Requests wait in the `Lobby`, so that a crowd of them does not hold up who is there.
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

from services.auth.store import StoreDown
from services.streamer.admission import RETRY_AFTER_S, Full
from services.streamer.clients import Clients
from services.streamer.entrance import Denied, Ticketed, address_of, admit, enter
from services.streamer.handshake import Accepted, plain, respond, unavailable
from services.streamer.lobby import Lobby
from services.streamer.ws import Connection
from streamer.access import Access


class StreamHttpProtocol(HttpToolsProtocol):
    """One TCP connection until it is a stream; for HTTP requests, all of its life.

    Args:
        clients: What stream connections share.
        lobby: What the sockets share until then.
    """

    def __init__(
        self,
        clients: Clients,
        lobby: Lobby,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._clients = clients
        self._lobby = lobby
        self._waiting = b""  # what arrived since the last turn in the lobby
        self._limits = clients.hub.limits
        self._begun = self._completed = 0  # requests
        self._bytes = 0  # of the one that arrives, in reads that hold nothing else
        self._in_head = False
        self._for_stream = False
        self._arriving = False
        self._overdue = False
        self._refused = False
        self._redeeming: asyncio.Task[None] | None = None
        self._address = ""  # of the client, once it asks for a stream
        self._early = b""  # what came before the stream was open

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.connections.add(self)
        self.transport = transport
        self.flow = FlowControl(transport)
        self.scheme = "https" if is_ssl(transport) else "http"
        self._clients.requests.begin(self)
        if self._clients.admission.crowded(len(self.connections)):
            self._clients.limited("sockets")
            self._refused = True
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._waiting = b""
        self._clients.requests.stop(self)
        self._clients.endings.stop(self)
        if self._redeeming is not None:
            self._redeeming.cancel()
        super().connection_lost(exc)

    def abort(self) -> None:
        """A deadline has passed."""
        if self._refused:  # the peer has its answer
            self.transport.abort()
            return
        if self._waiting:  # perhaps all has come; that it was not looked at yet is our doing
            self._overdue = True
            return
        self._clients.limited("request_timeout")
        if self._arriving:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, "the request did not arrive in time")
        else:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self._redeeming is not None:  # TLS had it already when reading was paused
            self._early += data
            return
        self._unset_keepalive_if_required()
        self._clients.requests.begin(self)
        if not self._waiting:
            self._lobby.enter(self)
        self._waiting += data
        if len(self._waiting) > self._limits.head_bytes_max:  # what waits is bounded
            self.serve()

    def eof_received(self) -> None:
        self.serve()

    def serve(self) -> None:
        """Take what waits in the lobby."""
        data, self._waiting = self._waiting, b""
        if not data or self._refused:
            return
        completed = self._completed
        try:
            self._take(data)
        except Exception:
            self.transport.abort()  # as the event loop does for an error in `data_received`
            raise
        if self._overdue and self._completed == completed and not self._refused:
            self.abort()
        self._overdue = False

    def _take(self, data: bytes) -> None:
        begun = self._begun
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._upgrade(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError:
            self._refuse(HTTPStatus.BAD_REQUEST, "this is not an HTTP/1.1 request")
            return
        if self._arriving and self._begun == begun:
            self._bytes += len(data)
            self._check_size()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._begun += 1
        self._bytes = 0
        self._in_head = self._arriving = True
        self._clients.requests.begin(self)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._bytes = len(self.url) + sum([len(name) + len(value) + 4 for name, value in self.headers])
        if self._bytes > self._limits.head_bytes_max or len(self.headers) > self._limits.headers_max:
            self._refuse_head()
        elif (
            max([int(value) for name, value in self.headers if name == b"content-length"], default=0)
            > self._limits.body_bytes_max
        ):
            self._refuse_body()
        elif self.parser.get_http_version() == "1.1" and [name for name, _ in self.headers].count(b"host") != 1:
            self._refuse(HTTPStatus.BAD_REQUEST, "send one Host header")  # RFC 9112 section 3.2
        if not self._refused:
            self._for_stream = self.parser.should_upgrade() and self._asks_for_stream()
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._arriving = False
        self._completed += 1
        self._clients.requests.stop(self)
        if not self._refused:
            super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._clients.requests.begin(self)

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self._arriving:
            self._clients.requests.stop(self)

    def _check_size(self) -> None:
        limits = self._limits
        if self._in_head and (self._bytes > limits.head_bytes_max or len(self.headers) > limits.headers_max):
            self._refuse_head()
        elif self._bytes > limits.head_bytes_max + limits.body_bytes_max:  # with chunk headers and trailers
            self._refuse_body()

    def _refuse_body(self) -> None:
        self._clients.limited("body_size")
        text = f"a body may have {self._limits.body_bytes_max} bytes"
        self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, text)

    def _refuse_head(self) -> None:
        limits = self._limits
        self._clients.limited("head_size")
        text = f"the request head may have {limits.head_bytes_max} bytes and {limits.headers_max} headers"
        self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, text)

    def _refuse(self, status: HTTPStatus, text: str) -> None:
        if self._refused:
            return
        if self._answering():
            self._last_answer()
        else:
            self._end_with(plain(status, text))

    def _answering(self) -> bool:
        """Whether requests wait for their response: another one now would be taken for theirs."""
        return self.cycle is not None and not self.cycle.response_complete  # type: ignore[redundant-expr]  # None at first

    def _last_answer(self) -> None:
        """Obey nothing more; the connection ends with the response to the last request."""
        self._refused = True
        self.cycle.keep_alive = False
        self._clients.endings.start(self)

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
        if not self._should_upgrade():  # to HTTP/2: answered as if it had not asked, which RFC 9110 section 7.8 allows
            self._last_answer()
            return
        if self._answering() or self.flow.write_paused:  # our first bytes would come before, or amid, its responses
            self._last_answer()
            return
        clients, request = self._clients, self._request()
        response = respond(request)
        if isinstance(response, Response):
            self._deny(response)
            return
        self._address = address_of(clients.gate, self._peer(), request.headers.get_all("X-Forwarded-For"))
        if full := self._full(clients.admission.ask(self._address, clients.clock.now_ns())):
            self._deny(full)
            return
        entry = enter(clients.gate, request, clients.clock.now_ns())
        if isinstance(entry, Denied):
            self._deny(plain(entry.status, entry.text))
        elif isinstance(entry, Ticketed):
            self.transport.pause_reading()
            self._early = rest
            clients.requests.start(self)
            self._redeeming = asyncio.create_task(self._redeem(entry.ticket, response), name="ticket")
        else:
            self._open(response, rest, entry)

    def _should_upgrade(self) -> bool:
        return self._for_stream  # asked three times

    def _asks_for_stream(self) -> bool:
        """As uvicorn, but a list may come in several lines, and with white space (RFC 9110 sections 5.3 and 5.5)."""
        tokens = [token for name, value in self.headers if name == b"connection" for token in value.lower().split(b",")]
        protocols = [value.strip(b" \t").lower() for name, value in self.headers if name == b"upgrade"]
        return protocols == [b"websocket"] and b"upgrade" in [token.strip(b" \t") for token in tokens]

    def _full(self, full: Full | None) -> Response | None:
        """Why no connection is taken now; None when one is."""
        clients = self._clients
        if reason := clients.why_not_ready():
            return unavailable(HTTPStatus.SERVICE_UNAVAILABLE, reason, RETRY_AFTER_S)
        if full is not None:
            clients.limited(full.limit)
            return unavailable(full.status, full.reason, full.retry_after_s)
        return None

    async def _redeem(self, ticket: str, response: Accepted) -> None:
        clients, entry = self._clients, None
        with suppress(StoreDown):
            entry = admit(clients.gate, await clients.gate.redeem(ticket))
        clients.requests.stop(self)
        self.transport.resume_reading()
        if entry is None:  # who cannot be checked does not come in
            reason = "tickets cannot be redeemed now"
            self._deny(unavailable(HTTPStatus.SERVICE_UNAVAILABLE, reason, RETRY_AFTER_S))
        elif isinstance(entry, Denied):
            self._deny(plain(entry.status, entry.text))
        elif full := self._full(clients.admission.full(self._address)):
            self._deny(full)
        else:
            self._open(response, self._early, entry)

    def _deny(self, response: Response) -> None:
        self._clients.metrics.handshakes.labels(str(int(response.status_code))).inc()
        self._end_with(response)

    def _peer(self) -> str:
        peer = self.transport.get_extra_info("peername")
        return str(peer[0]) if peer else ""

    def _open(self, response: Accepted, rest: bytes, access: Access | None) -> None:
        self._clients.accepted.inc()
        connection = Connection(self._clients, response.codec, self.transport, self._address, access)
        self.connections.discard(self)
        self.transport.set_protocol(connection)
        self.parser = None  # type: ignore[assignment]  # it refers to us: without this the pair would live until the next garbage collection
        connection.open(response.head)
        if rest:
            connection.data_received(rest)

    def _request(self) -> Request:
        headers = Headers()
        for name, value in self.headers:
            headers[name.decode("latin-1")] = value.decode("latin-1").strip(" \t")
        return Request(
            self.url.decode("latin-1"),
            headers,
            self.scope["method"],
            f"HTTP/{self.scope['http_version']}",
        )
