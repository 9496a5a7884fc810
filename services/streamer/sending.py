"""Many small writes at once, past the event loop's transports, which spend as long on each as the kernel does.

Right only where a transport has nothing buffered, and for plain TCP: TLS has its state in the transport.
"""

import os
from collections.abc import Sequence


def send_all(sockets: Sequence[int], frames: Sequence[bytes]) -> list[tuple[int, int]]:
    """Write ``frames[i]`` to the non-blocking socket with the descriptor ``sockets[i]``.

    Returns:
        For each frame that its socket did not take whole, (i, bytes taken). A broken socket takes nothing; to find out
        why is its transport's work.
    """
    left = []
    write = os.write
    for i, frame in enumerate(frames):
        try:
            taken = write(sockets[i], frame)
        except OSError:
            taken = 0
        if taken < len(frame):
            left.append((i, taken))
    return left
