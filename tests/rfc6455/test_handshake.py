"""The opening handshake (group 14), with the requests that nobody should send."""

import pytest

from protos.codec import CODECS
from tests.support.endpoint import PROTO, Raw, Rig, request

pytestmark = [pytest.mark.rfc6455, pytest.mark.asyncio(loop_scope="module")]

EXAMPLE_KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ALL = ", ".join(CODECS)


def lines(*changed: bytes, without: bytes = b"") -> bytes:
    """A handshake without the headers whose lines begin so, and with these."""
    head, *rest = request().removesuffix(b"\r\n\r\n").split(b"\r\n")
    kept = [line for line in rest if not (without and line.startswith(without))]
    return b"\r\n".join((head, *kept, *changed)) + b"\r\n\r\n"


async def respond(rig: Rig, data: bytes) -> tuple[int, dict[str, str]]:
    raw = await Raw.connect(rig)
    raw.writer.write(data)
    status, head = await raw.head()
    pairs = [line.split(": ", 1) for line in head.decode().split("\r\n")[1:] if line]
    names = [name.lower() for name, _ in pairs if name.lower() != "connection"]
    assert len(set(names)) == len(names), "no header twice"
    if b"connection: close" in head.lower():
        await raw.end()
    raw.writer.close()
    return status, {name.lower(): value for name, value in pairs}


async def test_4_2_2_the_response_to_the_example_of_the_rfc(rig: Rig) -> None:
    status, headers = await respond(rig, request(sec_websocket_key=EXAMPLE_KEY))
    assert status == 101
    assert headers["sec-websocket-accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    assert headers["upgrade"].lower() == "websocket"
    assert headers["connection"].lower() == "upgrade"
    assert headers["sec-websocket-protocol"] == PROTO.name
    assert headers.keys() <= {
        "upgrade",
        "connection",
        "sec-websocket-accept",
        "sec-websocket-protocol",
        "date",
        "server",
    }


ACCEPTED = {
    "4.2.1 names of headers in any case": lines(
        b"SEC-WEBSOCKET-KEY: " + EXAMPLE_KEY.encode(), without=b"sec-websocket-key"
    ),
    "4.2.1 Upgrade in any case": request(upgrade="WebSocket"),
    "4.2.1 Connection in any case": request(connection="UPGRADE"),
    "4.2.1 Connection with other tokens": request(connection="keep-alive, Upgrade"),
    "4.2.1 Connection in two lines": lines(b"connection: keep-alive"),
    "4.1 an empty Connection token": request(connection=",, upgrade ,"),
    "4.2.1 whitespace around values": lines(b"sec-websocket-version: \t 13 \t", without=b"sec-websocket-version"),
    "4.2.1 unknown headers": lines(b"x-anything: goes", b"cookie: a=b; c=d", b"user-agent: \xe4\xf6\xfc"),
    "4.2.1 a header line of 12 KiB": request(cookie="x" * 12_000),
    "4.2.1 an authority as Host": request(host="example.org:8080"),
    "4.2.1 an empty Host": request(host=""),
    "4.2.1 a query": request("/v1/stream?symbol=BTC%20USDT"),
    "11.3.4 all subprotocols": request(sec_websocket_protocol=ALL),
    "11.3.4 subprotocols in several lines": lines(*(b"sec-websocket-protocol: " + n.encode() for n in CODECS)),
    "11.3.4 ours among others": request(sec_websocket_protocol=f"chat, {PROTO.name}, superchat"),
    "RFC 9110 a body of nothing": request(content_length="0"),
    "RFC 9112 the absolute form": request("http://example.org/v1/stream"),
    "RFC 9112 an empty line before": b"\r\n" + request(),
}


@pytest.mark.parametrize("case", ACCEPTED)
async def test_accepted(rig: Rig, case: str) -> None:
    status, headers = await respond(rig, ACCEPTED[case])
    assert status == 101
    assert headers["sec-websocket-protocol"] in CODECS


@pytest.mark.parametrize("offers", [[3, 1, 2], [2, 3, 1], [1, 2], [3]])
async def test_11_3_4_the_first_subprotocol_of_the_client_that_we_speak(rig: Rig, offers: list[int]) -> None:
    names = [list(CODECS)[n - 1] for n in offers]
    _, headers = await respond(rig, request(sec_websocket_protocol=", ".join(["chat", *names])))
    assert headers["sec-websocket-protocol"] == names[0]


REFUSED = {
    "4.4 version 8": (request(sec_websocket_version="8"), 426),
    "4.4 version 0": (request(sec_websocket_version="0"), 426),
    "4.4 a version from the future": (request(sec_websocket_version="14"), 426),
    "4.4 two versions in one line": (request(sec_websocket_version="13, 8"), 426),
    "4.4 two versions in two lines": (lines(b"sec-websocket-version: 8"), 426),
    "4.2.1 a version that is no number": (request(sec_websocket_version="thirteen"), 426),
    "4.2.1 no version": (request(sec_websocket_version=None), 400),
    "4.2.1 no key": (request(sec_websocket_key=None), 400),
    "4.2.1 an empty key": (request(sec_websocket_key=""), 400),
    "4.2.1 a short key": (request(sec_websocket_key="c2hvcnQ="), 400),
    "4.2.1 a key of 15 bytes": (request(sec_websocket_key="eHh4eHh4eHh4eHh4eHh4"), 400),
    "4.2.1 a key of 17 bytes": (request(sec_websocket_key="eHh4eHh4eHh4eHh4eHh4eHg="), 400),
    "4.2.1 a key that is no base64": (request(sec_websocket_key="!" * 24), 400),
    "11.3.1 two keys": (lines(b"sec-websocket-key: " + EXAMPLE_KEY.encode()), 400),
    "4.2.1 no Upgrade": (request(upgrade=None), 426),
    "4.2.1 Upgrade to something else": (request(upgrade="h2c"), 426),
    "4.2.1 Upgrade to two things": (request(upgrade="h2c, websocket"), 426),
    "4.2.1 no Connection": (request(connection=None), 426),
    "4.2.1 Connection without upgrade": (request(connection="keep-alive"), 426),
    "11.3.4 no subprotocol": (request(sec_websocket_protocol=None), 400),
    "11.3.4 an unknown subprotocol": (request(sec_websocket_protocol="chat"), 400),
    "11.3.4 ours in capitals": (request(sec_websocket_protocol=PROTO.name.upper()), 400),
    "4.1 a subprotocol that is no token": (request(sec_websocket_protocol="a b"), 400),
    "4.2.1 POST": (request(method="POST"), 405),
    "4.2.1 HTTP/1.0": (request(version="HTTP/1.0"), 505),
    "4.2.1 HTTP/0.9": (request(version="HTTP/0.9"), 505),
    "4.2.1 HTTP/2.0": (request(version="HTTP/2.0"), 505),
    "4.2.1 no Host": (request(host=None), 400),
    "RFC 9112 two Hosts": (lines(b"host: y"), 400),
    "RFC 9112 a length and an encoding": (request(content_length="5", transfer_encoding="chunked"), 400),
    "RFC 9112 two lengths": (lines(b"content-length: 5", b"content-length: 6"), 400),
    "RFC 9112 a negative length": (request(content_length="-1"), 400),
    "RFC 9110 a body": (request(content_length="5"), 400),
    "RFC 9112 an encoding": (request(transfer_encoding="chunked"), 400),
    "RFC 9112 a folded header": (lines(b"x: a\r\n b"), 400),
    "RFC 9112 a space before the colon": (lines(b"x : a"), 400),
    "RFC 9112 a line without a colon": (lines(b"nonsense"), 400),
    "RFC 9110 a NUL in a value": (lines(b"x: a\0b"), 400),
    "RFC 9112 bare CR": (lines(b"x: a\rb: c"), 400),
    "3 another path": (request("/stream"), 404),
    "3 a longer path": (request("/v1/stream/"), 404),
    "RFC 6585 101 headers": (request(**{f"x_{n}": "1" for n in range(95)}), 431),
    "RFC 6585 thousands of headers": (request(**{f"x{n}": "1" for n in range(5_000)}), 431),
    "RFC 6585 a header of 17 KiB": (request(cookie="x" * 17_000), 431),
    "RFC 6585 a header of 1 MiB": (request(cookie="x" * (1 << 20)), 431),
    "RFC 6585 a target of 17 KiB": (request("/v1/stream?" + "x" * 17_000), 431),
    "a TLS hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 32 + b"\r\n\r\n", 400),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_refused(rig: Rig, case: str) -> None:
    data, status = REFUSED[case]
    before = rig.sample("connects_total")
    got, headers = await respond(rig, data)
    assert got == status
    assert "sec-websocket-accept" not in headers
    if status == 426:
        assert headers.get("sec-websocket-version", "13") == "13"
        assert headers.get("upgrade", "websocket").lower() == "websocket"
    if case.startswith("4.4"):
        assert headers["sec-websocket-version"] == "13"
    if status == 405:
        assert "GET" in headers["allow"]
    assert rig.sample("connects_total") == before
