"""The opening handshake of the stream endpoint (RFC 6455 section 4.2): a request in, a response out. No I/O."""

import logging
from collections.abc import Sequence
from http import HTTPStatus
from urllib.parse import urlsplit

from websockets.datastructures import Headers
from websockets.exceptions import InvalidHeader, NegotiationError
from websockets.headers import parse_extension
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from protos.codec import CODECS, Codec

LOGGER = logging.getLogger("depthcast.websocket")
LOGGER.setLevel(logging.WARNING)  # `websockets` logs each frame at debug, and a frame may hold a token

PATH = "/v1/stream"
OFFERS = ", ".join(CODECS)


def select_subprotocol(_protocol: ServerProtocol, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    """The first that the client offers and we speak: its order is its preference."""
    for name in offered:
        if name in CODECS:
            return name
    raise NegotiationError(f"offer a subprotocol in Sec-WebSocket-Protocol, one of {OFFERS}")


_negotiator = ServerProtocol(select_subprotocol=select_subprotocol, logger=LOGGER)
"""Accepts and rejects without remembering anything: to make one for each handshake took a third of its time."""


def path_of(target: str) -> str:
    """The path of a request target, in origin form or in absolute form (RFC 9112 section 3.2); "" of no valid one."""
    try:
        return urlsplit(target).path
    except ValueError:
        return ""


def respond(request: Request) -> tuple[Response, Codec | None]:
    """Answer an upgrade request.

    Returns:
        101 and the codec that the client chose; or what is wrong as a plain HTTP error, and None.
    """
    protocol = _negotiator
    if path_of(request.path) != PATH:
        return protocol.reject(HTTPStatus.NOT_FOUND, f"There is no stream here; connect to {PATH}.\n"), None
    versions = request.headers.get_all("Sec-WebSocket-Version")
    if versions and versions != ["13"]:  # section 4.4
        response = protocol.reject(HTTPStatus.UPGRADE_REQUIRED, "Only WebSocket version 13 is spoken here.\n")
        response.headers["Sec-WebSocket-Version"] = "13"
        return response, None
    if len(request.headers.get_all("Host")) != 1:  # section 4.2.1, and RFC 9112 section 3.2
        return protocol.reject(HTTPStatus.BAD_REQUEST, "Send one Host header.\n"), None
    if "Transfer-Encoding" in request.headers or not set(request.headers.get_all("Content-Length")) <= {"0"}:
        return protocol.reject(HTTPStatus.BAD_REQUEST, "A WebSocket handshake has no body.\n"), None
    try:
        for value in request.headers.get_all("Sec-WebSocket-Extensions"):  # section 9.1; all of them are declined
            parse_extension(value)
    except InvalidHeader as error:
        return protocol.reject(HTTPStatus.BAD_REQUEST, f"{error}.\n"), None
    response = protocol.accept(request)
    if response.status_code != HTTPStatus.SWITCHING_PROTOCOLS or protocol.subprotocol is None:
        return response, None
    return response, CODECS[protocol.subprotocol]


def plain(status: HTTPStatus, text: str, **headers: str) -> Response:
    """A refusal in words, after which the connection ends.

    Args:
        headers: More of them, ``_`` for ``-``.
    """
    body = text.encode() + b"\n"
    found = Headers(
        {"Connection": "close", "Content-Length": str(len(body)), "Content-Type": "text/plain; charset=utf-8"}
    )
    if status is HTTPStatus.UNAUTHORIZED:
        found["WWW-Authenticate"] = "Bearer"
    for name, value in headers.items():
        found[name.replace("_", "-")] = value
    return Response(status, status.phrase, found, body)


def unavailable(status: HTTPStatus, reason: str, retry_after_s: int) -> Response:
    """503 or 429: this pod does not take the connection now."""
    return plain(status, f"{reason}; come back in {retry_after_s} s.", Retry_After=str(retry_after_s))
