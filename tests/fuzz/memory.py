"""A transport that goes nowhere: what is written can be read, and what is fed arrives."""

import asyncio


class MemoryTransport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__({"ssl_object": self})  # as with TLS, nobody writes past it
        self.sent: list[bytes] = []
        self._protocol: asyncio.BaseProtocol | None = None
        self._closing = False
        self._lost = False

    def feed(self, data: bytes) -> None:
        if not self._closing and isinstance(self._protocol, asyncio.Protocol):
            self._protocol.data_received(data)

    def lose(self) -> None:
        """The connection is gone."""
        self._closing = True
        if not self._lost and self._protocol is not None:
            self._lost = True
            self._protocol.connection_lost(None)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self._protocol is not None
        return self._protocol

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self._lost
        self.sent.append(bytes(data))

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def is_reading(self) -> bool:
        return not self._closing

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        self._closing = True

    def abort(self) -> None:
        self._closing = True
