"""A client that believes nothing: it keeps the books of one connection, and checks every chain and digest."""

from dataclasses import dataclass, field

from protos.book import Book
from protos.codec import CODECS, CodecError
from protos.messages import BookUpdate, Digest, Error, Flag, Notice, NoticeCode, ServerMessage, Subscribed


@dataclass(slots=True)
class Checks:
    """What was found, of all checked clients together."""

    updates: int = 0
    digests_passed: int = 0
    digests_failed: int = 0
    broken_chains: int = 0
    conflated: int = 0
    skipped: int = 0
    """SKIPPED notices."""
    errors: list[str] = field(default_factory=list)

    @property
    def failed(self) -> int:
        """Everything that must not be."""
        return self.digests_failed + self.broken_chains + len(self.errors)


class Checker:
    """The books of one connection, by stream.

    Args:
        checks: Where to count.
    """

    def __init__(self, checks: Checks) -> None:
        self._checks = checks
        self._codec = CODECS["depthcast.v1.proto"]
        self.books: dict[int, Book] = {}
        self._depths: dict[int, int] = {}
        self.delivered = 0
        """Updates that came one by one."""
        self.conflated = 0
        """Updates that came merged: the synthetic sequences are dense, so a merged one tells how many it stands for."""

    def frame(self, payload: bytes) -> list[ServerMessage]:
        """Apply a frame; returns its messages."""
        try:
            messages = self._codec.decode(payload)
        except CodecError as error:
            self._checks.errors.append(f"not a frame: {error}")
            return []
        for message in messages:
            if isinstance(message, BookUpdate):
                self._update(message)
            elif isinstance(message, Digest):
                self._digest(message)
            elif isinstance(message, Subscribed):
                self.books[message.stream] = Book()
                self._depths[message.stream] = message.depth
            elif isinstance(message, Error):
                self._checks.errors.append(message.message)
            elif isinstance(message, Notice):
                self._checks.skipped += message.code is NoticeCode.SKIPPED
        return messages

    def _update(self, update: BookUpdate) -> None:
        checks, book = self._checks, self.books.setdefault(update.stream, Book())
        checks.updates += 1
        checks.conflated += bool(update.flags & Flag.CONFLATED)
        if not update.flags & Flag.SNAPSHOT and (update.epoch, update.prev_seq) != (book.epoch, book.seq):
            checks.broken_chains += 1
            return
        if update.flags & Flag.CONFLATED and update.prev_seq:
            self.conflated += update.seq - update.prev_seq
        elif not update.flags & Flag.SNAPSHOT:
            self.delivered += 1
        elif book.epoch == update.epoch:
            self.conflated += update.seq - book.seq
        book.apply(update)

    def _digest(self, digest: Digest) -> None:
        book = self.books.get(digest.stream)
        if book is None or (book.epoch, book.seq) != (digest.epoch, digest.seq):
            self._checks.errors.append(f"a digest of stream {digest.stream} for a position that it is not at")
        elif book.digest(self._depths.get(digest.stream, 0)) == digest.crc32:
            self._checks.digests_passed += 1
        else:
            self._checks.digests_failed += 1
