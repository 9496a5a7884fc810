"""What waits for each client, and the line in which clients with something new stand.

The hub offers a segment to all listeners of a stream at once, and takes a slice of the line at a time: these two, and
the sending, are the work that grows with the number of clients. `PlainLine` says what they do; the compiled build has
them in C (`services/streamer/native.c`), where a queue is one piece of memory. One set of tests holds both to it.
"""

from itertools import islice
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from streamer.outbox import Outbox, Segment


class Queue(Protocol):
    """What waits for one client. Equal only to itself."""

    owner: "Outbox | None"
    """None: the client is gone."""
    first: int
    """Byte of each frame."""
    socket: int
    """Where the shell may write at once; -1: nowhere."""
    plain: bool
    """Whether the queue is all that there is to take. Else its owner must be asked, see `Outbox.take`."""

    def append(self, segment: "Segment") -> None:
        """Last, and stand in line."""
        ...

    def stand(self) -> None:
        """Last in line, unless it stands there."""
        ...

    def segments(self) -> "list[Segment]":
        """A copy."""
        ...

    def replace(self, segments: "list[Segment]") -> None:
        """Hold these instead. It stands in line or does not, as before."""
        ...

    def __len__(self) -> int: ...


class Listeners(Protocol):
    """The queues that get what a lane publishes."""

    def add(self, queue: Queue) -> None:
        """One that is not there."""
        ...

    def discard(self, queue: Queue) -> None:
        """Harmless when it is not there."""
        ...

    def offer(self, segment: "Segment") -> None:
        """`Queue.append` to each."""
        ...

    def __len__(self) -> int: ...

    def __contains__(self, queue: object) -> bool: ...


class Line(Protocol):
    """Queues with something new to take. Its length is how many."""

    def queue(self, owner: "Outbox", first: int) -> Queue:
        """A new one, empty and plain, without a socket."""
        ...

    def listeners(self) -> Listeners:
        """New, of queues of this line."""
        ...

    def take(self, queues_max: int | None) -> list[Queue]:
        """So many (None: all) leave the line, who waits longest first."""
        ...

    def leave(self, queue: Queue) -> None:
        """Whatever its place. Harmless when it does not stand there."""
        ...

    def __len__(self) -> int: ...


class PlainQueue:
    __slots__ = ("_line", "first", "items", "owner", "plain", "socket")

    def __init__(self, line: "PlainLine", owner: "Outbox", first: int) -> None:
        self._line = line
        self.owner: Outbox | None = owner
        self.first = first
        self.socket = -1
        self.plain = True
        self.items: list[Segment] = []  # always this list: listeners and the line hold it

    def append(self, segment: "Segment") -> None:
        self.items.append(segment)
        self.stand()

    def stand(self) -> None:
        self._line.standing.setdefault(self, self.items)

    def segments(self) -> "list[Segment]":
        return self.items.copy()

    def replace(self, segments: "list[Segment]") -> None:
        self.items[:] = segments

    def __len__(self) -> int:
        return len(self.items)


class PlainListeners:
    __slots__ = ("_line", "_queues")

    def __init__(self, line: "PlainLine") -> None:
        self._line = line
        self._queues: dict[Queue, list[Segment]] = {}

    def add(self, queue: Queue) -> None:
        if not isinstance(queue, PlainQueue):
            raise TypeError("not a queue of a line like this")
        self._queues[queue] = queue.items

    def discard(self, queue: Queue) -> None:
        self._queues.pop(queue, None)

    def offer(self, segment: "Segment") -> None:
        for items in self._queues.values():
            items.append(segment)
        self._line.standing.update(self._queues)

    def __len__(self) -> int:
        return len(self._queues)

    def __contains__(self, queue: object) -> bool:
        return queue in self._queues


class PlainLine:
    __slots__ = ("standing",)

    def __init__(self) -> None:
        self.standing: dict[Queue, list[Segment]] = {}  # with their items, so that listeners join in one call

    def queue(self, owner: "Outbox", first: int) -> PlainQueue:
        return PlainQueue(self, owner, first)

    def listeners(self) -> PlainListeners:
        return PlainListeners(self)

    def take(self, queues_max: int | None) -> list[Queue]:
        standing = self.standing
        taken = list(islice(standing, queues_max))
        for queue in taken:
            del standing[queue]
        return taken

    def leave(self, queue: Queue) -> None:
        self.standing.pop(queue, None)

    def __len__(self) -> int:
        return len(self.standing)
