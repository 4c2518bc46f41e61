"""Sockets: the asyncio protocols that move bytes between transports and sans-I/O connections.

`accepted` is the protocol of a client's connection, `ClientProtocol` here that of a connection to a server. These two
modules, `listener` and `call` are the only ones of the wire that know asyncio.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Final, cast

from esp.core.wire.client import ClientConnection
from esp.core.wire.connection import Connection
from esp.core.wire.context import WireContext
from esp.core.wire.turns import Worker

LINGER_SECONDS: Final = 1.0
"""How long a connection that was ended may still read the last bytes written to it."""
MOST_UNREAD: Final = 16384
"""Bytes of a connection that stands in line; with more it is not read from until its turn comes, and they count."""
TICK_SECONDS: Final = 0.5
USER_TIMEOUT: Final = 20.0
"""Seconds that sent bytes may stay unacknowledged by the peer's kernel."""


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
        connection.on_behind = self._want_turn

    def _charge(self, seconds: float) -> None:
        self._turns.charge(self, seconds)

    def _want_turn(self) -> None:
        self.context.put_off(self)  # the connection may be at work right now

    def flush(self) -> None:
        """Hands on what the connection has queued."""
        if self.connection is not None:
            self.connection.flush()

    def go_on(self) -> None:
        """Stands in line for what did not come from the socket."""
        if self.is_behind:
            self._turns.stand_in_line(self)

    def on_bug(self) -> None:
        """An exception came out of `go_on`."""
        if self.connection is not None:
            self.connection.on_bug()

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
            self.connection.on_behind = None
            self._unread = b""
            self.connection.lost("connection lost" if exc is None else str(exc))
            self.context.flush()

    def close(self) -> None:
        """Writes what is queued, then closes."""
        if self.transport is not None:
            self.transport.close()


def set_user_timeout(sock: socket.socket | None, seconds: float) -> None:
    """A peer that vanished without a word is noticed by the kernel even when nothing but bytes wait for it."""
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6) and hasattr(socket, "TCP_USER_TIMEOUT"):
        with contextlib.suppress(OSError):  # the peer may be gone already
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))


class ClientProtocol(WireProtocol):
    """A connection to a server."""

    def __init__(self, connection: ClientConnection) -> None:
        super().__init__(connection.context)
        self._connection = connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The server has accepted: the preface goes out, and what the server says first is not missed."""
        super().connection_made(transport)
        set_user_timeout(transport.get_extra_info("socket"), USER_TIMEOUT)
        self.attach(self._connection)
        self._connection.flush()

    def close(self) -> None:
        """Writes what is queued, then closes; a server that no longer reads does not keep the socket open."""
        super().close()
        if self.transport is not None and self.transport.get_write_buffer_size():
            asyncio.get_running_loop().call_later(LINGER_SECONDS, self.transport.abort)
