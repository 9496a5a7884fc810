"""A hub with one instrument, and clients that read when the test says so."""

from collections.abc import Callable
from typing import Any

from protos.codec import Codec
from protos.messages import Channel, Notice, Resume, ServerMessage, SlowPolicy
from streamer.hub import Hub
from streamer.limits import Limits
from streamer.outbox import Outbox
from streamer.streams import StreamKey

NAME = "x:spot:A"
MS = 1_000_000
BOOK, RAW, BBO, TRADES, STATUS = (
    StreamKey(NAME, channel) for channel in (Channel.BOOK, Channel.RAW, Channel.BBO, Channel.TRADES, Channel.STATUS)
)
TIER = StreamKey(NAME, Channel.BOOK, 10, 100)


class World:
    def __init__(self, make: Callable[..., Any], codec: Codec, limits: Limits | None = None) -> None:
        self.hub = Hub(limits or Limits())
        self.codec = codec
        self.maker = make(NAME)

    def apply(self, *messages: Any) -> None:  # noqa: ANN401
        for message in messages:
            assert self.hub.apply(NAME, message, 1)

    def join(
        self, *keys: StreamKey, resume: Resume | None = None, policy: SlowPolicy = SlowPolicy.CLOSE, take: bool = True
    ) -> Outbox:
        outbox = self.hub.attach(self.codec)
        for i, key in enumerate(keys):
            self.hub.subscribe(outbox, key, resume, policy, 1, i + 1)
        if take:
            self.read(outbox)
        return outbox

    def read(self, outbox: Outbox, now_ns: int = 2) -> list[ServerMessage]:
        self.hub.flush(now_ns)
        return self.codec.decode(self.hub.payload(outbox, 1 << 20))


def kinds(messages: list[ServerMessage]) -> list[str]:
    return [
        f"{message.code.name} {message.stream}" if isinstance(message, Notice) else type(message).__name__
        for message in messages
    ]
