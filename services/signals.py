"""SIGTERM and SIGINT as an event, and child processes that end with their parent."""

import asyncio
import ctypes
import signal
import sys

_PR_SET_PDEATHSIG = 1


def stop_on_signals() -> asyncio.Event:
    """Set at the first SIGTERM or SIGINT. A second one ends the process as if this had not been called."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        stop.set()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(signum)

    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, on_signal)
    return stop


def end_with_parent() -> None:
    """In a new child process: SIGTERM when the parent dies, even of SIGKILL (Linux, prctl(2) PR_SET_PDEATHSIG)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
