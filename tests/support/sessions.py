"""Sessions of a client that knows one instrument, with a door that knows some tokens, or none."""

from typing import NamedTuple

from protos.messages import (
    CloseCode,
    Error,
)
from streamer.access import Access, Refusal
from streamer.effects import (
    Effect,
    Reply,
)
from streamer.limits import Limits
from streamer.session import Session

S = 1_000_000_000
NAME = "binance:spot:BTCUSDT"


class Catalog:
    def __init__(self) -> None:
        self.ready = True

    def knows(self, instrument: str) -> bool:
        return instrument == NAME


class Peer(NamedTuple):
    session: Session
    catalog: Catalog
    streams: set[int]


def connect(limits: Limits | None = None) -> Peer:
    catalog, streams = Catalog(), {3}
    return Peer(Session("s1", limits or Limits(), catalog, streams, 0), catalog, streams)


def error_of(effects: list[Effect]) -> Error:
    reply = effects[0]
    assert isinstance(reply, Reply)
    assert isinstance(reply.message, Error)
    return reply.message


class Door:
    """Tokens are names of what they grant."""

    def __init__(self, **grants: Access | Refusal) -> None:
        self.grants = grants

    def check(self, token: str, now_ns: int) -> Access | Refusal:
        assert now_ns >= 0
        return self.grants.get(token, Refusal(CloseCode.UNAUTHORIZED, "no such token"))


def guest(access: Access | None = None, limits: Limits | None = None, **grants: Access | Refusal) -> Session:
    return Session("s1", limits or Limits(), Catalog(), {3}, 0, Door(**grants), access)
