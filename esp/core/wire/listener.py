"""The listener: accepts clients, keeps count of them, makes room when they are many, and lets them go at the end."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from functools import partial
from heapq import nsmallest
from typing import Final

from esp.core.wire.accepted import ServerProtocol
from esp.core.wire.context import WireContext
from esp.core.wire.http1 import FindPage
from esp.core.wire.request import RequestHead
from esp.core.wire.server import ServerConnection
from esp.core.wire.server_stream import Handler, ServerStream
from esp.core.wire.shares import Shares
from esp.core.wire.status import Status
from esp.core.wire.transport import USER_TIMEOUT, set_user_timeout
from esp.core.wire.turns import SLICE

log = logging.getLogger("esp.wire")

ACCEPTED_AT_ONCE: Final = 8
"""Clients that are accepted in one turn of the loop. Even one that is refused takes a descriptor for a while."""
BACKLOG: Final = 1024
"""Clients that the kernel lets wait to be accepted."""
SCARCE_IDLE_SECONDS: Final = 10.0
"""How long a connection has had no call that ends when connections are scarce."""
ROOM_PART: Final = 16
"""The part of all connections for which room is made at a time."""


class Listener:
    """Accepts clients on any number of sockets and keeps count of them.

    Args:
        find: names the handler of a request.
        find_page: answers plain HTTP/1.1 requests.
    """

    def __init__(self, context: WireContext, find: Callable[[RequestHead], Handler], find_page: FindPage) -> None:
        self.context = context
        self.find = find
        self.find_page = find_page
        self._protocols: set[ServerProtocol] = set()
        self._servers: list[asyncio.Server] = []
        self._empty = asyncio.Event()
        self._empty.set()
        self._is_full = False
        self._unseen: list[ServerProtocol] = []  # whose deadlines this tick has not looked at yet
        self._tick = 0.0
        self._places = Shares(context.limits.max_connections, context.limits.common_share)

    async def listen(self, host: str, port: int) -> list[tuple[str, int]]:
        """Begins to accept on `host`:`port`; the addresses bound.

        Raises:
            OSError: the address cannot be bound.
        """
        loop = asyncio.get_running_loop()
        make = partial(ServerProtocol, self)
        server = await loop.create_server(make, host, port, backlog=1, start_serving=False)
        self._servers.append(server)
        bound = [sock.getsockname()[:2] for sock in server.sockets]
        for listening in server.sockets:
            await self._accept_on(listening.fileno(), make)
        return bound

    async def _accept_on(self, descriptor: int, make: Callable[[], ServerProtocol]) -> None:
        """Accepts several clients in a turn: uvloop takes one for each descriptor, so the socket has several.

        With one, a client would wait as many turns as there are others before it in the kernel's queue.
        """
        loop = asyncio.get_running_loop()
        for _ in range(ACCEPTED_AT_ONCE):
            same = socket.socket(fileno=os.dup(descriptor))
            # What is accepted inherits that. A client that is slow to read has as long as the wire gives it.
            set_user_timeout(same, max(USER_TIMEOUT, self.context.limits.blocked_write_timeout))
            self._servers.append(await loop.create_server(make, sock=same, backlog=1))
            same.listen(BACKLOG)  # "backlog" is also how many asyncio's own loop accepts on one descriptor in a turn

    def flush_soon(self) -> None:
        """Writes what waits when all sockets of this turn of the loop have been read: their requests leave together.

        A client that is alone has nobody to wait for.
        """
        if len(self._protocols) == 1:
            self.context.flush()
        elif not self.context.turns.will_run:
            self.context.turns.run_soon()

    def close(self) -> None:
        """Stops accepting."""
        for server in self._servers:
            server.close()

    def opened(self, protocol: ServerProtocol) -> None:
        """A client has connected."""
        counters = self.context.counters
        counters.connections_accepted += 1
        if not self._places.take(protocol.address):
            self.context.reached("max_connections")
            if not self._is_full:
                self._is_full = True
                log.warning(
                    "%s: refused, as are others until one leaves: %d connections are open",
                    protocol.peer,
                    len(self._protocols),
                )
            assert protocol.transport is not None
            protocol.transport.abort()
            return
        self._protocols.add(protocol)
        counters.connections_open += 1
        self._empty.clear()

    def closed(self, protocol: ServerProtocol) -> None:
        """A client is gone."""
        if protocol in self._protocols:
            self._protocols.remove(protocol)
            self._places.give(protocol.address)
            self.context.counters.connections_open -= 1
            if not self._protocols:
                self._empty.set()

    def tick(self, now: float) -> None:
        """Looks at the deadlines of every client: those that do not fit a slice have their turn in the loop's next."""
        self._tick = now
        if not self._unseen:
            self._unseen = list(self._protocols)
            self.go_on()
        self.context.flush()

    def go_on(self) -> None:
        """Looks at the deadlines of some more clients."""
        unseen, clock = self._unseen, self.context.turns.clock
        stop = clock() + SLICE
        try:
            while unseen:
                protocol = unseen.pop()
                if protocol in self._protocols:
                    protocol.tick(self._tick)
                if unseen and clock() >= stop:
                    self.context.put_off(self)
                    return
        except BaseException:
            unseen.clear()  # the next tick begins anew
            raise
        if self._places.is_scarce:
            self._make_room(self._tick)
        else:
            self._is_full = False

    def flush(self) -> None:
        """Has no output of its own."""

    def on_bug(self) -> None:
        """An exception came out of `go_on`: the other clients' deadlines are looked at in the next tick."""
        log.exception("a bug in esp; some clients' deadlines were not looked at")

    def _make_room(self, now: float) -> None:
        """Ends connections that are idle: the longest first, and before others those of who holds much."""
        idle = [
            (self._places.holds_little(protocol.address), since, number, protocol)
            for number, protocol in enumerate(self._protocols)
            if (since := protocol.idle_since) is not None and now - since > SCARCE_IDLE_SECONDS
        ]
        gone = nsmallest(max(1, self.context.limits.max_connections // ROOM_PART), idle)
        for _, _, _, protocol in gone:
            protocol.let_go()
        if gone:
            self.context.reached("max_connections")
            log.info("connections are scarce (max_connections, common_share): %d that were idle end", len(gone))

    def calls(self) -> list[ServerStream]:
        """The calls of all clients that are open."""
        return [
            stream
            for protocol in self._protocols
            if isinstance(protocol.connection, ServerConnection)
            for stream in protocol.connection.streams.values()
        ]

    def forget_heads(self) -> None:
        """Asks `find` again for the handler of every further request; calls that have begun keep their handlers."""
        for protocol in self._protocols:
            if isinstance(protocol.connection, ServerConnection):
                protocol.connection.forget_heads()

    async def drain(self, streaming: Status, seconds: float) -> bool:
        """Stops accepting and waits until every client's calls have ended: True when they did within `seconds`."""
        self.close()
        for protocol in list(self._protocols):
            protocol.drain(streaming)
        self.context.flush()
        try:
            async with asyncio.timeout(seconds):
                await self._empty.wait()
        except TimeoutError:
            self.abort()
            return False
        return True

    def abort(self) -> None:
        """Ends every client's connection at once."""
        for protocol in list(self._protocols):
            if protocol.transport is not None:
                protocol.transport.abort()
