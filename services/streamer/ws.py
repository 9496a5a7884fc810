"""One stream connection: an asyncio protocol, without a task, a timer, a lock or a queue object of its own.

`websockets`' sans-I/O protocol parses what the peer sends; input never raises, it yields a close code. What we send is
a frame header and shared chunks, in one write. The transport's buffer has a high-water mark of 0: what the kernel does
not take at once stops us, and the backlog stays in the outbox, where it can be conflated.
"""

import asyncio
import socket
import struct

from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN, SEND_EOF, SERVER, Protocol

from protos.codec import Codec, CodecError
from protos.messages import CloseCode, Command, Error, ErrorCode, Subscribe
from services.auth.sessions import Wanted, dump
from services.streamer import gate
from services.streamer.clients import Clients
from services.streamer.gate import Gate
from services.streamer.handshake import LOGGER
from services.streamer.sending import unacknowledged
from streamer.access import Access
from streamer.effects import DoAdmit, DoClose, DoPing, DoRestore, DoSubscribe, DoUnsubscribe, Effect, Reply
from streamer.frames import header
from streamer.outbox import MS
from streamer.session import Session

PING = b"\x89\x00"
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER with no time: closing drops what the kernel still holds, and resets."""
NO_CODE = 1005
ABNORMAL = 1006
"""Neither is ever on the wire: a close frame without a code, and no close frame (RFC 6455 section 7.4.1)."""
SLOW_REASON = "too slow: reconnect and resume, or subscribe to less"


class Connection(asyncio.Protocol):
    """From the accepted handshake to the lost connection."""

    __slots__ = (
        "_clients",
        "_codec",
        "_controls",
        "_fragments",
        "_frames",
        "_gate",
        "_message",
        "_outbox",
        "_paused",
        "_retire_ns",
        "_sent_code",
        "_tls",
        "_transport",
        "_untaken",
        "address",
        "session",
    )

    def __init__(
        self,
        clients: Clients,
        codec: Codec,
        transport: asyncio.Transport,
        address: str = "",
        access: Access | None = None,
    ) -> None:
        """
        Args:
            address: The client's, as it is counted.
            access: What the handshake proved.
        """
        hub = clients.hub
        self._clients = clients
        self._codec = codec
        self._transport = transport
        self._tls = transport.get_extra_info("ssl_object") is not None
        self.address = address
        self._frames = Protocol(SERVER, state=OPEN, max_size=hub.limits.command_bytes_max, logger=LOGGER)
        self._message = b""  # its fragments so far
        self._fragments = 0
        self._controls = 0  # since the last beat
        self._retire_ns = clients.retire_ns()
        self._gate: Gate | None = None
        self._paused = False
        self._untaken = 0  # while paused: bytes when the client last made progress
        self._sent_code = 0  # of the close frame; when not 0, nothing more is sent or obeyed
        self._outbox = hub.attach(codec)
        self.session = Session(
            self._frames.id.hex,  # a uuid4, so 122 random bits, and made anyway
            hub.limits,
            hub,
            self._outbox.lanes.keys(),
            clients.clock.now_ns(),
            clients.gate.door,
            access,
        )

    def open(self, head: bytes) -> None:
        """Send the handshake response and, in the same write, the Welcome."""
        self._transport.set_write_buffer_limits(high=1 if self._tls else 0)  # at 0, TLS pauses with nothing to wait for
        self._clients.opened(self._outbox, self)
        for effect in self.session.open():
            self._perform(effect, 0)
        self._write(head + self._frame())
        self._allow_direct()

    # ---- what the peer sends

    def data_received(self, data: bytes) -> None:
        frames = self._frames
        frames.receive_data(data)
        self.session.pong(self._clients.clock.now_ns())
        for event in frames.events_received():
            if not self._sent_code:
                self._on_frame(event)  # type: ignore[arg-type]  # requests are parsed while connecting only
        self._send_controls()
        self.flush()

    def _on_frame(self, event: Frame) -> None:
        opcode = event.opcode
        if opcode is Opcode.TEXT or opcode is Opcode.BINARY:
            if (opcode is Opcode.BINARY) != self._codec.binary:
                kind = "binary" if self._codec.binary else "text"
                self.close(CloseCode.UNSUPPORTED_DATA, f"{self._codec.name} takes {kind} messages")
            elif event.fin:
                self._on_message(bytes(event.data))
            else:
                self._message, self._fragments = bytes(event.data), 1
        elif opcode is Opcode.CONT:
            self._on_continuation(event)
        elif opcode is Opcode.PING or opcode is Opcode.PONG:
            self._controls += 1
            if self._gate is not None and opcode is Opcode.PONG and event.data == gate.PONG:
                self._controls -= 1  # one that we asked for
                if self._gate.pong(self._clients.clock.now_ns()):
                    self._gate = None
                    self._allow_direct()
            elif self._controls > self.session.limits.controls_max:
                self._clients.limited("controls")
                self.close(CloseCode.POLICY_VIOLATION, "too many pings")

    def _on_continuation(self, event: Frame) -> None:
        self._message += event.data
        self._fragments += 1
        if event.fin:
            message, self._message = self._message, b""
            self._on_message(message)
        elif self._fragments >= (fragments_max := self.session.limits.fragments_max):
            self._clients.limited("fragments")
            self.close(CloseCode.POLICY_VIOLATION, f"a message has at most {fragments_max} fragments")

    def _on_message(self, data: bytes) -> None:
        clients = self._clients
        now_ns = clients.clock.now_ns()
        if not self._codec.binary:
            try:
                data.decode()
            except UnicodeDecodeError as error:
                self.close(CloseCode.INVALID_PAYLOAD, f"{error.reason} at byte {error.start}")
                return
        try:
            command = self._codec.decode_command(data)
        except CodecError as error:
            clients.commands["malformed"].inc()
            effects = self.session.bad_command(now_ns, str(error))
        else:
            effects = self.session.receive(command, now_ns)
            self._count(command, effects)
        for effect in effects:
            self._perform(effect, now_ns)
        clients.wake()  # a new stream may be due earlier than what the flush loop waits for

    def _count(self, command: Command, effects: list[Effect]) -> None:
        errors = [e.message for e in effects if isinstance(e, Reply) and isinstance(e.message, Error)]
        self._clients.commands["refused" if errors else "accepted"].inc()
        if errors and errors[0].code is ErrorCode.LIMIT:
            full = isinstance(command, Subscribe) and len(self._outbox.lanes) >= self.session.limits.subscriptions_max
            self._clients.limited("subscriptions" if full else "command_rate")

    def _perform(self, effect: Effect, now_ns: int) -> None:
        outbox, hub = self._outbox, self._clients.hub
        match effect:
            case Reply(message):
                outbox.reply(message)
            case DoSubscribe(id=command_id, key=key, resume=resume, slow_policy=slow_policy):
                hub.subscribe(outbox, key, resume, slow_policy, now_ns, command_id)
                self._clients.gate.sessions.changed(self.session.id, self.kept)
            case DoUnsubscribe(id=command_id, stream=stream):
                hub.unsubscribe(outbox, stream, command_id)
                self._clients.gate.sessions.changed(self.session.id, self.kept)
            case DoRestore(id=command_id, session_id=session_id):
                self._clients.gate.restore(self, command_id, session_id)
            case DoAdmit(access=access):
                self._clients.gate.admitted(self, access)
                if any(access.refuses(key) for key, _ in hub.subscriptions(outbox)):
                    self.close(CloseCode.FORBIDDEN, "the new token does not allow what you are subscribed to")
            case DoPing():
                self._write(PING)
            case DoClose(code=code, reason=reason):
                self.close(code, reason)

    # ---- what we send

    def flush(self) -> None:
        """Write what waits, as far as the kernel takes it. A client judged too slow is closed."""
        outbox = self._outbox
        if outbox.close_code is not None:
            self.close(outbox.close_code, SLOW_REASON)
            return
        if outbox.slow and outbox.behind and self._gate is None:
            self._gate = Gate(self._clients.clock.now_ns())
            outbox.queue.socket = -1
        if self._paused:
            self._watch(self._clients.clock.now_ns())
        while not (self._paused or self._sent_code or (self._gate is not None and self._gate.shut)):
            frame = self._frame()
            if not frame or self._transport.is_closing():
                return
            if self._gate is not None:
                frame += gate.PING
                self._gate.sent(self._clients.clock.now_ns())
            self._write(frame)

    def _frame(self) -> bytes:
        hub, outbox = self._clients.hub, self._outbox
        if not (outbox.queue or outbox.behind):
            return b""
        bytes_max = hub.limits.frame_bytes_max
        if self._gate is not None and not outbox.kept:  # what may not be conflated must get through
            bytes_max = gate.FRAME_BYTES_MAX
        payload = hub.payload(outbox, bytes_max)
        return header(outbox.first, len(payload)) + payload if payload else b""

    def _allow_direct(self) -> None:
        """Let the flush loop write to the socket itself while the transport has nothing of ours, see `sending`."""
        if not (self._paused or self._tls or self._gate is not None):
            self._outbox.queue.socket = self._transport.get_extra_info("socket").fileno()

    def sent(self, rest: bytes) -> None:
        """The flush loop wrote to the socket, which did not take ``rest``."""
        if not self._transport.is_closing():
            self._transport.write(rest)

    def _write(self, data: bytes) -> None:
        self._clients.sends += 1
        self._clients.sent_bytes += len(data)
        self._transport.write(data)

    def _send_controls(self) -> None:
        """Send the parser's answers: pongs, close frames, the end."""
        frames = self._frames
        if frames.state is OPEN:
            if self._paused:  # a peer that pings and does not read gets one pong when it does (RFC 6455 section 5.5.3)
                del frames.writes[:-1]
                return
        elif not self._sent_code:
            self.flush()  # the replies to what came before
            self._sent_code = frames.close_sent.code if frames.close_sent is not None else NO_CODE
            if self._sent_code == CloseCode.MESSAGE_TOO_BIG:
                self._clients.limited("command_size")
            self._clients.detach(self._outbox)
        writes = frames.data_to_send()
        data = b"".join(writes)
        if data:
            self._write(data)
        if writes and writes[-1] == SEND_EOF:
            self._end()

    def unsent(self) -> int:
        """Bytes that the kernel did not take yet."""
        return self._transport.get_write_buffer_size()

    def pause_writing(self) -> None:
        self._paused = True
        self._outbox.queue.socket = -1
        self._outbox.taking_ns = self._clients.clock.now_ns()
        self._untaken = self._not_taken()

    def _watch(self, now_ns: int) -> None:
        """While paused: note when the client has taken a good part of what was written."""
        untaken = self._not_taken()
        if self._untaken - untaken >= self.session.limits.outbox_progress_bytes:
            self._untaken, self._outbox.taking_ns = untaken, now_ns

    def _not_taken(self) -> int:
        """Bytes that the client's machine does not have. The kernel takes more from us only when most of it is gone."""
        return self.unsent() + unacknowledged(self._transport.get_extra_info("socket").fileno())

    def resume_writing(self) -> None:
        self._paused = False
        self._allow_direct()
        self._send_controls()
        self.flush()

    def beat(self) -> None:
        """Ping the peer, or close it when it has not answered."""
        if self._sent_code:
            return
        self._controls = 0
        now_ns = self._clients.clock.now_ns()
        if now_ns >= self._retire_ns:
            self._retire()
            return
        if self._paused:  # it cannot see a ping now, and is judged by what it takes
            self.session.pong(now_ns)
            self._watch(now_ns)
            if now_ns - self._outbox.taking_ns >= self.session.limits.outbox_stall_ms * MS:
                self._clients.hub.counters.overflows += 1
                self.close(CloseCode.SLOW_CONSUMER, SLOW_REASON)
                return
        for effect in self.session.tick(now_ns):
            if not (self._paused and isinstance(effect, DoPing)):
                self._perform(effect, now_ns)

    def drain(self, retry_after_ms: int) -> None:
        """Announce that this server stops."""
        for effect in self.session.drain(retry_after_ms):
            self._perform(effect, 0)
        self.flush()

    # ---- who it is

    def expire(self, now_ns: int) -> None:
        """The token ends soon, or has ended."""
        for effect in self.session.expire(now_ns):
            self._perform(effect, now_ns)
        self.flush()

    def turn_away(self) -> None:
        """Its subject has more connections than it may."""
        self._clients.limited("connections_per_token")
        self.close(CloseCode.TOO_MANY, "too many connections of your token's subject")

    def kept(self) -> str:
        """What it is subscribed to; "" when the hub has taken that from it already."""
        if self._outbox.close_code is not None:
            return ""
        return dump(self.session.access.subject, self._clients.hub.subscriptions(self._outbox))

    def restored(self, command_id: int, found: list[Wanted] | Error) -> None:
        """The answer to a `restore`."""
        now_ns = self._clients.clock.now_ns()
        effects = [Reply(found)] if isinstance(found, Error) else self.session.restored(command_id, found)
        for effect in effects:
            self._perform(effect, now_ns)
        self._clients.wake()
        self.flush()

    # ---- the end

    def _retire(self) -> None:
        self._clients.limited("connection_age")
        self.drain(self._clients.retry_after_ms())
        self.close(CloseCode.SERVICE_RESTART, "connected for long enough: reconnect and resume")

    def close(self, code: CloseCode, reason: str) -> None:
        """Send what waits if the peer reads, then a close frame. The socket is aborted if that does not end in time."""
        if self._sent_code:
            return
        if self._outbox.close_code is None:
            self.flush()
        self._sent_code = code
        self.session.closed()
        self._clients.detach(self._outbox)
        self._clients.endings.start(self)
        if self._frames.state is OPEN:
            self._frames.send_close(code, reason)
            self._send_controls()

    def _end(self) -> None:
        """The closing handshake is done, or the peer broke the protocol. To close with input unread would reset what we
        sent away: half-close, and let the peer end it."""
        if self._transport.can_write_eof():
            self._transport.write_eof()
            self._clients.endings.start(self)
        else:
            self._transport.close()

    def abort(self) -> None:
        """The time to close is over."""
        self._sent_code = self._sent_code or ABNORMAL
        sock = self._transport.get_extra_info("socket")
        if sock is not None and not self._transport.is_closing():  # else the kernel keeps for minutes what nobody reads
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._sent_code = self._sent_code or ABNORMAL
        self.session.closed()
        self._clients.detach(self._outbox)
        self._clients.closed(self, self._sent_code)
        self._frames.parser.close()  # a generator that refers to its owner: only the collector would free the pair
