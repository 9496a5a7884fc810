"""Many small writes at once, past the event loop's transports, which spend as long on each as the kernel does.

Right only where a transport has nothing buffered, and for plain TCP: TLS has its state in the transport.

`Line` and `send_all` are the compiled build's (`native.c`), or else `PlainLine` and `send_each`; one set of tests holds
both to the same contract.
"""

import fcntl
import os
import sys
import termios
from collections.abc import Callable
from contextlib import suppress

from streamer import line
from streamer.frames import header
from streamer.line import PlainLine, PlainQueue, Queue
from streamer.outbox import Segment

Left = list[tuple[Queue, bytes]]


def send_each(queues: list[Queue], bytes_max: int) -> tuple[int, int, Left]:
    """Send what waits in each plain queue with a socket as one WebSocket frame, and take the queue out of ``queues``.

    Clients with the same queue share one frame.

    Args:
        queues: Of a `PlainLine`. Those that stay are to be asked: empty, not plain, without a socket, or with more than
            fits a frame.
        bytes_max: Of a payload.

    Returns:
        Bytes sent or left, the tally of what the frames hold, and the rest of each frame that its socket did not take
        whole. A broken socket takes nothing; to find out why is its transport's work.
    """
    asked: list[Queue] = []
    left: Left = []
    frames: dict[Segment, tuple[list[Segment], int, bytes, int]] = {}  # by the last segment, cheaper to hash than all
    total_bytes = total = 0
    write, join = os.write, b"".join
    for queue in queues:
        if not isinstance(queue, PlainQueue) or queue.socket < 0 or not queue.plain or not queue.items:
            asked.append(queue)
            continue
        items, first = queue.items, queue.first
        last = items[-1]
        shared = frames.get(last)
        if shared is not None and shared[0] == items and shared[1] == first:
            frame, tally = shared[2], shared[3]
        else:
            payload = join([segment.data for segment in items])
            if len(payload) > bytes_max:
                asked.append(queue)
                continue
            frame = header(first, len(payload)) + payload
            tally = sum([segment.tally for segment in items])
            frames[last] = (items.copy(), first, frame, tally)
        try:
            taken = write(queue.socket, frame)
        except OSError:
            taken = 0
        if taken < len(frame):
            left.append((queue, frame[taken:]))
        total_bytes += len(frame)
        total += tally
        items.clear()
    queues[:] = asked
    return total_bytes, total, left


def unacknowledged(descriptor: int) -> int:
    """Bytes of what was sent that the other machine does not have yet (tcp(7), SIOCOUTQ); 0 of a closed socket."""
    count = bytearray(4)
    with suppress(OSError, ValueError):
        fcntl.ioctl(descriptor, termios.TIOCOUTQ, count)
    return int.from_bytes(count, sys.byteorder)


Line: Callable[[], line.Line]
send_all: Callable[[list[Queue], int], tuple[int, int, Left]]
try:
    from services.streamer.native import Line, send_all
except ImportError:
    Line, send_all = PlainLine, send_each
