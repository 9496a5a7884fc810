"""Both builds' lines and senders: what one contract holds."""

from collections.abc import Callable
from typing import NamedTuple

from services.streamer.sending import Left, send_each
from streamer.line import Line, PlainLine, Queue
from tests.support.native import native


class Lines(NamedTuple):
    new: Callable[[], Line]
    send: Callable[[list[Queue], int], tuple[int, int, Left]]


KINDS = ("python", "native")


def lines(kind: str) -> Lines:
    """Of the build of that name. Skips the test when the native ones cannot be compiled."""
    if kind == "python":
        return Lines(PlainLine, send_each)
    module = native("services.streamer.native")
    return Lines(module.Line, module.send_all)
