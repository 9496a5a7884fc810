"""The opening handshake of the stream endpoint (RFC 6455 section 4.2): a request in, a response out. No I/O."""

import logging
import time
from collections.abc import Sequence
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import urlsplit

from websockets.datastructures import Headers
from websockets.exceptions import InvalidHandshake, InvalidHeader, NegotiationError
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


class Accepted(NamedTuple):
    """The head of the 101 response, and the codec that the client chose."""

    head: bytes
    codec: Codec


@lru_cache(1)
def date_of(second: int) -> str:
    """The Date header (RFC 9110 section 5.6.7): written anew for each handshake it is a twentieth of its time."""
    return formatdate(second, usegmt=True)


def path_of(target: str) -> str:
    """The path of a request target, in origin form or in absolute form (RFC 9112 section 3.2); "" of no valid one."""
    try:
        return urlsplit(target).path
    except ValueError:
        return ""


def respond(request: Request) -> Accepted | Response:
    """Answer an upgrade request; what is wrong with it is a plain HTTP error."""
    protocol = _negotiator
    if path_of(request.path) != PATH:
        return protocol.reject(HTTPStatus.NOT_FOUND, f"There is no stream here; connect to {PATH}.\n")
    versions = request.headers.get_all("Sec-WebSocket-Version")
    if versions and versions != ["13"]:  # section 4.4
        response = protocol.reject(HTTPStatus.UPGRADE_REQUIRED, "Only WebSocket version 13 is spoken here.\n")
        response.headers["Sec-WebSocket-Version"] = "13"
        return response
    if len(request.headers.get_all("Host")) != 1:  # section 4.2.1, and RFC 9112 section 3.2
        return protocol.reject(HTTPStatus.BAD_REQUEST, "Send one Host header.\n")
    if "Transfer-Encoding" in request.headers or not set(request.headers.get_all("Content-Length")) <= {"0"}:
        return protocol.reject(HTTPStatus.BAD_REQUEST, "A WebSocket handshake has no body.\n")
    try:
        for value in request.headers.get_all("Sec-WebSocket-Extensions"):  # section 9.1; all of them are declined
            parse_extension(value)
    except InvalidHeader as error:
        return protocol.reject(HTTPStatus.BAD_REQUEST, f"{error}.\n")
    try:
        accept, _, subprotocol = protocol.process_request(request)
    except InvalidHandshake:
        return protocol.accept(request)  # finds it again, and says it as a response
    assert subprotocol is not None  # noqa: S101 - `select_subprotocol` chooses one or raises
    head = (  # as `accept` writes it, in a fifth of the time
        f"HTTP/1.1 101 Switching Protocols\r\nDate: {date_of(int(time.time()))}\r\n"
        f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n"
        f"Sec-WebSocket-Protocol: {subprotocol}\r\n\r\n"
    )
    return Accepted(head.encode(), CODECS[subprotocol])


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
