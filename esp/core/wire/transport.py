"""Sockets: the asyncio protocols that move bytes between transports and sans-I/O connections, and the listener.

This is the only module of the wire that knows asyncio.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable
from time import monotonic
from typing import Final, cast

from esp.core.wire.client import ClientConnection
from esp.core.wire.connection import Connection
from esp.core.wire.context import WireContext
from esp.core.wire.frames import PREFACE
from esp.core.wire.http1 import FindPage, Http1Connection
from esp.core.wire.request import RequestHead
from esp.core.wire.server import ServerConnection
from esp.core.wire.server_stream import Handler
from esp.core.wire.status import Status

log = logging.getLogger("esp.wire")

LINGER_SECONDS: Final = 1.0
"""How long a connection that was ended may still read the last bytes written to it."""
ACCEPTED_AT_ONCE: Final = 8
"""Clients that asyncio accepts in one turn (its "backlog"). Even one that is refused takes a descriptor for a while."""
BACKLOG: Final = 1024
"""Clients that the kernel lets wait to be accepted."""
TICK_SECONDS: Final = 0.5
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


class WireProtocol(asyncio.Protocol):
    """Moves bytes for one HTTP/2 connection.

    Attributes:
        user_timeout: seconds that bytes may wait for the peer's kernel before ours gives up on it.
    """

    def __init__(self, context: WireContext) -> None:
        self.context = context
        self.user_timeout = USER_TIMEOUT
        self.transport: asyncio.Transport | None = None
        self.connection: Connection | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is connected."""
        self.transport = cast("asyncio.Transport", transport)
        high = self.context.limits.max_output_bytes
        self.transport.set_write_buffer_limits(high=high, low=high // 4)
        _set_user_timeout(self.transport, self.user_timeout)

    def attach(self, connection: Connection) -> None:
        """Gives the transport to `connection`, and writes what that has waiting."""
        assert self.transport is not None
        self.connection = connection
        connection.on_flush = self.transport.write
        connection.on_end = self.close
        connection.flush()

    def data_received(self, data: bytes) -> None:
        """Bytes came: the connection takes them, then everything that has output is written."""
        self.take(data)
        self.context.flush()

    def take(self, data: bytes) -> None:
        """Gives bytes to the connection. A bug that shows there ends this connection and no other."""
        connection = self.connection
        if connection is None:
            return
        try:
            connection.receive(data)
            connection.paused()
        except Exception:
            connection.on_bug()

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
            self.connection.lost("connection lost" if exc is None else str(exc))
            self.context.flush()

    def close(self) -> None:
        """Writes what is queued, then closes."""
        if self.transport is not None:
            self.transport.close()


def _set_user_timeout(transport: asyncio.Transport, seconds: float) -> None:
    """A peer that vanished without a word is noticed by the kernel even when nothing but bytes wait for it."""
    sock = transport.get_extra_info("socket")
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
        # A client that is slow to read has as long as the wire gives it.
        self.user_timeout = max(USER_TIMEOUT, listener.context.limits.blocked_write_timeout)
        self.peer = "unknown"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        super().connection_made(transport)
        self.peer = peer_name(transport)
        self._listener.opened(self)

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        if self.connection is not None:
            self.take(data)
            self._listener.flush_soon()
        elif self._http1 is not None:
            self._serve_http1(data)
        else:
            self._sniff(self._first + data)

    def _sniff(self, first: bytes) -> None:
        self._first = first
        if first.startswith(PREFACE[:3]):
            connection = ServerConnection(self.context, self.peer, self._listener.find)
            self.attach(connection)
            self._first = b""
            self.take(first)
            self._listener.flush_soon()
        elif first.startswith(_HTTP1_METHODS):
            self._http1 = Http1Connection(self._listener.find_page)
            self._first = b""
            self._serve_http1(first)
        elif len(first) >= _LONGEST_METHOD or not _may_become_known(first):
            log.warning("%s: closing: neither HTTP/2 nor HTTP/1.1", self.peer)
            self._abort()

    def _serve_http1(self, data: bytes) -> None:
        assert self._http1 is not None
        assert self.transport is not None
        if self._closing_since:
            return  # lingering: what still comes is of no interest
        if self._http1.is_idle:
            self._since = monotonic()
        try:
            answer = self._http1.receive(data)
        except Exception:
            log.exception("%s: a bug in esp; closing the connection", self.peer)
            self._abort()
            return
        if answer:
            self.transport.write(answer)
            self._since = monotonic()
        if self._http1.ended:
            self.close()

    def pause_writing(self) -> None:
        """A client that does not read is not read from either: what it asks for would only pile up."""
        super().pause_writing()
        if self.transport is not None:
            self.transport.pause_reading()

    def resume_writing(self) -> None:
        """The client reads again."""
        if self.transport is not None:
            self.transport.resume_reading()
        super().resume_writing()

    def close(self) -> None:
        """Half-closes and lingers, so that the kernel does not throw away what the client has not read yet."""
        if self.transport is None or self.transport.is_closing():
            return
        if self._closing_since:
            return
        self._closing_since = monotonic()
        if self.connection is not None:
            self.connection.on_flush = None
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        super().connection_lost(exc)
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
            self.connection.tick(now)
            self._check_output()
        else:
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

    def drain(self, streaming: Status) -> None:
        """Finishes what is open and takes nothing new."""
        if isinstance(self.connection, ServerConnection):
            self.connection.drain(streaming)
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
        self._will_flush = False
        self._is_full = False

    async def listen(self, host: str, port: int) -> list[tuple[str, int]]:
        """Begins to accept on `host`:`port`; the addresses bound.

        Raises:
            OSError: the address cannot be bound.
        """
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: ServerProtocol(self), host, port, backlog=ACCEPTED_AT_ONCE)
        self._servers.append(server)
        for listening in server.sockets:
            with socket.socket(fileno=os.dup(listening.fileno())) as same:
                same.listen(BACKLOG)
        return [sock.getsockname()[:2] for sock in server.sockets]

    def flush_soon(self) -> None:
        """Writes what waits when all sockets of this turn of the loop have been read: their requests leave together.

        A client that is alone has nobody to wait for.
        """
        if len(self._protocols) == 1:
            self.context.flush()
        elif not self._will_flush:
            self._will_flush = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._will_flush = False
        self.context.flush()

    def close(self) -> None:
        """Stops accepting."""
        for server in self._servers:
            server.close()

    def opened(self, protocol: ServerProtocol) -> None:
        """A client has connected."""
        counters = self.context.counters
        counters.connections_accepted += 1
        if len(self._protocols) >= self.context.limits.max_connections:
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
            self.context.counters.connections_open -= 1
            if not self._protocols:
                self._empty.set()

    def tick(self, now: float) -> None:
        """Looks at the deadlines of every client."""
        for protocol in list(self._protocols):
            protocol.tick(now)
        if len(self._protocols) < self.context.limits.max_connections:
            self._is_full = False
        self.context.flush()

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
        self.attach(self._connection)

    def close(self) -> None:
        """Writes what is queued, then closes; a server that no longer reads does not keep the socket open."""
        super().close()
        if self.transport is not None and self.transport.get_write_buffer_size():
            asyncio.get_running_loop().call_later(LINGER_SECONDS, self.transport.abort)


async def connect(connection: ClientConnection, host: str, port: int) -> None:
    """Connects `connection` and sends its preface.

    Raises:
        OSError: no connection.
    """
    try:
        await asyncio.get_running_loop().create_connection(lambda: ClientProtocol(connection), host, port)
    except BaseException:
        connection.on_flush = None  # uvloop has closed what it began, and raises at a further write
        raise
