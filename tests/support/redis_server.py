"""A real Redis on this machine, for tests."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

START_S = 20.0


def missing() -> str | None:
    """Why no Redis can be started here and how to mend it; None if one can."""
    if shutil.which("redis-server") is None:
        return "redis-server is missing: install it (Debian: apt-get install redis-server)"
    return None


class RedisServer:
    """Start, use ``url``, stop. Keeps nothing on disk."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._directory = Path(tempfile.mkdtemp(prefix="depthcast-redis-"))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, on the same port each time, empty, and wait until it answers."""
        options = {"port": str(self.port), "bind": "127.0.0.1", "save": "", "appendonly": "no"}
        command = ["redis-server", *(word for name, value in options.items() for word in (f"--{name}", value))]
        with Path(self._directory, "redis.log").open("ab") as log:
            self._process = subprocess.Popen(command, cwd=self._directory, stdout=log, stderr=log)
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            try:
                if self.tell("PING") == b"+PONG":
                    return
            except OSError:
                time.sleep(0.02)
        raise RuntimeError(f"Redis is not up: {Path(self._directory, 'redis.log').read_text()[-1000:]}")

    def tell(self, *words: str) -> bytes:
        """Send one command, without a client; returns the first line of the answer."""
        command = f"*{len(words)}\r\n" + "".join(f"${len(word.encode())}\r\n{word}\r\n" for word in words)
        with socket.create_connection(("127.0.0.1", self.port), timeout=2) as connection:
            connection.sendall(command.encode())
            return connection.makefile("rb").readline().strip()

    def pause(self) -> None:
        """It answers nothing from now on; its connections stay open."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, sig: signal.Signals) -> None:
        assert self._process is not None
        os.kill(self._process.pid, sig)

    def stop(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self._directory, ignore_errors=True)
