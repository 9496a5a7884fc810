"""What one flush has for the sockets."""

from streamer.outbox import Outbox, Segment


class Batch:
    """A slice of a flush: ``queues[i]`` of ``outboxes[i]`` is to go to ``sockets[i]`` in a frame with ``firsts[i]``."""

    __slots__ = ("firsts", "others", "outboxes", "queues", "sockets")

    def __init__(self) -> None:
        self.sockets: list[int] = []
        self.firsts = bytearray()
        self.queues: list[list[Segment]] = []
        self.outboxes: list[Outbox] = []
        self.others: list[Outbox] = []  # to be asked: no socket, closed, slow, or with more than its queue to take
