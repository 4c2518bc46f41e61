"""Sockets: the asyncio protocols that move bytes between transports and sans-I/O connections.

`accepted` has the protocol for a client's connection; `ClientProtocol` here is that for a connection to a server. Of
the wire, only these two modules, `listener` and `call` import asyncio.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import socket
import struct
import termios
from collections.abc import Callable
from functools import partial
from math import inf
from typing import Final, cast

from esp.core.wire.client import ClientConnection
from esp.core.wire.connection import Connection
from esp.core.wire.context import WireContext
from esp.core.wire.turns import LITTLE, Worker

LINGER_SECONDS: Final = 1.0
"""Seconds that the peer of an ended connection has to read the last bytes."""
MOST_UNREAD: Final = 16384
"""Unread bytes of a connection above which esp stops to read from it until its turn, and counts the bytes."""
TICK_SECONDS: Final = 0.5
USER_TIMEOUT: Final = 20.0
"""Seconds that sent bytes may stay unacknowledged by the peer's kernel."""


def peer_name(transport: asyncio.BaseTransport) -> str:
    """The name of the other end, for the log: `host:port`, or socket, user and process of a Unix socket's client."""
    address = transport.get_extra_info("peername")
    if isinstance(address, tuple):
        return f"{address[0]}:{address[1]}"
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family != socket.AF_UNIX:
        return str(address or "unknown")
    process, user, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return f"unix:{transport.get_extra_info('sockname')}, user {user}:{process}"


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

    def later(self, seconds: float, step: Callable[[], None]) -> None:
        """Calls `step` after so many seconds."""
        asyncio.get_running_loop().call_later(seconds, step)

    def attach(self, connection: Connection) -> None:
        """Gives the transport to `connection`."""
        assert self.transport is not None
        self.connection = connection
        connection.on_flush = self.transport.write
        connection.on_end = self.close
        connection.on_charge = self._charge
        connection.on_behind = self._want_turn

    def _charge(self, seconds: float) -> None:
        self._turns.charge(self, seconds)

    def _want_turn(self) -> None:
        self.context.put_off(self)  # the connection may be at work right now

    def flush(self) -> None:
        """Hands on the connection's queued output."""
        if self.connection is not None:
            self.connection.flush()

    def go_on(self) -> None:
        """Puts the connection in line for work that did not come from the socket."""
        if self.is_behind:
            self._turns.stand_in_line(self)

    def on_bug(self) -> None:
        """An exception came out of `go_on`."""
        if self.connection is not None:
            self.connection.on_bug()

    @property
    def is_behind(self) -> bool:
        """Whether there is work: bytes that have come, or steps."""
        return bool(self._unread) or (self.connection is not None and self.connection.behind)

    def data_received(self, data: bytes) -> None:
        """Gives bytes that came to the connection, as far as the turn allows, and then has all output written."""
        turns, connection = self._turns, self.connection
        if connection is not None:
            connection.traffic.received += len(data)
        if len(data) <= LITTLE and connection is not None and not self._unread and not self.in_line:
            try:
                connection.stop = inf
                turns.serve_little_answers(connection.receive, data)
            except Exception:
                connection.on_bug()
        else:
            self._unread = self._unread + data if self._unread else data
            turns.serve_answers(self)
            if self._unread and len(self._unread) >= MOST_UNREAD:
                self._read(False)  # until its turn has come
        if not turns.will_run:  # else the output leaves with that of the other sockets of this turn of the loop
            self.context.flush()

    def work(self, stop: float) -> bool:
        """Gives the bytes that have come to the connection. A bug in that ends this connection and no other."""
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
        """As `work`, for a protocol without a connection, or with one whose output is full."""
        return False

    def _is_left(self, behind: bool) -> bool:
        """Ends a turn. If no bytes are left, goes on to read, or does the step that was put off until now."""
        if behind:
            self._read(False)
            return True
        if self._afterwards is not None:
            self.context.flush()  # a closing transport would lose the bytes
            afterwards, self._afterwards = self._afterwards, None
            afterwards()
        if not self._reads and not self._is_full:
            self._read(True)
        return False

    def _read(self, wanted: bool) -> None:
        """Begins or stops to read from the socket."""
        if wanted is not self._reads and self.transport is not None and not self.transport.is_closing():
            self._reads = wanted
            if wanted:
                self.transport.resume_reading()
            else:
                self.transport.pause_reading()
            self._count_unread(0 if wanted else self._unread_bytes())

    def _unread_bytes(self) -> int:
        """The bytes that have come and wait to be worked on."""
        return len(self._unread) + (0 if self.connection is None else self.connection.unread_bytes)

    def _count_unread(self, size: int) -> None:
        """Accounts for `size` bytes that wait while esp does not read from the socket."""

    def eof_received(self) -> bool:
        """The peer sends no more: closes the connection when all earlier bytes have been worked on."""
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
            self.connection.on_behind = None
            self._unread = b""
            self.connection.lost("connection lost" if exc is None else str(exc))
            self.context.flush()

    def close(self) -> None:
        """Writes the queued bytes, then closes."""
        if self.transport is not None:
            self.transport.close()


def set_user_timeout(sock: socket.socket | None, seconds: float) -> None:
    """Lets the kernel end a connection whose peer has not acknowledged sent bytes for `seconds`."""
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6) and hasattr(socket, "TCP_USER_TIMEOUT"):
        with contextlib.suppress(OSError):  # the peer may be gone already
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))


def unacknowledged(sock: socket.socket | None) -> int:
    """The bytes that the kernel has taken and the peer's has not acknowledged; 0 if the kernel does not tell."""
    try:
        if sock is None or sock.fileno() < 0:
            return 0
        count: int = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))[0]
    except OSError:
        return 0
    return count


class ClientProtocol(WireProtocol):
    """A connection to a server."""

    def __init__(self, connection: ClientConnection) -> None:
        super().__init__(connection.context)
        self._connection = connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The server has accepted."""
        super().connection_made(transport)
        sock = transport.get_extra_info("socket")
        set_user_timeout(sock, USER_TIMEOUT)
        self._connection.unacknowledged = partial(unacknowledged, sock)
        self.begin()

    def begin(self) -> None:
        """Sends the preface, and is ready for the server's first bytes."""
        self.attach(self._connection)
        self._connection.flush()

    def close(self) -> None:
        """Writes the queued bytes, then closes. A server that no longer reads cannot keep the socket open."""
        super().close()
        if self.transport is not None and self.transport.get_write_buffer_size():
            asyncio.get_running_loop().call_later(LINGER_SECONDS, self.transport.abort)
