"""The listener's end, where other processes accept clients on the same sockets."""

from __future__ import annotations

import asyncio
import socket

import pytest

from esp.core.wire.context import WireContext
from esp.core.wire.frames import PREFACE, SETTINGS_ACK, settings
from esp.core.wire.limits import Limits
from esp.core.wire.listener import Listener
from esp.core.wire.status import Code, Status
from tests.core.wire.conversation import Server
from tests.harness import PATIENCE

STOPPED = Status(Code.UNAVAILABLE, "etcdserver: server stopped")


class _Others:
    """Another process, which has given a client to this one while it drained."""

    def __init__(self, *clients: socket.socket) -> None:
        self.clients = [client.detach() for client in clients]

    def give_away(self, descriptor: int, port: int, clients: int) -> bool:
        raise AssertionError("a client that was given away is not passed on")

    def tell(self, clients: int) -> None:
        pass

    def close(self) -> None:
        pass

    def end(self) -> list[tuple[int, int]]:
        clients, self.clients = self.clients, []
        return [(client, 0) for client in clients]


@pytest.mark.parametrize("seconds", [PATIENCE, 0.0])
def test_a_client_that_comes_from_another_process_at_the_very_end_is_sent_elsewhere(seconds: float) -> None:
    async def run() -> None:
        listener = Listener(WireContext(Limits()), Server(Limits(), None)._find, lambda _: None)  # type: ignore[arg-type, return-value]
        here = socket.create_server(("127.0.0.1", 0))
        client = socket.create_connection(here.getsockname())
        accepted, _ = here.accept()
        listener.balance = _Others(accepted)
        await listener.listen(here)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        draining = asyncio.ensure_future(listener.drain(STOPPED, seconds))
        said = b""
        if seconds:
            await loop.sock_sendall(client, PREFACE + settings({}) + SETTINGS_ACK)
        async with asyncio.timeout(PATIENCE):
            try:
                while b"draining" not in said and (piece := await loop.sock_recv(client, 65_536)):
                    said += piece
            except ConnectionResetError:
                assert not seconds
        assert (b"draining" in said) == bool(seconds), "GOAWAY, or the end"
        client.close()
        await draining
        assert not listener.protocols

    asyncio.run(run())
