"""Connections that come together are accepted a few at a time, and none is lost."""

import asyncio
import errno
import socket
from contextlib import ExitStack

import pytest

from services import accepting
from services.accepting import AT_ONCE, Acceptor

CLIENTS = 5 * AT_ONCE + 3


class Counting(asyncio.Protocol):
    made = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        Counting.made += 1
        transport.write(b"hello")
        transport.close()


@pytest.fixture
def listener() -> socket.socket:
    """Closed by the acceptor."""
    Counting.made = 0
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    return listener


def connect(listener: socket.socket, opened: ExitStack) -> list[socket.socket]:
    listener.listen(CLIENTS)
    clients = [opened.enter_context(socket.create_connection(listener.getsockname())) for _ in range(CLIENTS)]
    for client in clients:
        client.setblocking(False)
    return clients


async def greeting(client: socket.socket) -> bytes:
    async with asyncio.timeout(10):
        return await asyncio.get_running_loop().sock_recv(client, 16)


async def test_a_crowd_leaves_turns_of_the_event_loop_to_others(listener: socket.socket) -> None:
    with ExitStack() as opened:
        clients = connect(listener, opened)
        acceptor = Acceptor(listener, Counting, CLIENTS, None)
        acceptor.start()
        most = turns = 0
        while Counting.made < CLIENTS:
            before = Counting.made
            await asyncio.sleep(0)
            most = max(most, Counting.made - before)
            turns += 1
        assert [await greeting(client) for client in clients] == [b"hello"] * CLIENTS
        acceptor.close()
        acceptor.close()
    assert most <= AT_ONCE
    assert turns >= CLIENTS // AT_ONCE


async def test_without_descriptors_it_pauses_and_comes_back(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0

    class Short(socket.socket):
        def accept(self) -> tuple[socket.socket, object]:
            nonlocal tries
            tries += 1
            if tries <= 2:
                raise OSError(errno.EMFILE, "no descriptor is left")
            return super().accept()

    monkeypatch.setattr(accepting, "PAUSE_S", 0.05)
    short = Short(fileno=listener.detach())
    with ExitStack() as opened:
        clients = connect(short, opened)
        acceptor = Acceptor(short, Counting, CLIENTS, None)
        acceptor.start()
        await asyncio.sleep(0.02)
        assert tries == 1, "it does not spin"
        assert await greeting(clients[0]) == b"hello"
        assert [await greeting(client) for client in clients[1:]] == [b"hello"] * (CLIENTS - 1)
        acceptor.close()
    assert short.fileno() == -1
