"""Tokens and tickets over HTTP, identity providers, API keys, CORS, and what the HTTP API then shows."""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm
from typer.testing import CliRunner

from services.admin import Admin
from services.auth.api_keys import hash_of, new_key
from services.auth.jwks import RETRY_S, JwksSource, KeysError, parse_jwks
from services.auth.revoking import revocations_route
from services.cli import app
from services.config import Settings
from services.errors import UserError
from tests.support.accounts import SETTINGS, forged, token
from tests.support.endpoint import BTC, Rig, running
from tests.support.guests import asking, forgive, guest, http, ticket

pytestmark = pytest.mark.security
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
IDP = {"auth_jwks_issuer": "https://id.example.org/", "auth_jwks_audience": "md"}


@pytest.fixture(autouse=True)
def _expected(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    forgive(caplog, "API keys stay as they were", "cannot read the keys of the identity provider")


def jwks(**keys: rsa.RSAPrivateKey) -> bytes:
    """The provider's document: a key that we can use for each, and others that we cannot."""
    listed: list[dict[str, Any]] = [
        {"kty": "oct", "kid": "shared", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA"},
        {"kty": "RSA", "kid": "enc", "use": "enc", "n": "AQAB", "e": "AQAB"},
        {"kty": "RSA", "kid": "weak", "n": "AQAB", "e": "AQAB"},
        {"kty": "EC", "kid": "curve", "crv": "secp256k1", "x": "AA", "y": "AA"},
        {"kty": "RSA", "kid": "mac", "alg": "HS256", "n": "AQAB", "e": "AQAB"},
    ]
    for kid, key in keys.items():
        listed.append({**RSAAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid, "use": "sig"})
    return json.dumps({"keys": listed}).encode()


def idp_token(key: rsa.RSAPrivateKey = RSA_KEY, kid: str = "r1", **changes: object) -> str:
    now = int(time.time())
    claims = {"iss": "https://id.example.org/", "aud": "md", "sub": "alice", "iat": now, "exp": now + 3600, **changes}
    return jwt.encode(claims, key, "RS256", {"kid": kid})


async def issued(rig: Rig, bearer: str) -> httpx.Response:
    async with http(rig, bearer) as web:
        return await web.post("/v1/token")


# ---- API keys


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, str]:
    """A file with one key, and the key."""
    key, sha256 = new_key()
    path = tmp_path / "keys.json"
    path.write_text(json.dumps([{"subject": "desk-1", "sha256": sha256, "grant": {"instruments": ["binance:*"]}}]))
    return path, key


async def test_an_api_key_buys_a_token_for_five_minutes_with_its_grant(keys: tuple[Path, str]) -> None:
    async with asking(auth_api_keys_file=keys[0]) as rig:
        answer = await issued(rig, keys[1])
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "no-store"
        body = answer.json()
        assert body["expires_in"] <= 300
        claims = jwt.decode(body["access_token"], options={"verify_signature": False})
        assert claims["exp"] - claims["iat"] <= 300
        assert (claims["sub"], claims["depthcast"]) == ("desk-1", {"instruments": ["binance:*"]})
        async with guest(rig, body["access_token"]):
            pass
        assert rig.sample("tokens_issued_total", by="api_key") == 1


async def test_an_unknown_key_a_token_and_nothing_buy_nothing(keys: tuple[Path, str]) -> None:
    async with asking(auth_api_keys_file=keys[0]) as rig:
        for bearer in ("dck_wrong", keys[1] + "x", keys[1][:-1], token(), idp_token(), "rubbish", hash_of(keys[1])):
            answer = await issued(rig, bearer)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
            assert bearer not in answer.text
        assert (await issued(rig, "")).status_code == 401
        async with http(rig) as web:
            assert (await web.post("/v1/token", headers={"Authorization": "Basic YTpi"})).status_code == 400


async def test_keys_come_and_go_without_a_restart_and_a_broken_file_changes_nothing(keys: tuple[Path, str]) -> None:
    path, key = keys
    async with asking(auth_api_keys_file=path) as rig:
        another, sha256 = new_key()
        path.write_text(json.dumps([{"subject": "desk-2", "sha256": sha256, "grant": {"instruments": ["*"]}}]))
        os.utime(path, ns=(1, 1))
        assert [(await issued(rig, one)).status_code for one in (key, another)] == [401, 200]
        path.write_text("[{]")
        assert (await issued(rig, another)).status_code == 200


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "{}",
        '[{"subject":"a","sha256":"short","grant":{"instruments":["*"]}}]',
        '[{"subject":"a","sha256":"' + "0" * 64 + '"}]',
        '[{"subject":"a","sha256":"' + "0" * 64 + '","grant":{"instruments":[]}}]',
        '[{"subject":"","sha256":"' + "0" * 64 + '","grant":{"instruments":["*"]}}]',
        '[{"subject":"a","key":"dck_clear","sha256":"' + "0" * 64 + '","grant":{"instruments":["*"]}}]',
    ],
)
async def test_a_file_that_is_none_ends_the_start_with_a_word(tmp_path: Path, text: str) -> None:
    (tmp_path / "keys.json").write_text(text)
    with pytest.raises(UserError, match="DEPTHCAST_AUTH_API_KEYS_FILE") as raised:
        Rig(**SETTINGS, auth_api_keys_file=tmp_path / "keys.json")
    assert "dck_clear" not in str(raised.value)


def test_the_command_makes_keys_that_the_file_takes() -> None:
    made = CliRunner().invoke(app, ["auth", "new-key", "desk-7", "--instruments", "binance:*", "--depth-max", "10"])
    assert made.exit_code == 0, made.output
    (entry,) = json.loads(made.stdout)
    key = made.stderr.split()[-1]
    assert entry["sha256"] == hash_of(key)
    assert entry["grant"] == {"instruments": ["binance:*"], "depth_max": 10}
    secret = CliRunner().invoke(app, ["auth", "new-secret", "k9"]).stdout.strip()
    Rig(auth="token", auth_signing_keys=secret).endpoint._server._listener.close()  # type: ignore[attr-defined]


# ---- identity providers


async def test_a_users_token_buys_one_of_ours_that_does_not_outlive_it(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    path.write_bytes(jwks(r1=RSA_KEY))
    async with asking(auth_jwks=str(path), **IDP) as rig:
        answer = await issued(rig, idp_token(depthcast={"instruments": ["kraken:*"]}, exp=int(time.time()) + 30))
        assert answer.status_code == 200, answer.text
        assert answer.json()["expires_in"] <= 30
        claims = jwt.decode(answer.json()["access_token"], options={"verify_signature": False})
        assert (claims["sub"], claims["depthcast"]) == ("alice", {"instruments": ["kraken:*"]})
        for wrong, status in (
            (idp_token(), 403),
            (idp_token(depthcast={"instruments": []}), 403),
            (idp_token(OTHER_KEY), 401),
            (idp_token(kid="r2"), 401),
            (idp_token(kid="shared"), 401),
            (idp_token(iss="https://evil.example/"), 401),
            (idp_token(aud="other"), 401),
            (idp_token(exp=int(time.time()) - 60), 401),
            (jwt.encode({"sub": "x"}, "secret-secret-secret-secret-secret", "HS256", {"kid": "shared"}), 401),
            (token(), 401),
        ):
            assert (await issued(rig, wrong)).status_code == status
        async with http(rig, idp_token()) as web:
            assert (await web.get("/v1/instruments")).status_code == 401, "the provider's token opens nothing itself"


async def test_users_without_a_claim_get_what_the_settings_say(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    path.write_bytes(jwks(r1=RSA_KEY))
    async with asking(auth_jwks=str(path), auth_jwks_grant='{"instruments":["*"],"depth_max":10}', **IDP) as rig:
        claims = jwt.decode(
            (await issued(rig, idp_token())).json()["access_token"], options={"verify_signature": False}
        )
        assert claims["depthcast"] == {"instruments": ["*"], "depth_max": 10}
        assert rig.sample("tokens_issued_total", by="identity_provider") == 1
    with pytest.raises(UserError, match="AUTH_JWKS_GRANT"):
        Rig(**SETTINGS, auth_jwks=str(path), auth_jwks_grant='{"instruments":[]}', **IDP)
    with pytest.raises(UserError, match="AUTH_JWKS_ISSUER"):
        Rig(**SETTINGS, auth_jwks=str(path))
    with pytest.raises(UserError, match="https"):
        Rig(**SETTINGS, auth_jwks="http://id.example.org/jwks", **IDP)


class Provider:
    """An identity provider's address: what it serves, and how often it was asked."""

    def __init__(self) -> None:
        self.asked, self.body, self.head = 0, jwks(r1=RSA_KEY), "HTTP/1.1 200 OK"

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked += 1
        await reader.readuntil(b"\r\n\r\n")
        head = f"{self.head}\r\nContent-Length: {len(self.body)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + self.body)
        writer.close()


@pytest.fixture
async def provider() -> AsyncIterator[tuple[Provider, str]]:
    peer = Provider()
    server = await asyncio.start_server(peer.answer, "127.0.0.1", 0)
    async with server:
        yield peer, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/jwks"


async def test_keys_are_fetched_once_and_anew_for_an_unknown_one_but_not_often(provider: tuple[Provider, str]) -> None:
    peer, url = provider
    now = [0.0]
    source = JwksSource(url, lambda: now[0])
    for _ in range(3):
        assert set(await source.keys("r1")) == {"r1"}
    assert peer.asked == 1
    peer.body = jwks(r2=OTHER_KEY)
    for _ in range(20):
        assert set(await source.keys("r2")) == {"r1"}
    assert peer.asked == 1, "within ten seconds nobody makes us ask again"
    now[0] = RETRY_S
    assert set(await source.keys("r2")) == {"r2"}
    now[0] = 1_000.0
    peer.head = "HTTP/1.1 500 Oops"
    assert set(await source.keys("r2")) == {"r2"}, "what is known stays when the provider is down"
    assert peer.asked == 3


@pytest.mark.parametrize(
    ("head", "body"),
    [
        ("HTTP/1.1 500 Oops", b""),
        ("HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/", b""),
        ("HTTP/1.1 200 OK", b"not JSON"),
        ("HTTP/1.1 200 OK", b"[]"),
        ("HTTP/1.1 200 OK", b'{"keys": 7}'),
        ("HTTP/1.1 200 OK", jwks()),
        ("HTTP/1.1 200 OK", b" " * 300_000),
    ],
)
async def test_a_provider_that_serves_no_keys_is_503(provider: tuple[Provider, str], head: str, body: bytes) -> None:
    provider[0].head, provider[0].body = head, body
    async with asking(auth_jwks=provider[1], **IDP) as rig:
        answer = await issued(rig, idp_token())
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")


def test_only_public_keys_of_known_kinds_are_taken() -> None:
    found = parse_jwks(jwks(r1=RSA_KEY, r2=OTHER_KEY))
    assert {kid: key.algorithms for kid, key in found.items()} == {"r1": ("RS256",), "r2": ("RS256",)}
    with pytest.raises(KeysError):
        parse_jwks(jwks())


# ---- tickets and the API


async def test_a_ticket_needs_a_token_of_ours() -> None:
    async with asking() as rig:
        for bearer in ("", "rubbish", forged(jti=None)):
            async with http(rig, bearer) as web:
                assert (await web.post("/v1/ticket")).status_code == 401
        async with http(rig, token()) as web:
            answer = await web.post("/v1/ticket")
        assert answer.json()["expires_in"] == 30
        assert answer.headers["cache-control"] == "no-store"


async def test_tickets_have_a_rate() -> None:
    async with asking() as rig:
        verdicts = [await rig.endpoint.gate.ticket_for(token("desk-1")) for _ in range(300)]
        given = sum(isinstance(one, str) for one in verdicts)
        assert 100 <= given < 300
        assert isinstance(await rig.endpoint.gate.ticket_for(token("desk-2")), str)
        async with http(rig, token("desk-1")) as web:
            answers = {(await web.post("/v1/ticket")).status_code for _ in range(5)}
        assert 429 in answers


async def test_without_authentication_there_is_nothing_to_buy() -> None:
    async with running() as rig, http(rig, "dck_x") as web:
        for path in ("/v1/token", "/v1/ticket"):
            assert (await web.post(path)).status_code == 404


async def test_the_api_shows_what_the_token_grants() -> None:
    async with asking() as rig:
        async with http(rig) as web:
            assert (await web.get("/v1/instruments")).status_code == 401
            assert (await web.get(f"/v1/instruments/{BTC}/book")).status_code == 401
            assert (await web.get("/openapi.json")).status_code == 200
        async with http(rig, token(depth_max=10, channels=["book"])) as web:
            assert [one["instrument"] for one in (await web.get("/v1/instruments")).json()["instruments"]] == [BTC]
            assert (await web.get(f"/v1/instruments/{BTC}/book?depth=10")).status_code == 200
            assert (await web.get(f"/v1/instruments/{BTC}/book?depth=11")).status_code == 403
            assert (await web.get(f"/v1/instruments/{BTC}/book?depth=0")).status_code == 403
            assert (await web.get(f"/v1/instruments/{BTC}/trades")).status_code == 403
        async with http(rig, token(instruments=["kraken:*"])) as web:
            assert (await web.get("/v1/instruments")).json() == {"instruments": []}
            assert (await web.get(f"/v1/instruments/{BTC}/book")).status_code == 403
            assert (await web.get("/v1/instruments/binance:spot:NONE/book")).status_code == 403, "nothing is learned"


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [("https://app.example.org", True), ("https://app.example.org.evil.com", False), ("null", False)],
)
async def test_cors_follows_the_list_of_origins(origin: str, allowed: bool) -> None:
    async with running(origins="https://app.example.org") as rig, http(rig) as web:
        answer = await web.get("/v1/instruments", headers={"Origin": origin})
        assert answer.status_code == 200
        assert answer.headers.get("access-control-allow-origin") == (origin if allowed else None)
        preflight = await web.options(
            "/v1/ticket",
            headers={
                "Origin": origin,
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "authorization",
            },
        )
        assert (preflight.status_code == 200) is allowed
        assert "access-control-allow-credentials" not in preflight.headers


# ---- the admin port


async def test_the_admin_port_revokes_and_takes_no_word_from_a_browser() -> None:
    async with asking() as rig:
        admin = Admin(Settings(admin_port=0), rig.metrics, lambda: "", [revocations_route(rig.endpoint.gate)])
        await admin.start()
        try:
            url = f"http://127.0.0.1:{admin.port}/revocations"
            async with httpx.AsyncClient(timeout=10) as web, guest(rig, token("desk-1")) as one:
                for body in ({}, {"sub": ""}, {"who": "x"}, {"sub": "x", "seconds": -1}, [1]):
                    assert (await web.post(url, json=body)).status_code == 422
                assert (await web.post(url, json={"sub": "desk-1"}, headers={"Origin": "null"})).status_code == 415
                assert (await web.post(url, content='{"sub":"desk-1"}')).status_code == 415
                assert (await web.get(url)).status_code == 405
                assert (await web.post(url, json={"jti": "other"})).status_code == 200
                run = asyncio.to_thread(
                    CliRunner().invoke,
                    app,
                    ["auth", "revoke", "--sub", "desk-1", "--admin", f"127.0.0.1:{admin.port}"],
                )
                done = await run
                assert done.exit_code == 0, done.output
                assert (await one.end())[0] == 4403
            async with http(rig, token("desk-1")) as web:
                assert (await web.get("/v1/instruments")).status_code == 403
        finally:
            await admin.stop()


async def test_a_revoked_subject_buys_no_token_and_a_ticket_bought_before_opens_nothing(keys: tuple[Path, str]) -> None:
    async with asking(auth_api_keys_file=keys[0]) as rig:
        bought = await ticket(rig, token("desk-1"))
        await rig.endpoint.gate.revocations.revoke({"sub:desk-1": time.time() + 60})
        assert (await issued(rig, keys[1])).status_code == 403
        async with http(rig, token("desk-1")) as web:
            assert (await web.post("/v1/ticket")).status_code == 403
        async with http(rig) as web:
            upgrade = await web.get(f"/v1/stream?ticket={bought}")
            assert upgrade.status_code == 426, "no handshake, so the ticket is not used"
        with pytest.raises(Exception, match="403"):
            async with guest(rig, query=f"?ticket={bought}"):
                pass
        await rig.endpoint.gate.revocations.revoke({"sub:desk-1": time.time()})
        assert (await issued(rig, keys[1])).status_code == 200
