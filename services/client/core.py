"""The client without I/O: frames in, events out, commands out. Time and randomness are arguments.

    core.connected(now_ns)                        # a connection is up: subscriptions are (re)newed
    for command in core.commands(): send(command)
    for event in core.receive(frame, now_ns): ... # then commands() again
    core.closed(code, now_ns, rng)                # Reconnect(delay_ms, why) or Terminal(reason)

What an event's subscription holds is exactly what the messages up to that event add up to, so take all events of one
frame before the next frame.
"""

from collections.abc import Iterator
from random import Random

from protos.codec import Codec, CodecError
from protos.messages import (
    Auth,
    BookUpdate,
    Channel,
    Command,
    Digest,
    Error,
    Notice,
    NoticeCode,
    Ping,
    Pong,
    QuoteUpdate,
    Restored,
    ServerMessage,
    SlowPolicy,
    StatusUpdate,
    Subscribe,
    Subscribed,
    TradesUpdate,
    Unsubscribe,
    Unsubscribed,
    Welcome,
)
from services.client.events import Ended, Event, FrameError, Noticed, Opened, Ponged, Refused, Started
from services.client.reconnect import Backoff, Reconnect, Terminal
from services.client.subscription import Subscription

SILENCE_INTERVALS = 2.5
"""Heartbeat intervals without a byte after which the connection is dead: one lost ping is forgiven."""
GREETING_MS = 10_000
"""Time for the greeting, which says the heartbeat interval."""

_MARKET = (BookUpdate, TradesUpdate, QuoteUpdate, StatusUpdate)


class ClientCore:
    """All subscriptions of one client, over one connection after the other.

    Args:
        codec: Of the subprotocol that the connections speak.
    """

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.subscriptions: list[Subscription] = []
        self.unknown = 0  # messages of streams that we are not, or no longer, subscribed to
        self._backoff = Backoff()
        self._up = False
        self._outgoing: list[Command] = []
        self._streams: dict[int, Subscription] = {}
        self._asked: dict[int, Subscription] = {}  # subscribe commands without a reply
        self._ending: dict[int, Subscription] = {}  # unsubscribe commands without a reply
        self._pings: dict[int, int] = {}
        self._last_id = 0
        self.heard_ns = 0
        self._silence_ns = GREETING_MS * 1_000_000
        self._retry_after_ms = 0

    # -- what the user wants

    def subscribe(
        self,
        instrument: str,
        channel: Channel = Channel.BOOK,
        depth: int = 0,
        interval_ms: int = 0,
        slow_policy: SlowPolicy = SlowPolicy.CLOSE,
    ) -> Subscription:
        """Want a stream, over this connection and the next ones. The same stream twice is one subscription."""
        wanted = Subscription(instrument, channel, depth, interval_ms, slow_policy)
        for known in self.subscriptions:
            if known.key == wanted.key:
                return known
        for known in self._asked.values():
            if known.key == wanted.key:  # unsubscribed before its reply came, and now wanted again
                self.subscriptions.append(known)
                return known
        self.subscriptions.append(wanted)
        if self._up:
            self._ask(wanted)
        return wanted

    def unsubscribe(self, subscription: Subscription) -> None:
        """No longer want it. Its updates stop at once; `Ended` confirms when the server has answered."""
        if subscription in self.subscriptions:
            self.subscriptions.remove(subscription)
            self._leave(subscription)

    def ping(self, now_ns: int) -> None:
        """Measure round trip and clock offset: `Ponged` follows."""
        if self._up:
            self._pings[self._command_id()] = now_ns
            self._outgoing.append(Ping(self._last_id))

    def auth(self, token: str) -> None:
        """Show a token; the server answers only to say that it is wrong: `Refused` without a subscription."""
        if self._up:
            self._outgoing.append(Auth(self._command_id(), token))

    def commands(self) -> list[bytes]:
        """What must be sent now, one WebSocket message each."""
        outgoing, self._outgoing = self._outgoing, []
        return [self.codec.encode_command(command) for command in outgoing]

    # -- what the network does

    def connected(self, now_ns: int) -> None:
        """A connection is up. Everything is asked for again, from where it was."""
        self._up = True
        self.heard_ns = now_ns
        self._silence_ns = GREETING_MS * 1_000_000
        self._retry_after_ms = 0
        self._backoff.opened(now_ns)
        for subscription in self.subscriptions:
            self._ask(subscription)

    def heard(self, now_ns: int) -> None:
        """Bytes arrived, a ping or a part of a frame: the connection lives."""
        self.heard_ns = now_ns

    @property
    def dead_at_ns(self) -> int:
        """Time at which the connection is given up unless something is heard before."""
        return self.heard_ns + self._silence_ns

    def closed(
        self, code: int | None, now_ns: int, rng: Random, *, status: int = 0, retry_after_ms: int = 0
    ) -> Reconnect | Terminal:
        """The connection ended, or an attempt failed.

        Args:
            code: Of the close frame; None without one.
            status: HTTP status, when the handshake was refused; else 0.
            retry_after_ms: From a Retry-After header; a SHUTDOWN notice is remembered by itself.
        """
        hint = max(retry_after_ms, self._retry_after_ms)
        self._up = False
        self._outgoing.clear()
        for table in (self._streams, self._asked, self._ending, self._pings):
            table.clear()
        if status:
            return self._backoff.refused(status, hint, rng)
        return self._backoff.closed(code, hint, now_ns, rng)

    def stale(self) -> Iterator[Event]:
        """After `closed`: what the loss means for each stream."""
        for subscription in self.subscriptions:
            yield from subscription.disconnected()

    def receive(self, frame: bytes, now_ns: int) -> Iterator[Event]:
        """Decode a frame and apply its messages one by one, as the events are taken.

        Raises:
            FrameError: Nothing else escapes, whatever the bytes.
        """
        self.heard_ns = now_ns
        try:
            messages = self.codec.decode(frame)
        except CodecError as error:
            raise FrameError(str(error)) from error
        for message in messages:
            yield from self._message(message, now_ns)

    def _message(self, message: ServerMessage, now_ns: int) -> Iterator[Event]:
        if isinstance(message, _MARKET):
            subscription = self._streams.get(message.stream)
            if subscription is None:
                self.unknown += 1
                return
            yield from subscription.receive(message)
            self._mend(subscription)
        elif isinstance(message, Digest):
            if subscription := self._streams.get(message.stream):
                yield from subscription.digest(message)
                self._mend(subscription)
        elif isinstance(message, Notice):
            yield from self._notice(message)
        else:
            yield from self._reply(message, now_ns)

    def _notice(self, notice: Notice) -> Iterator[Event]:
        if notice.code is NoticeCode.SHUTDOWN:
            self._retry_after_ms = notice.retry_after_ms
        if subscription := self._streams.get(notice.stream):
            yield from subscription.notice(notice)
        elif notice.stream == 0:
            yield Noticed(None, notice)

    def _reply(
        self, reply: Welcome | Subscribed | Unsubscribed | Pong | Error | Restored, now_ns: int
    ) -> Iterator[Event]:
        if isinstance(reply, Welcome):
            self._silence_ns = round(reply.heartbeat_interval_ms * 1_000_000 * SILENCE_INTERVALS) or self._silence_ns
            yield Opened(reply)
        elif isinstance(reply, Subscribed):
            if subscription := self._asked.pop(reply.id, None):
                yield from self._started(subscription, reply)
        elif isinstance(reply, Unsubscribed):
            if subscription := self._ending.pop(reply.id, None):
                yield Ended(subscription)
        elif isinstance(reply, Pong):
            if (sent_ns := self._pings.pop(reply.id, None)) is not None:
                yield Ponged(now_ns - sent_ns, reply.ts_server_ns - (sent_ns + now_ns) // 2)
        elif isinstance(reply, Error):  # Restored is no answer to anything that we ask
            subscription = self._asked.pop(reply.id, None)
            self._ending.pop(reply.id, None)
            if subscription in self.subscriptions:
                self.subscriptions.remove(subscription)
            yield Refused(subscription, reply)

    def _started(self, subscription: Subscription, reply: Subscribed) -> Iterator[Event]:
        if reply.stream == 0 or reply.stream in self._streams:
            raise FrameError(f"stream {reply.stream} is given to two subscriptions")
        if subscription not in self.subscriptions:  # unsubscribed before the reply came
            subscription.stream = reply.stream
            self._leave(subscription)
            return
        self._streams[reply.stream] = subscription
        yield Started(subscription, reply.resumed)
        yield from subscription.started(reply)

    # -- our own commands

    def _ask(self, subscription: Subscription) -> None:
        command = Subscribe(
            self._command_id(),
            subscription.instrument,
            subscription.channel,
            subscription.depth,
            subscription.interval_ms,
            subscription.position,
            subscription.slow_policy,
        )
        self._asked[command.id] = subscription
        self._outgoing.append(command)

    def _leave(self, subscription: Subscription) -> None:
        """Take nothing more from the stream, and tell the server."""
        stream, subscription.stream = subscription.stream, 0
        if stream:
            self._streams.pop(stream, None)
            self._ending[self._command_id()] = subscription
            self._outgoing.append(Unsubscribe(self._last_id, stream))

    def _mend(self, subscription: Subscription) -> None:
        """A book that cannot be continued is subscribed to anew, which gives a snapshot."""
        if subscription.damaged:
            self._leave(subscription)
            self._ask(subscription)

    def _command_id(self) -> int:
        self._last_id += 1
        return self._last_id
