"""The response that the streamer writes itself is the one that the library would write."""

import time
from email.utils import parsedate_to_datetime

import pytest
from websockets.datastructures import Headers
from websockets.http11 import Request
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from protos.codec import CODECS
from services.streamer.handshake import PATH, Accepted, date_of, respond


def upgrade(offered: str) -> Request:
    headers = {
        "Host": "example.org",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Protocol": offered,
    }
    return Request(PATH, Headers(headers), "GET", "HTTP/1.1")


def without_date(head: bytes) -> tuple[list[str], list[str]]:
    lines = head.decode().split("\r\n")
    return [line for line in lines if not line.startswith("Date: ")], [line for line in lines if line[:6] == "Date: "]


@pytest.mark.parametrize("name", CODECS)
def test_the_head_is_as_the_library_writes_it(name: str) -> None:
    request = upgrade(f"{name}, chat")
    accepted = respond(request)
    assert isinstance(accepted, Accepted)
    assert accepted.codec is CODECS[name]
    library = ServerProtocol(subprotocols=[Subprotocol(name)]).accept(request).serialize()
    lines, (date,) = without_date(accepted.head)
    assert lines == without_date(library)[0]
    assert abs(parsedate_to_datetime(date[6:]).timestamp() - time.time()) < 5


def test_the_date_moves_on() -> None:
    assert date_of(784_111_777) == "Sun, 06 Nov 1994 08:49:37 GMT"
    assert date_of(784_111_778) == "Sun, 06 Nov 1994 08:49:38 GMT"
