"""Connecting to a host of several addresses, with real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from esp.core.shard.dial import connect
from esp.core.wire.client import ClientConnection
from esp.core.wire.client_tls import TlsClientProtocol
from esp.core.wire.context import WireContext
from esp.core.wire.frames import PREFACE, ErrorCode
from esp.core.wire.limits import Limits
from tests.core.wire.certificates import HOST, client_context, server_context
from tests.core.wire.test_transport import Run, run

__all__ = ["run"]


class Addresses:
    """Addresses of this machine with the same port: 127.0.0.1 accepts, .2 swallows what comes, .3 refuses."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.port: int = self.listening.getsockname()[1]
        swallowing = stack.enter_context(socket.create_server(("127.0.0.2", self.port), backlog=0))
        for _ in range(2):  # as many as the kernel lets wait to be accepted; it drops what comes after them
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                filler.connect(swallowing.getsockname())

    def accepts(self) -> socket.socket:
        self.listening.settimeout(20)
        return self.listening.accept()[0]


@pytest.fixture
def addresses() -> Iterator[Addresses]:
    with contextlib.ExitStack() as stack:
        yield Addresses(stack)


def connection() -> ClientConnection:
    return ClientConnection(WireContext(Limits()), "etcd:2379")


@pytest.mark.parametrize(
    "several",
    [
        ["127.0.0.1"],
        ["127.0.0.2", "127.0.0.1"],
        ["127.0.0.3", "127.0.0.1"],
        ["127.0.0.3", "127.0.0.2", "127.0.0.2", "127.0.0.1"],
        ["127.0.0.1", "127.0.0.2"],
    ],
)
def test_one_that_accepts_is_connected_to_whatever_others_do(
    run: Run, addresses: Addresses, several: list[str]
) -> None:
    async def test() -> None:
        one = connection()
        await connect(one, several, addresses.port)
        with addresses.accepts() as accepted:
            accepted.settimeout(20)
            assert accepted.recv(len(PREFACE)) == PREFACE
            sock: Any = one.on_flush.__self__.get_extra_info("socket")  # type: ignore[union-attr]
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            one.end(ErrorCode.NO_ERROR, "")
            one.context.flush()
            accepted.settimeout(20)
            while await asyncio.to_thread(accepted.recv, 65536):
                pass

    run(test)


def test_the_last_of_many_addresses_is_tried_in_time(run: Run, addresses: Addresses) -> None:
    async def test() -> None:
        one = connection()
        async with asyncio.timeout(2):
            await connect(one, ["127.0.0.2"] * 19 + ["127.0.0.1"], addresses.port, 2)
        with addresses.accepts():
            one.end(ErrorCode.NO_ERROR, "")
            one.context.flush()

    run(test)


def test_addresses_that_all_refuse(run: Run, addresses: Addresses) -> None:
    async def test() -> None:
        with pytest.raises(ConnectionRefusedError):
            await connect(connection(), ["127.0.0.3"], addresses.port)
        with pytest.raises(OSError, match=r"111.*; .*111"):
            await connect(connection(), ["127.0.0.3", "127.0.0.4"], addresses.port)

    run(test)


def test_who_gives_up_leaves_no_socket_behind(run: Run, addresses: Addresses, recwarn: pytest.WarningsRecorder) -> None:
    async def test() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.6):
                await connect(connection(), ["127.0.0.2"] * 3, addresses.port)
        await asyncio.sleep(0.01)

    run(test)
    assert not recwarn.list


def test_who_gives_up_when_the_handshake_is_just_over_has_no_bug_told(
    run: Run, addresses: Addresses, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """uvloop closes the transport by itself then, and `is_closing` does not say so."""
    made = TlsClientProtocol.connection_made
    given_up = threading.Event()

    def shakes_hands() -> None:
        with addresses.accepts() as sock, contextlib.suppress(OSError), server_context().wrap_socket(sock, True):
            given_up.wait(20)

    def connection_made(protocol: TlsClientProtocol, transport: asyncio.BaseTransport) -> None:
        made(protocol, transport)
        number = transport.get_extra_info("socket").fileno()
        while not protocol.opened.done():  # before whoever waits for the connection can go on
            assert select.select([number], [], [], 20)[0], "the server says nothing"
            protocol.data_received(os.read(number, 65536))
        giving_up.cancel()

    async def test() -> None:
        nonlocal giving_up
        one = connection()
        tls = client_context(), HOST
        giving_up = asyncio.ensure_future(connect(one, ["127.0.0.1"], addresses.port, tls=tls))
        with pytest.raises(asyncio.CancelledError):
            await giving_up
        one.end(ErrorCode.NO_ERROR, "not wanted any more")
        one.context.flush()
        await asyncio.sleep(0.01)  # the transport ends

    giving_up: asyncio.Future[object]
    monkeypatch.setattr(TlsClientProtocol, "connection_made", connection_made)
    server = threading.Thread(target=shakes_hands)
    server.start()
    try:
        with caplog.at_level(logging.WARNING):
            run(test)
    finally:
        given_up.set()
        server.join()
    assert not caplog.records
