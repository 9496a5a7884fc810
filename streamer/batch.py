"""What one flush makes for the sockets."""

from streamer.outbox import Outbox, Segment


class Batch:
    """What a slice of a flush writes: ``frames[i]`` of ``outboxes[i]`` to ``sockets[i]``."""

    __slots__ = ("bytes", "frames", "others", "outboxes", "sockets")

    def __init__(self) -> None:
        self.sockets: list[int] = []
        self.frames: list[bytes] = []
        self.outboxes: list[Outbox] = []
        self.bytes = 0  # of the frames
        self.others: list[Outbox] = []  # to be asked afterwards: no socket, closed, or more to take


class Shared:
    """A frame that was made in this flush, and the queue it was made of."""

    __slots__ = ("frame", "queue", "tally")

    def __init__(self, queue: list[Segment], tally: int, frame: bytes) -> None:
        self.queue = queue
        self.tally = tally
        self.frame = frame
