"""A streamer of one instrument that keeps the true book of every position, answers commands, and may lie.

The client under test is its only client. What it sends and what the client must then hold is kept as a transcript.
"""

from random import Random
from typing import NamedTuple

from protos.book import Book
from protos.codec import Codec
from protos.messages import (
    BookState,
    BookUpdate,
    Digest,
    Flag,
    Levels,
    Notice,
    NoticeCode,
    Reason,
    Resume,
    Scale,
    ServerMessage,
    Subscribe,
    Subscribed,
    Unsubscribe,
    Unsubscribed,
    Welcome,
)
from services.client.core import ClientCore
from services.client.events import Event
from services.client.reconnect import Reconnect

SCALE = Scale(-2, -4)


class Step(NamedTuple):
    """Something that happened to the client, and what it then sent."""

    kind: str  # connected, closed, frame or commands
    data: list[str]


class ModelStreamer:
    def __init__(self, codec: Codec, rng: Random) -> None:
        self.codec, self.rng = codec, rng
        self.core = ClientCore(codec)
        self.transcript: list[Step] = []
        self.events: list[Event] = []
        self.truth: dict[Resume, tuple[Levels, Levels]] = {}
        self.book = Book()
        self.epoch, self.seq = 1_000, 10
        self.gapped = False
        self.stream = 0
        self.next_stream = 1
        self.sent = Resume(0, 0)  # the client's position, as far as the server knows
        self.lied = False  # a corrupted delta went out and no digest since
        self._level_up()
        self._remember()

    def _level_up(self) -> tuple[Levels, Levels]:
        rng = self.rng
        bids = [(100 - rng.randrange(8), rng.choice((0, rng.randrange(1, 99)))) for _ in range(rng.randrange(1, 4))]
        asks = [(101 + rng.randrange(8), rng.choice((0, rng.randrange(1, 99)))) for _ in range(rng.randrange(1, 4))]
        bids, asks = sorted(dict(bids).items()), sorted(dict(asks).items())
        self.book.bids.apply(bids)
        self.book.asks.apply(asks)
        return bids, asks

    def _remember(self) -> None:
        self.truth[Resume(self.epoch, self.seq)] = (self.book.bids.levels(), self.book.asks.levels())

    def connect(self) -> None:
        self.transcript.append(Step("connected", []))
        self.core.connected(0)
        self.push(Welcome("s", 15_000, 4096, 100))
        self.answer()

    def disconnect(self) -> None:
        self.transcript.append(Step("closed", []))
        verdict = self.core.closed(None, 0, self.rng)
        assert isinstance(verdict, Reconnect)
        self.events += self.core.stale()
        self.stream = 0

    def answer(self) -> None:
        commands = self.core.commands()
        if commands and not self.codec.binary:
            self.transcript.append(Step("commands", [data.decode() for data in commands]))
        for data in commands:
            command = self.codec.decode_command(data)
            if isinstance(command, Unsubscribe):
                assert command.stream == self.stream
                self.stream = 0
                self.push(Unsubscribed(command.id, command.stream))
            else:
                assert isinstance(command, Subscribe)
                self.subscribe(command)

    def subscribe(self, command: Subscribe) -> None:
        self.stream, self.next_stream = self.next_stream, self.next_stream + 1
        resumed = command.resume in self.truth and command.resume.epoch == self.epoch
        state = BookState.GAPPED if self.gapped else BookState.SYNCED
        self.push(
            Subscribed(
                command.id,
                self.stream,
                command.instrument,
                command.channel,
                epoch=self.epoch,
                seq=self.seq,
                scale=SCALE,
                resumed=resumed,
                state=state,
            )
        )
        if not resumed:
            self.snapshot()
        elif command.resume == Resume(self.epoch, self.seq):
            self.push(
                Notice(NoticeCode.GAP if self.gapped else NoticeCode.RECOVERED, self.stream, self.epoch, self.seq)
            )
        else:
            assert command.resume is not None
            self.sent = command.resume
            self.conflated()

    def push(self, *messages: ServerMessage) -> None:
        frame = b"".join(self.codec.encode(message, SCALE) for message in messages)
        if not self.codec.binary:
            self.transcript.append(Step("frame", [frame.decode()]))
        for event in self.core.receive(frame, 0):
            self.events.append(event)
            self.check()

    def check(self) -> None:
        """The invariant: what the client calls live is the truth at its position."""
        for subscription in self.core.subscriptions:
            if subscription.live and not self.lied:
                assert subscription.position in self.truth
                assert Resume(subscription.book.epoch, subscription.book.seq) == subscription.position
                levels = (subscription.book.bids.levels(), subscription.book.asks.levels())
                assert levels == self.truth[subscription.position]
                assert subscription.scale == SCALE

    def update(self, flags: int, prev_seq: int) -> BookUpdate:
        flags |= Flag.GAPPED if self.gapped else 0
        self.sent = Resume(self.epoch, self.seq)
        return BookUpdate(self.stream, self.epoch, self.seq, prev_seq, flags)

    def snapshot(self) -> None:
        self.lied = False
        update = self.update(Flag.SNAPSHOT, 0)
        update.bids, update.asks, update.scale = self.book.bids.levels(), self.book.asks.levels(), SCALE
        self.push(update)

    def delta(self, deliver: bool = True, twice: bool = False, corrupt: bool = False) -> None:
        if self.gapped:
            return
        prev_seq, self.seq = self.seq, self.seq + self.rng.randrange(1, 5)
        bids, asks = self._level_up()
        self._remember()
        if not deliver or not self.stream:
            return
        update = self.update(0, prev_seq)
        update.bids, update.asks = bids, asks
        if corrupt:
            self.lied = True
            update.bids = [(price, lots + 1) for price, lots in bids]
        self.push(*([update] * (2 if twice else 1)))
        self.answer()

    def conflated(self) -> None:
        """One delta from the client's position to ours."""
        if self.gapped or not self.stream or self.sent.epoch != self.epoch:
            return
        old_bids, old_asks = (dict(side) for side in self.truth[self.sent])
        position = self.sent
        update = self.update(Flag.CONFLATED, position.seq)
        if position.seq == self.seq:
            return
        for old, now, out in (
            (old_bids, dict(self.book.bids.levels()), update.bids),
            (old_asks, dict(self.book.asks.levels()), update.asks),
        ):
            prices = sorted(old.keys() | now)
            out += [(price, now.get(price, 0)) for price in prices if old.get(price) != now.get(price)]
        self.push(update)

    def gap(self) -> None:
        self.gapped = True
        if self.stream:
            self.push(Notice(NoticeCode.GAP, self.stream, self.epoch, self.seq, reason=Reason.SEQUENCE_GAP))

    def recover(self) -> None:
        if self.gapped:
            self.gapped = False
            self.epoch, self.seq = self.epoch + self.rng.randrange(1, 9), self.seq + 1
            self._level_up()
            self._remember()
            if self.stream:
                self.push(Notice(NoticeCode.RECOVERED, self.stream, self.epoch, self.seq))
                self.snapshot()

    def digest(self) -> None:
        if self.stream:
            self.push(Digest(self.stream, self.sent.epoch, self.sent.seq, digest_at(self.truth[self.sent])))
            self.lied = False
            self.check()
            self.answer()

    def reconnect(self) -> None:
        self.disconnect()
        self.connect()


def digest_at(levels: tuple[Levels, Levels]) -> int:
    book = Book()
    book.bids.replace(levels[0])
    book.asks.replace(levels[1])
    return book.digest()


OPERATIONS = {
    "delta": ModelStreamer.delta,
    "lost": lambda peer: peer.delta(deliver=False),
    "twice": lambda peer: peer.delta(twice=True),
    "corrupt": lambda peer: peer.delta(corrupt=True),
    "conflated": ModelStreamer.conflated,
    "gap": ModelStreamer.gap,
    "recover": ModelStreamer.recover,
    "digest": ModelStreamer.digest,
    "reconnect": ModelStreamer.reconnect,
}
"""What may happen next, by name."""
