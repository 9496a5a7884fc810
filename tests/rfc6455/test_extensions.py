"""Extensions: offers of compression are declined (group 15), whatever their parameters (group 16).

permessage-deflate (RFC 7692) would cost 27 to 90 KiB per connection and gains nothing on binary differences; so no
frame of ours has RSV1, and none of the peer's may.
"""

import pytest

from protos.codec import Codec
from tests.rfc6455.peer import Say, frame, listen, opened
from tests.rfc6455.test_handshake import lines, respond
from tests.support.endpoint import Rig

pytestmark = [pytest.mark.rfc6455, pytest.mark.asyncio(loop_scope="module")]

OFFERS = {
    "as Chromium does": "permessage-deflate; client_max_window_bits",
    "without parameters": "permessage-deflate",
    "no context takeover": "permessage-deflate; client_no_context_takeover; server_no_context_takeover",
    "a small window": "permessage-deflate; server_max_window_bits=8",
    "a window in quotes": 'permessage-deflate; server_max_window_bits="10"',
    "a window out of range": "permessage-deflate; server_max_window_bits=99",
    "an unknown parameter": "permessage-deflate; level=9",
    "a parameter twice": "permessage-deflate; client_no_context_takeover; client_no_context_takeover",
    "with a fallback": "permessage-deflate; server_max_window_bits=10, permessage-deflate",
    "an older extension": "x-webkit-deflate-frame",
    "another extension": "permessage-bzip2, mux; max-channels=4",
    "spaces everywhere": " permessage-deflate ;  client_max_window_bits = 12 ",
}


@pytest.mark.parametrize("case", OFFERS)
async def test_9_1_an_offer_is_declined_by_not_naming_it(rig: Rig, codec: Codec, case: str) -> None:
    raw = await opened(rig, codec, sec_websocket_extensions=OFFERS[case])
    raw.writer.write(Say(codec).command(7) + Say(codec).command(4242))
    assert (await listen(raw, codec)).replies == [7]
    raw.writer.write(frame(Say(codec).opcode, b"\xaa\x56\x4a\x01\x00", rsv=4))
    assert (await listen(raw, codec)).close == 1002, "5.2: RSV1 means nothing here"


@pytest.mark.parametrize("case", OFFERS)
async def test_9_1_the_response_has_no_extension(rig: Rig, case: str) -> None:
    status, headers = await respond(rig, lines(b"sec-websocket-extensions: " + OFFERS[case].encode()))
    assert status == 101
    assert "sec-websocket-extensions" not in headers


@pytest.mark.parametrize("offer", ["permessage-deflate;", "; =", "a b", 'x; y="z', "x; y=z=", "\xe4", ";", "x; y=,"])
async def test_9_1_a_malformed_offer_fails_the_handshake(rig: Rig, offer: str) -> None:
    status, _ = await respond(rig, lines(b"sec-websocket-extensions: " + offer.encode("latin-1")))
    assert status == 400
