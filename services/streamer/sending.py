"""Many small writes at once, past the event loop's transports, which spend as long on each as the kernel does.

Right only where a transport has nothing buffered, and for plain TCP: TLS has its state in the transport.

`send_all` is the compiled build's (`native.c`), or else `send_each`; one test holds both to the same contract.
"""

import fcntl
import os
import sys
import termios
from collections.abc import Callable
from contextlib import suppress

from streamer.frames import header
from streamer.outbox import Segment

Left = list[tuple[int, bytes | None]]


def send_each(
    sockets: list[int], firsts: bytearray, queues: list[list[Segment]], bytes_max: int
) -> tuple[int, int, Left]:
    """Send what each client waits for as one WebSocket frame, and empty its queue.

    Clients with the same queue share one frame.

    Args:
        sockets: Descriptors, non-blocking.
        firsts: The first byte of each client's frames.
        queues: What waits for each; not empty.
        bytes_max: Of a payload.

    Returns:
        Bytes sent or left, the tally of what the frames hold, and of each frame that its socket did not take whole
        (index, the rest). A broken socket takes nothing; to find out why is its transport's work. (index, None): too
        large for one frame, so nothing was done.
    """
    left: Left = []
    frames: dict[Segment, tuple[list[Segment], int, bytes, int]] = {}  # by the last segment, cheaper to hash than all
    total_bytes = total = 0
    write, join = os.write, b"".join
    for i, queue in enumerate(queues):
        last, first = queue[-1], firsts[i]
        shared = frames.get(last)
        if shared is not None and shared[0] == queue and shared[1] == first:
            frame, tally = shared[2], shared[3]
        else:
            payload = join([segment.data for segment in queue])
            if len(payload) > bytes_max:
                left.append((i, None))
                continue
            frame = header(first, len(payload)) + payload
            tally = sum([segment.tally for segment in queue])
            frames[last] = (queue.copy(), first, frame, tally)
        try:
            taken = write(sockets[i], frame)
        except OSError:
            taken = 0
        if taken < len(frame):
            left.append((i, frame[taken:]))
        total_bytes += len(frame)
        total += tally
        queue.clear()
    return total_bytes, total, left


def unacknowledged(descriptor: int) -> int:
    """Bytes of what was sent that the other machine does not have yet (tcp(7), SIOCOUTQ); 0 of a closed socket."""
    count = bytearray(4)
    with suppress(OSError, ValueError):
        fcntl.ioctl(descriptor, termios.TIOCOUTQ, count)
    return int.from_bytes(count, sys.byteorder)


send_all: Callable[[list[int], bytearray, list[list[Segment]], int], tuple[int, int, Left]]
try:
    from services.streamer.native import send_all
except ImportError:
    send_all = send_each
