"""Tokens: what is accepted, and every way in which others have been fooled (RFC 8725)."""

import base64
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from protos.messages import Channel, CloseCode
from services.auth.grants import GrantError, check_claims, parse_grant
from services.auth.tokens import Key, Signer, TokenError, key_id, parse_secrets, verify
from streamer.access import Access, Refusal
from tests.support import accounts
from tests.support.accounts import EVERYTHING, SECRET

pytestmark = pytest.mark.security
NOW = time.time()
forged = partial(accounts.forged, now_s=NOW)
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
RSA_PEM = RSA_KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
SIGNER = Signer({"t1": SECRET}, "depthcast", "depthcast", 300, 5)


def part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def test_what_is_issued_is_accepted_with_its_grant() -> None:
    grant = parse_grant({"instruments": ["binance:*"], "channels": ["book", "bbo"], "depth_max": 50})
    issued, seconds = SIGNER.issue("desk-1", grant, NOW)
    access = SIGNER.access(issued, NOW)
    assert isinstance(access, Access)
    assert (access.subject, access.instruments, access.depth_max) == ("desk-1", ("binance:*",), 50)
    assert access.channels == {Channel.BOOK, Channel.BBO}
    assert seconds == 300
    assert access.expires_ns == int(NOW + 300) * 1_000_000_000
    assert access.token_id != SIGNER.access(SIGNER.issue("desk-1", grant, NOW)[0], NOW).token_id  # type: ignore[union-attr]


def test_a_token_bought_with_another_does_not_outlive_it() -> None:
    issued, seconds = SIGNER.issue("desk-1", EVERYTHING, NOW, NOW + 20)
    assert 19 <= seconds <= 20
    assert isinstance(SIGNER.access(issued, NOW + 26), Refusal)


WRONG: dict[str, Callable[[], str]] = {
    "another secret": lambda: forged(key="another-secret-that-is-long-enough-too-1"),
    "no exp": lambda: forged(exp=None),
    "no iat": lambda: forged(iat=None),
    "no aud": lambda: forged(aud=None),
    "no iss": lambda: forged(iss=None),
    "no sub": lambda: forged(sub=None),
    "no jti": lambda: forged(jti=None),
    "empty sub": lambda: forged(sub=""),
    "a sub with a line break": lambda: forged(sub="a\nb"),
    "a long sub": lambda: forged(sub="x" * 257),
    "another audience": lambda: forged(aud="other"),
    "a list of other audiences": lambda: forged(aud=["other", "more"]),
    "another issuer": lambda: forged(iss="other"),
    "expired": lambda: forged(iat=int(NOW) - 100, exp=int(NOW) - 10),
    "from the future": lambda: forged(iat=int(NOW) + 60, exp=int(NOW) + 120),
    "not yet": lambda: forged(nbf=int(NOW) + 60),
    "valid for a day": lambda: forged(exp=int(NOW) + 86_400),
    "exp as text": lambda: forged(exp=str(int(NOW) + 60)),
    "exp as a truth": lambda: forged(exp=True),
    "exp without end": lambda: forged(exp=1e300),
    "a key of its own by jku": lambda: forged({"jku": "https://evil.example/keys"}),
    "a key of its own by x5u": lambda: forged({"x5u": "https://evil.example/cert"}),
    "a key of its own by jwk": lambda: forged({"jwk": {"kty": "oct", "k": "c2VjcmV0"}}),
    "a key of its own by x5c": lambda: forged({"x5c": ["MIIB"]}),
    "crit": lambda: forged({"crit": ["exp"]}),
    "b64": lambda: f"{part({'alg': 'HS256', 'kid': 't1', 'b64': False, 'crit': ['b64']})}..c2ln",
    "another kid": lambda: forged({"kid": "t2"}),
    "kid as a path": lambda: forged({"kid": "../../dev/null"}),
    "another algorithm": lambda: jwt.encode(
        jwt.decode(forged(), options={"verify_signature": False}), SECRET + SECRET, "HS512", {"kid": "t1"}
    ),
    "none": lambda: f"{part({'alg': 'none', 'kid': 't1'})}.{forged().split('.')[1]}.",
    "None": lambda: f"{part({'alg': 'None', 'kid': 't1'})}.{forged().split('.')[1]}.",
    "no signature": lambda: forged().rsplit(".", 1)[0] + ".",
    "another body": lambda: ".".join((forged().split(".")[0], part({"sub": "root"}), forged().split(".")[2])),
    "two parts": lambda: forged().rsplit(".", 1)[0],
    "five parts": lambda: forged() + ".a.b",
    "nothing": lambda: "",
    "huge": lambda: "a" * 9_000 + ".b.c",
    "not ASCII": lambda: forged() + "é",
    "an API key": lambda: "dck_0123456789",
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_not_a_token_of_ours_is_refused(case: str) -> None:
    shown = WRONG[case]()
    verdict = SIGNER.access(shown, NOW)
    assert isinstance(verdict, Refusal)
    assert verdict.code is CloseCode.UNAUTHORIZED
    assert not shown or shown not in verdict.text


def test_without_a_fault_the_same_forgery_is_accepted() -> None:
    assert isinstance(SIGNER.access(forged(), NOW), Access), "else the cases above would prove nothing"


def test_clocks_may_differ_by_the_leeway_and_no_more() -> None:
    shown = forged(iat=int(NOW) - 50, exp=int(NOW) - 4)
    assert isinstance(SIGNER.access(shown, int(NOW)), Access)
    assert isinstance(SIGNER.access(shown, int(NOW) + 1), Refusal)
    early = forged(iat=int(NOW) + 5)
    assert isinstance(SIGNER.access(early, int(NOW)), Access)
    assert isinstance(SIGNER.access(early, int(NOW) - 1), Refusal)


def rsa_key(*algorithms: str) -> dict[str, Key]:
    return {"r1": Key("r1", algorithms or ("RS256",), RSA_KEY.public_key())}


def signed(key: Any, algorithm: str, kid: str = "r1") -> str:  # noqa: ANN401
    claims = {"iss": "idp", "aud": "depthcast", "sub": "u", "iat": int(NOW), "exp": int(NOW) + 60}
    return jwt.encode(claims, key, algorithm, {"kid": kid})


def test_a_public_key_checks_its_own_algorithm_only() -> None:
    assert verify(signed(RSA_KEY, "RS256"), rsa_key(), "idp", "depthcast", NOW, 0)["sub"] == "u"
    with pytest.raises(TokenError, match="algorithm"):
        verify(signed(RSA_KEY, "PS256"), rsa_key(), "idp", "depthcast", NOW, 0)
    confused = f"{part({'alg': 'HS256', 'kid': 'r1'})}.{signed(RSA_KEY, 'RS256').split('.')[1]}"
    mac = jwt.api_jws.PyJWS().get_algorithm_by_name("HS256").sign(confused.encode(), RSA_PEM)
    confused += "." + base64.urlsafe_b64encode(mac).rstrip(b"=").decode()
    with pytest.raises(TokenError, match="algorithm"):  # the classic: an HMAC with the public key as its secret
        verify(confused, rsa_key(), "idp", "depthcast", NOW, 0)


@pytest.mark.parametrize(
    ("generate", "algorithm"),
    [(lambda: ec.generate_private_key(ec.SECP256R1()), "ES256"), (ed25519.Ed25519PrivateKey.generate, "EdDSA")],
)
def test_elliptic_curves_are_as_good(generate: Callable[[], Any], algorithm: str) -> None:
    private, another = generate(), generate()
    keys = {"e1": Key("e1", (algorithm,), private.public_key())}
    assert verify(signed(private, algorithm, "e1"), keys, "idp", "depthcast", NOW, 0)["sub"] == "u"
    other = {"e1": Key("e1", (algorithm,), another.public_key())}
    with pytest.raises(TokenError):
        verify(signed(private, algorithm, "e1"), other, "idp", "depthcast", NOW, 0)


def test_a_token_without_kid_is_accepted_when_there_is_one_key_only() -> None:
    bare = jwt.encode(jwt.decode(signed(RSA_KEY, "RS256"), options={"verify_signature": False}), RSA_KEY, "RS256")
    assert key_id(bare) is None
    assert verify(bare, rsa_key(), "idp", "depthcast", NOW, 0)
    with pytest.raises(TokenError, match="key is unknown"):
        verify(bare, {**rsa_key(), "r2": rsa_key()["r1"]}, "idp", "depthcast", NOW, 0)


def test_the_first_secret_signs_and_the_others_are_accepted() -> None:
    new, old = "a-new-secret-that-is-also-long-enough-99", SECRET
    both = Signer({"t2": new, "t1": old}, "depthcast", "depthcast", 300, 5)
    assert isinstance(both.access(forged(), NOW), Access)
    assert key_id(both.issue("x", EVERYTHING, NOW)[0]) == "t2"
    assert isinstance(Signer({"t2": new}, "depthcast", "depthcast", 300, 5).access(forged(), NOW), Refusal)


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda data: data.decode("latin-1")))
def test_no_text_does_more_than_be_refused(text: str) -> None:
    assert isinstance(SIGNER.access(text, NOW), Refusal)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9), st.lists, max_leaves=3
)


@given(st.dictionaries(st.sampled_from(["exp", "iat", "nbf", "sub"]), JSON))
def test_claims_of_any_kind_are_judged(claims: dict[str, Any]) -> None:
    problem = check_claims(claims, NOW, 5)
    assert problem or (type(claims["sub"]) is str and claims["exp"] + 5 > NOW >= claims["iat"] - 5)


@pytest.mark.parametrize(
    ("grant", "said"),
    [
        (None, "the grant"),
        ({}, "instruments"),
        ({"instruments": []}, "instruments"),
        ({"instruments": ["a b"]}, "instruments.0"),
        ({"instruments": ["[a-z]*"]}, "instruments.0"),
        ({"instruments": ["*"] * 201}, "instruments"),
        ({"instruments": "*"}, "instruments"),
        ({"instruments": ["*"], "channels": ["everything"]}, "channels"),
        ({"instruments": ["*"], "channels": []}, "channels"),
        ({"instruments": ["*"], "depth_max": -1}, "depth_max"),
        ({"instruments": ["*"], "depth_max": "50"}, "depth_max"),
        ({"instruments": ["*"], "depth_max": True}, "depth_max"),
        ({"instruments": ["*"], "commands_per_s": 1001}, "commands_per_s"),
        ({"instruments": ["*"], "dept_max": 50}, "dept_max"),
    ],
)
def test_a_grant_that_is_none_grants_nothing(grant: object, said: str) -> None:
    with pytest.raises(GrantError, match=said):
        parse_grant(grant)
    verdict = SIGNER.access(forged(depthcast=grant), NOW)
    assert isinstance(verdict, Refusal)
    assert verdict.code is CloseCode.FORBIDDEN


@pytest.mark.parametrize(
    "text", ["", "k1", "k1:short", ":" + "x" * 40, "k 1:" + "x" * 40, "a:" + "x" * 40 + ",a:" + "y" * 40]
)
def test_secrets_that_are_none_are_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(ValueError, match=r"must|twice") as raised:
        parse_secrets(text)
    assert "xxxx" not in str(raised.value)
    assert "short" not in str(raised.value)
