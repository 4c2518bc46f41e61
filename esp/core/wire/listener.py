"""The listener: accepts clients, keeps count of them, makes room when they are many, and lets them go at the end."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Collection
from functools import partial
from heapq import nsmallest
from typing import Final, Protocol

from esp.core.wire.accepted import ServerProtocol
from esp.core.wire.accepted_tls import TlsServerProtocol
from esp.core.wire.context import WireContext
from esp.core.wire.exchange import Serve
from esp.core.wire.request import RequestHead
from esp.core.wire.server_stream import Handler, ServerStream
from esp.core.wire.status import Status
from esp.core.wire.transport import USER_TIMEOUT, set_user_timeout
from esp.core.wire.turns import SLICE

log = logging.getLogger("esp.wire")

ACCEPTED_AT_ONCE: Final = 8
"""The most clients accepted in one turn of the loop. Even a refused client takes a descriptor for a while."""
BACKLOG: Final = 1024
"""The most clients that wait in the kernel to be accepted."""
SCARCE_IDLE_SECONDS: Final = 10.0
"""When connections are scarce, a connection may end if it has had no call for so many seconds."""
ROOM_PART: Final = 16
"""Room is made for this part of all connections at a time: a sixteenth."""


class Balance(Protocol):
    """The processes that share clients with this one."""

    def give_away(self, descriptor: int, port: int, clients: int) -> bool:
        """Gives a new client to another process; False if it stays here. `clients` are here already."""

    def tell(self, clients: int) -> None:
        """So many clients are here now."""

    def close(self) -> None:
        """This process accepts no further clients; of those on their way to it the last may still come."""

    def end(self) -> list[tuple[int, int]]:
        """None comes any more. Returns the last ones: descriptors, each with the number of its listening socket."""


class Listener:
    """Accepts clients on any number of sockets and keeps count of them.

    Args:
        find: names the handler of a request.
        serve: answers plain HTTP/1.1 requests.

    Attributes:
        balance: the other processes that accept clients on the same sockets; None if there are none.
    """

    def __init__(self, context: WireContext, find: Callable[[RequestHead], Handler], serve: Serve) -> None:
        self.balance: Balance | None = None
        self.context = context
        self.find = find
        self.serve = serve
        self._protocols: set[ServerProtocol] = set()
        self._sockets: list[socket.socket] = []
        self._makes: list[Callable[[], ServerProtocol]] = []  # for clients that other processes have accepted
        self._servers: list[asyncio.Server] = []
        self._empty = asyncio.Event()
        self._empty.set()
        self._is_full = False
        self._draining: Status | None = None
        self._unseen: list[ServerProtocol] = []  # clients whose deadlines this tick has yet to look at
        self._tick = 0.0
        self._places = context.places("max_connections")

    async def listen(self, sock: socket.socket, tls: Callable[[], ssl.SSLContext] | None = None) -> None:
        """Begins to accept on a bound socket, which the listener closes when it closes.

        Clients speak TLS with the certificates that `tls` gives at that moment; with None, they speak no TLS.

        Several clients are accepted in a turn: uvloop accepts one on each descriptor, so the socket has several. With
        one descriptor, a client would wait a turn for each client before it in the kernel's queue.

        Raises:
            OSError: another process listens at the address.
        """
        self._sockets.append(sock)
        sock.listen(BACKLOG)
        loop = asyncio.get_running_loop()
        kind = ServerProtocol if tls is None else partial(TlsServerProtocol, tls)
        make = partial(kind, self, len(self._makes))
        self._makes.append(partial(kind, self, None))
        begin = loop.create_unix_server if sock.family == socket.AF_UNIX else loop.create_server
        # Accepted sockets inherit this option. The wire itself decides how long a client that reads slowly may take.
        set_user_timeout(sock, max(USER_TIMEOUT, self.context.limits.blocked_write_timeout))
        for _ in range(ACCEPTED_AT_ONCE):
            same = sock.dup()
            self._servers.append(await begin(make, sock=same, backlog=1))
            same.listen(BACKLOG)  # asyncio's own loop accepts as many on one descriptor in a turn, not one

    async def take(self, descriptor: int, port: int) -> None:
        """Serves a client that another process has accepted on the socket with the number `port`."""
        sock = socket.socket(fileno=descriptor)
        try:
            sock.setblocking(False)
            await asyncio.get_running_loop().connect_accepted_socket(self._makes[port], sock)
        except OSError as error:  # the client has gone meanwhile
            log.debug("a client that another process has accepted: %s", error)
            sock.close()

    def flush_soon(self) -> None:
        """Writes waiting output when all sockets of this turn of the loop have been read: requests leave together.

        With a single client, the output is written at once.
        """
        if len(self._protocols) == 1:
            self.context.flush()
        else:
            self.context.turns.run_soon()

    def close(self) -> None:
        """Stops accepting."""
        if self.balance is not None:
            self.balance.close()
        for sock in self._sockets:
            sock.close()
        for server in self._servers:
            server.close()

    def opened(self, protocol: ServerProtocol) -> None:
        """A client has connected."""
        balance, transport = self.balance, protocol.transport
        assert transport is not None
        if balance is not None and protocol.port is not None:
            descriptor = transport.get_extra_info("socket").fileno()
            if balance.give_away(descriptor, protocol.port, len(self._protocols)):
                transport.abort()  # closes this process's descriptor; the connection goes on
                return
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
            transport.abort()
            return
        self._protocols.add(protocol)
        if balance is not None:
            balance.tell(len(self._protocols))
        if self._draining is not None:
            protocol.drain(self._draining)
        counters.connections_open += 1
        self._empty.clear()

    def closed(self, protocol: ServerProtocol) -> None:
        """A client is gone."""
        if protocol in self._protocols:
            self._protocols.remove(protocol)
            if self.balance is not None:
                self.balance.tell(len(self._protocols))
            self._places.give(protocol.address)
            self.context.counters.connections_open -= 1
            if not self._protocols:
                self._empty.set()

    def tick(self, now: float) -> None:
        """Looks at the deadlines of every client; clients for which the slice is too short follow in the next turns."""
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
        """An exception came out of `go_on`. The next tick looks at the deadlines of the other clients."""
        log.exception("a bug in esp; some clients' deadlines were not looked at")

    def _make_room(self, now: float) -> None:
        """Ends idle connections: those of addresses that hold much before others, and the longest idle first."""
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

    @property
    def protocols(self) -> Collection[ServerProtocol]:
        """The clients' connections."""
        return self._protocols

    def calls(self) -> list[ServerStream]:
        """The open calls of all clients."""
        return [
            stream
            for protocol in self._protocols
            if (server := protocol.server) is not None
            for stream in server.streams.values()
        ]

    def forget_heads(self) -> None:
        """Asks `find` again for the handler of every further request; calls that have begun keep their handlers."""
        for protocol in self._protocols:
            if (server := protocol.server) is not None:
                server.forget_heads()

    async def drain(self, streaming: Status, seconds: float) -> bool:
        """Stops accepting, and waits until every client's calls have ended; True if they did within `seconds`."""
        waiting = self._waiting()
        self.close()
        self._draining = streaming
        for descriptor, port in waiting:
            await self.take(descriptor, port)
        for protocol in list(self._protocols):
            protocol.drain(streaming)
        self.context.flush()
        try:
            async with asyncio.timeout(seconds):
                await self._empty.wait()
                await self._take_last()
                await self._empty.wait()
        except TimeoutError:
            await self._take_last()
            self.abort()
            return False
        return True

    def _waiting(self) -> list[tuple[int, int]]:
        """The clients that wait in the kernel to be accepted, and their sockets' numbers.

        For these the connection exists already. The kernel resets it if nobody accepts, and calls in it fail.
        """
        found: list[tuple[int, int]] = []
        for port, sock in enumerate(self._sockets):
            try:
                while len(found) < BACKLOG:
                    client, _ = sock.accept()
                    found.append((client.detach(), port))
            except OSError:  # nobody waits, or there are no descriptors left
                continue
        return found

    async def _take_last(self) -> None:
        """Takes the clients that others have given to this process meanwhile, and lets them go as all others."""
        for descriptor, port in () if self.balance is None else self.balance.end():
            await self.take(descriptor, port)

    def abort(self) -> None:
        """Ends every client's connection at once."""
        for protocol in list(self._protocols):
            if protocol.transport is not None:
                protocol.transport.abort()
