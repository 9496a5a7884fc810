"""What a request shows: tokens where they belong, tickets in the address, and nothing else there."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.auth.credentials import Credentials, CredentialsError, bearer_of, check_address, credentials_of
from services.auth.forwarded import client_address, parse_networks
from services.auth.origins import Origins, parse_origin

pytestmark = pytest.mark.security
CODEC = "depthcast.v1.json"


@pytest.mark.parametrize(
    ("path", "authorizations", "subprotocols", "shown"),
    [
        ("/v1/stream", [], [CODEC], Credentials()),
        ("/v1/stream", ["Bearer abc"], [CODEC], Credentials("abc")),
        ("/v1/stream", ["bearer  abc "], [CODEC], Credentials("abc")),
        ("/v1/stream", [], [CODEC, "bearer.abc"], Credentials("abc")),
        ("/v1/stream", [], ["bearer.abc", CODEC], Credentials("abc")),
        ("/v1/stream?ticket=t", [], [CODEC], Credentials(ticket="t")),
        ("/v1/stream?x=1&ticket=t", [], [CODEC], Credentials(ticket="t")),
    ],
)
def test_ways_in(path: str, authorizations: Sequence[str], subprotocols: Sequence[str], shown: Credentials) -> None:
    assert credentials_of(path, authorizations, subprotocols) == shown


@pytest.mark.parametrize(
    ("path", "authorizations", "subprotocols"),
    [
        ("/v1/stream", ["Bearer a", "Bearer b"], []),
        ("/v1/stream", ["Basic YTpi"], []),
        ("/v1/stream", ["Bearer"], []),
        ("/v1/stream", ["Bearer a"], ["bearer.b"]),
        ("/v1/stream", [], ["bearer.a", "bearer.b"]),
        ("/v1/stream?ticket=t", ["Bearer a"], []),
        ("/v1/stream?ticket=a&ticket=b", [], []),
        ("/v1/stream?ticket=", [], []),
        ("/v1/stream?ticket=" + "x" * 129, [], []),
        ("/v1/stream?" + "&".join(["a=1"] * 101), [], []),
    ],
)
def test_more_than_one_proof_or_a_strange_one_is_refused(
    path: str, authorizations: Sequence[str], subprotocols: Sequence[str]
) -> None:
    with pytest.raises(CredentialsError):
        credentials_of(path, authorizations, subprotocols)


@pytest.mark.parametrize(
    "query",
    [
        *(
            "token=hunter2",
            "access_token=hunter2",
            "ACCESS_TOKEN=hunter2",
            "api_key=hunter2",
            "jwt=hunter2",
            "key=hunter2",
        ),
        *("x=eyJhunter2", "ticket=eyJhunter2", "x=dck_hunter2", "a=1&token=hunter2", "acc%65ss_token=hunter2", "token"),
        *("password=hunter2", "%20token=hunter2", "authorization=Bearer%20hunter2"),
    ],
)
def test_a_secret_in_the_address_is_refused_and_not_repeated(query: str) -> None:
    with pytest.raises(CredentialsError) as raised:
        check_address(f"/v1/stream?{query}")
    assert "hunter2" not in str(raised.value)


def test_other_parameters_are_nobodys_business() -> None:
    assert check_address("/v1/instruments/x/book?depth=5&tokens=3&note=") == ""


@given(st.text(max_size=100))
def test_no_address_and_no_header_raises_anything_else(text: str) -> None:
    for judge in (lambda: check_address("/?" + text), lambda: bearer_of([text])):
        try:
            judge()
        except CredentialsError:
            continue


# ---- origins

ALLOWED = ("https://app.example.org", "http://127.0.0.1:3000", "https://other.example:8443")


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (None, True),
        ("https://app.example.org", True),
        ("https://app.example.org:443", True),
        ("http://127.0.0.1:3000", True),
        ("https://other.example:8443", True),
        ("http://app.example.org", False),
        ("https://app.example.org:8443", False),
        ("https://other.example", False),
        ("http://127.0.0.1:3001", False),
        ("https://app.example.org.evil.com", False),
        ("https://evil-app.example.org", False),
        ("https://sub.app.example.org", False),
        ("https://evil.com/https://app.example.org", False),
        ("https://app.example.org@evil.com", False),
        ("https://app.example.org/", False),
        ("https://app.example.org, https://app.example.org", False),
        ("https://app.example.org https://evil.com", False),
        ("https://app.example.org\t", False),
        ("HTTPS://APP.EXAMPLE.ORG", False),
        ("https://app.example.org:0443x", False),
        ("https://app.example.org:99999", False),
        ("https://\u0430pp.example.org", False),  # a Cyrillic letter
        ("null", False),
        ("", False),
        ("*", False),
        ("self", False),
        ("file://", False),
    ],
)
def test_an_origin_is_allowed_when_scheme_host_and_port_are_equal(origin: str | None, allowed: bool) -> None:
    assert Origins(ALLOWED, loopback=False).allow(origin, "md.example.org") is allowed


@pytest.mark.parametrize(
    ("origin", "host", "loopback", "allowed"),
    [
        ("http://127.0.0.1:8080", "127.0.0.1:8080", True, True),
        ("http://localhost:8080", "localhost:8080", True, True),
        ("http://[::1]:8080", "[::1]:8080", True, True),
        ("http://localhost:8080", "127.0.0.1:8080", True, False),
        ("http://localhost:3000", "localhost:8080", True, False),
        ("http://rebound.example:8080", "rebound.example:8080", True, False),
        ("https://md.example.org", "md.example.org", False, True),
        ("https://md.example.org", "MD.example.org", False, True),
        ("https://md.example.org", "md.example.org:443", False, True),
        ("https://md.example.org", "", False, False),
        ("https://evil.example", "md.example.org", False, False),
        ("null", "null", False, False),
    ],
)
def test_self_is_the_page_that_the_server_sends(origin: str, host: str, loopback: bool, allowed: bool) -> None:
    assert Origins(["self"], loopback=loopback).allow(origin, host) is allowed


def test_a_list_may_be_empty_or_everything() -> None:
    assert not Origins([], loopback=True).allow("http://127.0.0.1:8080", "127.0.0.1:8080")
    assert Origins(["*"], loopback=False).allow("null", "x")
    for wrong in ("example.org", "https://example.org/path", "https://*.example.org", "null"):
        with pytest.raises(ValueError, match="no origin"):
            Origins([wrong], loopback=True)


@given(st.text(max_size=60))
def test_no_text_is_an_origin_by_accident(text: str) -> None:
    found = parse_origin(text)
    assert found is None or text.startswith(f"{found.scheme}://{found.host}")


# ---- X-Forwarded-For


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("203.0.113.9", ["1.2.3.4"], "203.0.113.9"),  # not a proxy of ours: not believed
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.7"], "198.51.100.7"),
        ("10.0.0.1", ["1.2.3.4, 198.51.100.7"], "198.51.100.7"),  # the left one may be invented
        ("10.0.0.1", ["1.2.3.4", "198.51.100.7"], "198.51.100.7"),
        ("10.0.0.1", ["198.51.100.7, 10.0.0.2"], "198.51.100.7"),
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ("10.0.0.1", ["198.51.100.7:5555"], "198.51.100.7"),
        ("10.0.0.1", ["[2001:db8::7]:5555, 10.0.0.2"], "2001:db8::7"),
        ("10.0.0.1", ["unknown"], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.7, garbage"], "10.0.0.1"),
        ("::ffff:10.0.0.1", ["198.51.100.7"], "198.51.100.7"),
        ("2001:db8:1::5", ["2001:db8:ffff::9"], "2001:db8:ffff::9"),
        ("10.0.0.1", [", ".join(["10.0.0.2"] * 50)], "10.0.0.2"),
        ("/run/socket", ["1.2.3.4"], "/run/socket"),
    ],
)
def test_the_address_is_the_nearest_that_is_no_proxy_of_ours(peer: str, forwarded: list[str], address: str) -> None:
    assert client_address(peer, forwarded, parse_networks("10.0.0.0/8, 2001:db8:1::/48")) == address


def test_without_proxies_nothing_is_believed() -> None:
    assert client_address("10.0.0.1", ["1.2.3.4"], ()) == "10.0.0.1"
    for wrong in ("10.0.0.1/8", "everyone", "10.0.0.0/99"):
        with pytest.raises(ValueError, match=r"."):
            parse_networks(wrong)
