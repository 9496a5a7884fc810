"""Who gets a stream: the ways in, what each token allows, how it ends, and what the log never says."""

import io
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace

import pytest
from websockets.exceptions import InvalidStatus
from websockets.frames import Opcode

from protos.messages import (
    Auth,
    BookUpdate,
    Channel,
    CloseCode,
    Error,
    ErrorCode,
    Notice,
    NoticeCode,
    Ping,
    Pong,
    Subscribe,
    Subscribed,
)
from services.auth.gate import Gate
from services.config import Settings
from services.errors import UserError
from services.log import configure_logging
from services.metrics import Metrics
from services.streamer.clock import Clock
from tests.support.accounts import SETTINGS, SUBSCRIBE, forged, token
from tests.support.endpoint import BTC, JSON, PROTO, Raw, Rig, client, masked, request, running
from tests.support.guests import asking, guest, http, show, ticket

pytestmark = pytest.mark.security


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with asking() as one:
        yield one


async def status_of(rig: Rig, **how: object) -> int:
    """The HTTP status with which a handshake is refused."""
    with pytest.raises(InvalidStatus) as refused:
        async with guest(rig, **how):  # type: ignore[arg-type]
            pass
    return refused.value.response.status_code


# ---- in


async def test_a_token_in_a_header_opens_the_stream(rig: Rig) -> None:
    async with guest(rig, token()) as one:
        await one.send(SUBSCRIBE)
        assert (await one.until(BookUpdate)).bids == [(100, 5)]
    assert rig.sample("auth_total", outcome="accepted") == 1


@pytest.mark.parametrize("first", [True, False])
async def test_a_token_among_the_subprotocols_opens_the_stream_and_is_never_the_chosen_one(
    rig: Rig, first: bool
) -> None:
    offers = [PROTO.name, f"bearer.{token()}"]
    async with guest(rig, offers=offers[::-1] if first else offers) as one:
        assert one.ws.subprotocol == PROTO.name
        await one.send(SUBSCRIBE)
        assert await one.until(Subscribed)
    raw = await Raw.connect(rig)
    raw.writer.write(request(sec_websocket_protocol=", ".join(offers)))
    status, head = await raw.head()
    assert (status, b"bearer" in head) == (101, False)


async def test_a_token_alone_is_no_subprotocol(rig: Rig) -> None:
    assert await status_of(rig, offers=[f"bearer.{token()}"]) == 400


async def test_a_token_as_the_first_message_opens_the_stream(rig: Rig) -> None:
    async with guest(rig) as one:
        await one.send(SUBSCRIBE, Ping(2))
        assert (await one.until(Error)).code is ErrorCode.FORBIDDEN
        assert isinstance(await one.next(), Pong)
        await show(one, token())
        await one.send(SUBSCRIBE)
        assert await one.until(BookUpdate)


async def test_a_token_and_a_subscription_in_one_segment_are_obeyed_in_order(rig: Rig) -> None:
    async with guest(rig) as one:
        await one.send(Auth(1, token()), SUBSCRIBE)
        assert isinstance(await one.next(), Pong)
        assert isinstance(await one.next(), Subscribed)


async def test_a_ticket_opens_one_stream(rig: Rig) -> None:
    one_ticket = await ticket(rig, token(instruments=["binance:*"]))
    async with guest(rig, query=f"?ticket={one_ticket}") as one:
        await one.send(Subscribe(1, "kraken:spot:X", Channel.BOOK), SUBSCRIBE)
        assert (await one.until(Error)).code is ErrorCode.FORBIDDEN
        assert await one.until(BookUpdate)
        assert await status_of(rig, query=f"?ticket={one_ticket}") == 401
    assert rig.sample("tickets_issued_total") == 1
    assert rig.sample("auth_total", outcome="unauthorized") == 1


async def test_commands_sent_with_a_ticket_handshake_are_not_lost(rig: Rig) -> None:
    raw = await Raw.connect(rig)

    raw.writer.write(
        request(f"/v1/stream?ticket={await ticket(rig)}") + masked(Opcode.BINARY, PROTO.encode_command(Ping(42)))
    )
    assert (await raw.head())[0] == 101
    await raw.frame()
    assert PROTO.decode((await raw.frame())[1])[0].id == 42  # type: ignore[union-attr]


# ---- not in


@pytest.mark.parametrize(
    ("shown", "status"),
    [
        (lambda: {"bearer": "rubbish"}, 401),
        (lambda: {"bearer": forged(key="another-secret-that-is-long-enough-too-1")}, 401),
        (lambda: {"bearer": forged(exp=int(time.time()) - 60)}, 401),
        (lambda: {"bearer": forged(depthcast={"instruments": []})}, 403),
        (lambda: {"query": "?ticket=invented"}, 401),
        (lambda: {"query": "?ticket="}, 400),
        (lambda: {"bearer": "a", "query": "?ticket=b"}, 400),
        (lambda: {"bearer": "a", "offers": [PROTO.name, "bearer.b"]}, 400),
        (lambda: {"offers": [PROTO.name, "bearer.rubbish"]}, 401),
    ],
)
async def test_a_handshake_that_proves_nothing_is_refused_in_http(
    rig: Rig, shown: Callable[[], dict[str, object]], status: int
) -> None:
    """What is shown is made now: a token would expire between collection and here."""
    assert await status_of(rig, **shown()) == status
    assert rig.sample("handshakes_total", outcome=str(status)) == 1
    assert rig.sample("connects_total") == 0


async def test_a_wrong_first_message_closes_with_4401(rig: Rig) -> None:
    async with guest(rig) as one:
        await one.send(Auth(7, "rubbish"))
        error = await one.until(Error)
        assert (error.id, error.code) == (7, ErrorCode.FORBIDDEN)
        assert "rubbish" not in error.message
        assert (await one.end())[0] == CloseCode.UNAUTHORIZED


async def test_without_a_token_the_connection_ends_in_time() -> None:
    async with asking() as rig:
        rig.hub.limits = replace(rig.hub.limits, auth_wait_ms=300)
        async with guest(rig) as one:
            started = time.monotonic()
            assert (await one.end())[0] == CloseCode.UNAUTHORIZED
            assert 0.2 < time.monotonic() - started < 5
        await rig.settle()
        assert rig.sample("disconnects_total", code="4401") == 1


# ---- for how long


async def test_expiry_is_announced_and_another_token_extends_until_none_comes() -> None:
    async with asking(auth_leeway_ms=0) as rig, guest(rig, token(ttl_s=3)) as one:
        await one.send(SUBSCRIBE)
        notice = await one.until(Notice)
        assert notice.code is NoticeCode.AUTH_EXPIRING
        assert 0 < notice.retry_after_ms <= 1_500
        await show(one, token(ttl_s=6))
        ends = time.monotonic() + notice.retry_after_ms / 1e3
        assert (await one.until(Notice)).code is NoticeCode.AUTH_EXPIRING
        assert time.monotonic() > ends, "the first token would have ended by now"
        assert await one.end() == (CloseCode.UNAUTHORIZED, "the token has expired")
    await rig.settle()
    assert rig.endpoint.gate._due == {}


async def test_another_subjects_token_does_not_take_a_connection_over(rig: Rig) -> None:
    async with guest(rig, token("desk-1")) as one:
        await one.send(Auth(1, token("desk-2")))
        assert "another subject" in (await one.until(Error)).message
        await one.send(SUBSCRIBE)
        assert await one.until(Subscribed)


async def test_a_narrower_token_may_not_cover_what_is_subscribed(rig: Rig) -> None:
    async with guest(rig, token()) as one:
        await one.send(SUBSCRIBE)
        await one.until(BookUpdate)
        await one.send(Auth(2, token(instruments=["kraken:*"])))
        assert (await one.end())[0] == CloseCode.FORBIDDEN


async def test_the_granted_command_rate_holds(rig: Rig) -> None:
    async with guest(rig, token(commands_per_s=1)) as one:
        await one.send(*(Ping(i) for i in range(1, 40)))
        error = await one.until(Error)
        assert error.code is ErrorCode.LIMIT
        assert (await one.end())[0] == CloseCode.TOO_MANY


# ---- how many


async def test_a_subject_has_so_many_connections_and_no_more(rig: Rig) -> None:
    two = token(connections_max=2)
    async with guest(rig, two), guest(rig, two):
        assert await status_of(rig, bearer=two) == 429
        async with guest(rig, token("desk-2", connections_max=2)):
            pass
        async with guest(rig) as late:  # by its first message: it is in for a moment
            await show(late, two)
            assert (await late.end())[0] == CloseCode.TOO_MANY
    await rig.settle()
    async with guest(rig, two) as again:
        await again.send(SUBSCRIBE)
        assert await again.until(Subscribed)


# ---- pages


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (None, True),
        ("https://app.example.org", True),
        ("http://app.example.org", False),
        ("https://app.example.org.evil.com", False),
        ("null", False),
    ],
)
async def test_pages_of_other_origins_get_no_stream(origin: str | None, allowed: bool) -> None:
    async with running(origins="https://app.example.org") as rig:
        if allowed:
            async with guest(rig, origin=origin):
                pass
        else:
            assert await status_of(rig, origin=origin) == 403
            assert rig.sample("origins_refused_total") == 1


async def test_by_default_the_own_page_may_connect_and_a_rebound_name_may_not() -> None:
    async with running() as rig:
        async with guest(rig, origin=f"http://127.0.0.1:{rig.port}"):
            pass
        raw = await Raw.connect(rig)
        name = f"evil.example:{rig.port}"
        raw.writer.write(request(host=name, origin=f"http://{name}"))
        assert (await raw.head())[0] == 403
        twice = await Raw.connect(rig)
        own = f"http://127.0.0.1:{rig.port}"
        twice.writer.write(request(host=f"127.0.0.1:{rig.port}", origin=f"{own}\r\nOrigin: {own}"))
        assert (await twice.head())[0] == 400


# ---- the log

SECRETS = ("hunter2-secret", "eyJhbGciOiJub25lIn0.eyJzdWIiOiJodW50ZXIyIn0.c2ln")


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """Everything that any logger says, at debug."""
    handlers, level = logging.root.handlers[:], logging.root.level
    levels = {
        name: logger.level
        for name, logger in logging.root.manager.loggerDict.items()
        if isinstance(logger, logging.Logger)
    }
    out = io.StringIO()
    configure_logging(Settings(log_level="debug", log_format="json"), out=out)
    for name in ("uvicorn.error", "uvicorn.access", "asyncio"):  # lower than any setting makes them
        logging.getLogger(name).setLevel(logging.DEBUG)
    for name in ("websockets.client", "httpx", "httpcore"):  # what the client of the test says is not ours
        logging.getLogger(name).setLevel(logging.CRITICAL)
    yield out
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)


@pytest.mark.parametrize("asks", [True, False], ids=["token", "none"])
@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("name", ["token", "access_token", "ACCESS_TOKEN", "api_key", "x"])
async def test_a_long_lived_secret_in_the_address_is_refused_and_in_no_log(
    log: io.StringIO, asks: bool, secret: str, name: str
) -> None:
    if name == "x" and not secret.startswith("eyJ"):
        name = "jwt"
    async with running(**(SETTINGS if asks else {})) as rig:
        for head in (
            request(f"/v1/stream?{name}={secret}"),
            request(f"/v1/stream?a=1&{name}={secret}", upgrade=None, connection="close"),
            request(f"/v1/instruments?{name}={secret}", upgrade=None, connection="close"),
            request(f"/?{name}={secret}", upgrade=None, connection="close"),
        ):
            raw = await Raw.connect(rig)
            raw.writer.write(head)
            status, answer = await raw.head()
            body = await raw.end()
            assert status == 400, answer
            assert secret.encode() not in answer + body
        assert rig.sample("connects_total") == 0
    assert secret not in log.getvalue()


async def test_tokens_tickets_and_keys_are_in_no_log(log: io.StringIO, rig: Rig) -> None:
    good, bad, one_ticket = token(), forged(sub="desk-9"), await ticket(rig)
    async with guest(rig, good) as one:
        await show(one, token())
        await one.send(Auth(1, bad), Auth(2, "rubbish-token"))
        await one.until(Error)
    async with guest(rig, offers=[JSON.name, f"bearer.{good}"]):
        pass
    async with guest(rig, query=f"?ticket={one_ticket}"):
        pass
    assert await status_of(rig, bearer="rubbish-token") == 401
    assert await status_of(rig, query=f"?ticket={one_ticket}") == 401
    async with http(rig, "dck_rubbish-key") as web:
        assert (await web.post("/v1/token")).status_code == 401
    for secret in (good, bad, one_ticket, "rubbish-token", "rubbish-key", str(SETTINGS["auth_signing_keys"])[3:]):
        assert secret not in log.getvalue()


# ---- without authentication


def gate(**settings: object) -> Gate:
    return Gate(Settings(**settings), Metrics(), Clock())  # type: ignore[arg-type]


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "example.org"])
def test_without_authentication_it_does_not_listen_beyond_this_machine(host: str) -> None:
    with pytest.raises(UserError, match="DEPTHCAST_AUTH_NONE_PUBLIC=true if you mean it"):
        gate(http_host=host)
    assert gate(http_host=host, auth_none_public=True).door is None


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.8.8"])
def test_on_this_machine_it_says_loudly_that_nobody_is_asked(host: str, caplog: pytest.LogCaptureFixture) -> None:
    gate(http_host=host)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "AUTHENTICATION IS OFF" in record.getMessage()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"auth": "token"}, "AUTH_SIGNING_KEYS"),
        ({"auth": "token", "auth_signing_keys": "k:short"}, "at least 32"),
        ({**SETTINGS, "workers": 2}, "REDIS_URL"),
        ({"origins": "example.org"}, "ORIGINS"),
        ({"trusted_proxies": "10.0.0.1/8"}, "TRUSTED_PROXIES"),
        ({"redis_url": "http://x"}, "REDIS_URL"),
    ],
)
def test_settings_that_do_not_add_up_end_the_start_with_a_word(settings: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        gate(**settings)


async def test_without_authentication_auth_is_answered_and_nothing_expires() -> None:
    async with running() as rig, client(rig) as one:
        await show(one, "anything")
        await one.send(Subscribe(1, BTC, Channel.RAW))
        assert await one.until(Subscribed)
        assert rig.endpoint.gate._agenda == []
