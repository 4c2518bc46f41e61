"""Sockets: the asyncio protocols that move bytes between transports and sans-I/O connections, and the listener.

This module and `call` are the only ones of the wire that know asyncio.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable
from functools import partial
from heapq import nsmallest
from time import monotonic
from typing import Final, cast

from esp.core.wire.budget import Account
from esp.core.wire.client import ClientConnection
from esp.core.wire.connection import Connection
from esp.core.wire.context import WireContext
from esp.core.wire.frames import PREFACE
from esp.core.wire.http1 import FindPage, Http1Connection
from esp.core.wire.request import RequestHead
from esp.core.wire.server import ServerConnection
from esp.core.wire.server_stream import Handler, ServerStream
from esp.core.wire.shares import Shares, address_of
from esp.core.wire.status import Status
from esp.core.wire.strangers import stranger
from esp.core.wire.turns import SLICE, Worker

log = logging.getLogger("esp.wire")

LINGER_SECONDS: Final = 1.0
"""How long a connection that was ended may still read the last bytes written to it."""
ACCEPTED_AT_ONCE: Final = 8
"""Clients that are accepted in one turn of the loop. Even one that is refused takes a descriptor for a while."""
BACKLOG: Final = 1024
"""Clients that the kernel lets wait to be accepted."""
MOST_UNREAD: Final = 16384
"""Bytes of a connection that stands in line; with more it is not read from until its turn comes, and they count."""
MOST_DISCARDED: Final = 1_048_576
"""Bytes of a connection that was ended that are read, so that it sees the end, and thrown away."""
TICK_SECONDS: Final = 0.5
SCARCE_IDLE_SECONDS: Final = 10.0
"""How long a connection has had no call that ends when connections are scarce."""
ROOM_PART: Final = 16
"""The part of all connections for which room is made at a time."""
USER_TIMEOUT: Final = 20.0
_HTTP1_METHODS: Final = (
    b"GET ",
    b"HEAD ",
    b"POST ",
    b"PUT ",
    b"DELETE ",
    b"OPTIONS ",
    b"PATCH ",
    b"TRACE ",
    b"CONNECT ",
)
_LONGEST_METHOD: Final = max(map(len, _HTTP1_METHODS))


def peer_name(transport: asyncio.BaseTransport) -> str:
    """Who is at the other end, for the log."""
    address = transport.get_extra_info("peername")
    return f"{address[0]}:{address[1]}" if isinstance(address, tuple) else str(address or "unknown")


class WireProtocol(asyncio.Protocol, Worker):
    """Moves bytes for one HTTP/2 connection, in turns with others."""

    def __init__(self, context: WireContext) -> None:
        self.context = context
        self._turns = context.turns
        self._unread = b""
        self._reads = True
        self._is_full = False
        self._afterwards: Callable[[], None] | None = None
        self.transport: asyncio.Transport | None = None
        self.connection: Connection | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is connected."""
        self.transport = cast("asyncio.Transport", transport)
        high = self.context.limits.max_output_bytes
        self.transport.set_write_buffer_limits(high=high, low=high // 4)
        self._turns.soon = asyncio.get_running_loop().call_soon
        self._turns.welcome(self)

    def attach(self, connection: Connection) -> None:
        """Gives the transport to `connection`."""
        assert self.transport is not None
        self.connection = connection
        connection.on_flush = self.transport.write
        connection.on_end = self.close
        connection.on_charge = self._charge

    def _charge(self, seconds: float) -> None:
        self._turns.charge(self, seconds)

    @property
    def is_behind(self) -> bool:
        """Whether something that has come could be worked on."""
        return bool(self._unread) or (self.connection is not None and self.connection.behind)

    def data_received(self, data: bytes) -> None:
        """Bytes came: the connection takes them, or the first of them, then everything that has output is written."""
        self._unread = self._unread + data if self._unread else data
        self._turns.serve_answers(self)
        if len(self._unread) >= MOST_UNREAD:
            self._read(False)  # until its turn has come
        if not self._turns.will_run:  # else with what the other sockets lead to, in this turn of the loop
            self.context.flush()

    def work(self, stop: float) -> bool:
        """Gives what has come to the connection. A bug that shows there ends this connection and no other."""
        connection = self.connection
        if connection is None or self._is_full:
            return self._work_otherwise(stop)
        data, self._unread = self._unread, b""
        try:
            behind = connection.take(data, stop)
        except Exception:
            connection.on_bug()
            behind = False
        if behind or not self._reads or self._afterwards is not None:
            return self._is_left(behind)
        return False

    def _work_otherwise(self, stop: float) -> bool:
        """As `work`, where there is no connection, or one that is not worked for."""
        return False

    def _is_left(self, behind: bool) -> bool:
        """After a turn: when nothing is left of what was read, the next is read, or done what was to follow."""
        if behind:
            self._read(False)
            return True
        if self._afterwards is not None:
            self.context.flush()  # what is written to a transport that is closing is lost
            afterwards, self._afterwards = self._afterwards, None
            afterwards()
        if not self._reads and not self._is_full:
            self._read(True)
        return False

    def _read(self, wanted: bool) -> None:
        """Begins or ceases to read."""
        if wanted is not self._reads and self.transport is not None and not self.transport.is_closing():
            self._reads = wanted
            if wanted:
                self.transport.resume_reading()
            else:
                self.transport.pause_reading()
            self._count_unread(0 if wanted else self._unread_bytes())

    def _unread_bytes(self) -> int:
        """How much has come and was not worked on."""
        return len(self._unread) + (0 if self.connection is None else self.connection.unread_bytes)

    def _count_unread(self, size: int) -> None:
        """So much waits while nothing more is read."""

    def eof_received(self) -> bool:
        """The peer sends no more: the connection is closed, when all that came before was worked on."""
        assert self.transport is not None
        if self.is_behind:
            self._afterwards = self.transport.close
            return True
        return False

    def pause_writing(self) -> None:
        """The peer does not read as fast as we write."""
        if self.connection is not None:
            self.connection.pause()

    def resume_writing(self) -> None:
        """The peer has caught up."""
        if self.connection is not None:
            self.connection.resume()
            self.context.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is gone."""
        if self.connection is not None:
            self.connection.on_flush = None
            self.connection.on_end = None
            self.connection.on_charge = None
            self._unread = b""
            self.connection.lost("connection lost" if exc is None else str(exc))
            self.context.flush()

    def close(self) -> None:
        """Writes what is queued, then closes."""
        if self.transport is not None:
            self.transport.close()


def _set_user_timeout(sock: socket.socket | None, seconds: float) -> None:
    """A peer that vanished without a word is noticed by the kernel even when nothing but bytes wait for it."""
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6) and hasattr(socket, "TCP_USER_TIMEOUT"):
        with contextlib.suppress(OSError):  # the peer may be gone already
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))


class ServerProtocol(WireProtocol):
    """An accepted connection: finds out by its first bytes whether it speaks HTTP/2 or HTTP/1.1."""

    def __init__(self, listener: Listener) -> None:
        super().__init__(listener.context)
        self._listener = listener
        self._first = b""
        self._http1: Http1Connection | None = None
        self._since = monotonic()
        self._closing_since = 0.0
        self._waiting = 0
        self._discarded = 0
        self._account: Account | None = None  # of what waits for its turn
        self.peer = self.address = "unknown"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        super().connection_made(transport)
        self.peer = peer_name(transport)
        self.address = address_of(self.peer)
        self._listener.opened(self)

    def data_received(self, data: bytes) -> None:
        """Bytes came: as many as this client's share of the turn allows are worked on."""
        if self._closing_since:
            self._discard(len(data))
            return
        self._unread = self._unread + data if self._unread else data
        self._turns.serve(self, len(data))
        if len(self._unread) >= MOST_UNREAD:
            self._read(False)  # until its turn has come
        self._listener.flush_soon()

    def _unread_bytes(self) -> int:
        """How much has come and was not worked on."""
        return super()._unread_bytes() + (0 if self._http1 is None else self._http1.unread_bytes)

    def _count_unread(self, size: int) -> None:
        """It is memory that this client holds."""
        account = self._account
        if account is None:
            if not size:
                return
            buffers = self.context.buffers
            account = self._account = buffers.of(self.address).of(self.peer).open(self)
        account.give(account.held)
        if size and not account.take(size):
            self.cut()

    def cut(self) -> None:
        """There is no memory for what this client has sent and what waits for its turn: its connection ends."""
        self.context.reached("max_buffered_bytes")
        log.warning("%s: closing: no memory for what it has sent (max_buffered_bytes)", self.peer)
        self._abort()

    def _discard(self, size: int) -> None:
        """Lingering: what still comes is of no interest, and much of it is not even read."""
        self._discarded += size
        if self._discarded > MOST_DISCARDED:
            self._read(False)

    @property
    def is_behind(self) -> bool:
        """Whether something that has come could be worked on."""
        return super().is_behind or (self._http1 is not None and self._http1.behind)

    def _work_otherwise(self, stop: float) -> bool:
        """Works on what has come of HTTP/1.1, or first of all. Who does not take its answers gets no more of them."""
        if self._is_full or self._closing_since or self.transport is None or self.transport.is_closing():
            return False
        if self._http1 is None:
            self._sniff()
            if self.connection is not None:
                return self.work(stop)
        if self._http1 is None:
            return False
        data, self._unread = self._unread, b""
        self._serve_http1(self._http1, data, stop)
        return self._is_left(self._http1.behind)

    def _sniff(self) -> None:
        first = self._unread = self._first + self._unread
        self._first = b""
        if first.startswith(PREFACE[:3]):
            self.attach(ServerConnection(self.context, self.peer, self._listener.find))
        elif first.startswith(_HTTP1_METHODS):
            self._http1 = Http1Connection(self._listener.find_page, self._turns.clock)
        elif len(first) >= _LONGEST_METHOD or not _may_become_known(first):
            log.warning("%s: closing: %s", self.peer, stranger(first))
            self._abort()
        else:
            self._first, self._unread = first, b""

    def _serve_http1(self, http1: Http1Connection, data: bytes, stop: float) -> None:
        assert self.transport is not None
        if http1.is_idle:
            self._since = monotonic()
        http1.stop = stop
        try:
            answer = http1.receive(data)
        except Exception:
            log.exception("%s: a bug in esp; closing the connection", self.peer)
            self._abort()
            return
        if answer:
            self.transport.write(answer)
            self._since = monotonic()
        if http1.ended:
            self.close()

    def pause_writing(self) -> None:
        """A client that does not read is not read from either: what it asks for would only pile up."""
        super().pause_writing()
        self._is_full = True
        self._read(False)

    def resume_writing(self) -> None:
        """The client reads again."""
        self._is_full = False
        super().resume_writing()
        if self._is_full:
            return  # what waited has filled it again
        if self.is_behind:
            self._turns.serve(self, 0)
            self._listener.flush_soon()
        elif not self._reads:
            self._read(True)

    def close(self) -> None:
        """Half-closes and lingers, so that the kernel does not throw away what the client has not read yet."""
        if self.transport is None or self.transport.is_closing():
            return
        if self._closing_since:
            return
        self._closing_since = monotonic()
        if self.connection is not None:
            self.connection.on_flush = None
        self._unread = b""
        self._read(not self._is_full)
        if self.transport.can_write_eof():
            try:
                self.transport.write_eof()
            except OSError:  # the client has gone, and the loop has not told so far
                self._abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        super().connection_lost(exc)
        if self._account is not None:
            self._account.close()
        self._listener.closed(self)

    def tick(self, now: float) -> None:
        """Looks at every deadline of this connection."""
        if self.transport is None or (self.transport.is_closing() and not self._closing_since):
            return
        before, self._waiting = self._waiting, self.transport.get_write_buffer_size()
        if self._closing_since:
            patience = self.context.limits.blocked_write_timeout if self._waiting else LINGER_SECONDS
            if now - self._closing_since > patience:
                self._abort()
        elif self.connection is not None:
            if self._waiting < before:
                self.connection.blocked_since = now  # slow, but reading
            self.connection.unread = self.is_behind
            self.connection.tick(now)
            self._check_output()
        else:
            if self.is_behind and not self._is_full:
                self._since = now
            self._check_time(now)

    def _check_output(self) -> None:
        if self._waiting > self.context.limits.max_output_hard_bytes:
            self.context.reached("max_output_hard_bytes")
            log.warning("%s: closing: %d bytes wait and are not read", self.peer, self._waiting)
            self._abort()

    def _check_time(self, now: float) -> None:
        """The deadlines of a client that speaks HTTP/1.1, or has not spoken yet."""
        limits = self.context.limits
        limit, seconds = "preface_timeout", limits.preface_timeout
        if self._waiting:
            limit, seconds = "blocked_write_timeout", limits.blocked_write_timeout
        elif self._http1 is not None and self._http1.is_idle:
            limit, seconds = "idle_timeout", limits.idle_timeout
        if now - self._since > seconds:
            self.context.reached(limit)
            log.info("%s: closing: %s", self.peer, limit.replace("_", " "))
            self._abort()

    def _abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    @property
    def idle_since(self) -> float | None:
        """Since when the client has asked for nothing; None while it has, and before it has said what it speaks."""
        if self._closing_since or self.is_behind:
            return None
        if isinstance(self.connection, ServerConnection):
            return self.connection.idle_since
        return self._since if self._http1 is not None and self._http1.is_idle else None

    def let_go(self) -> None:
        """Ends this connection, which is idle."""
        if isinstance(self.connection, ServerConnection):
            self.connection.let_go()
        else:
            self.close()

    def drain(self, streaming: Status) -> None:
        """Finishes what is open and takes nothing new."""
        if isinstance(self.connection, ServerConnection):
            self.connection.drain(streaming)
        elif self.is_behind:
            self._afterwards = partial(self.drain, streaming)
        else:
            self.close()


def _may_become_known(first: bytes) -> bool:
    return PREFACE.startswith(first) or any(method.startswith(first) for method in _HTTP1_METHODS)


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
            _set_user_timeout(same, max(USER_TIMEOUT, self.context.limits.blocked_write_timeout))
            self._servers.append(await loop.create_server(make, sock=same, backlog=1))
            same.listen(BACKLOG)  # "backlog" is also how many asyncio's own loop accepts on one descriptor in a turn

    def flush_soon(self) -> None:
        """Writes what waits when all sockets of this turn of the loop have been read: their requests leave together.

        A client that is alone has nobody to wait for.
        """
        if len(self._protocols) == 1:
            self.context.flush()
        else:
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


class ClientProtocol(WireProtocol):
    """A connection to a server."""

    def __init__(self, connection: ClientConnection) -> None:
        super().__init__(connection.context)
        self._connection = connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The server has accepted: the preface goes out, and what the server says first is not missed."""
        super().connection_made(transport)
        _set_user_timeout(transport.get_extra_info("socket"), USER_TIMEOUT)
        self.attach(self._connection)
        self._connection.flush()

    def close(self) -> None:
        """Writes what is queued, then closes; a server that no longer reads does not keep the socket open."""
        super().close()
        if self.transport is not None and self.transport.get_write_buffer_size():
            asyncio.get_running_loop().call_later(LINGER_SECONDS, self.transport.abort)
