"""The socket of a client: HTTP/2 or HTTP/1.1 by its first bytes, deadlines, and an end that the client gets to see."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from math import inf
from time import monotonic
from typing import Final, Protocol

from esp.core.wire.budget import Account
from esp.core.wire.context import WireContext
from esp.core.wire.exchange import Serve
from esp.core.wire.first_bytes import asks
from esp.core.wire.frames import PREFACE
from esp.core.wire.http1 import Http1Connection
from esp.core.wire.local_calls import LocalCalls
from esp.core.wire.request import RequestHead
from esp.core.wire.server import ServerConnection
from esp.core.wire.server_stream import Handler
from esp.core.wire.shares import address_of
from esp.core.wire.status import Status
from esp.core.wire.strangers import HTTP1_METHODS, answer_with_tls, stranger
from esp.core.wire.transport import LINGER_SECONDS, MOST_UNREAD, WireProtocol, peer_name
from esp.core.wire.turns import LITTLE

log = logging.getLogger("esp.wire")

MOST_DISCARDED: Final = 1_048_576
"""The most bytes that esp still reads, and throws away, after it has ended a connection: so the client sees the end."""
SILENT_SECONDS: Final = 1.0
"""How long a drain waits for the first bytes of a client that has just connected."""
_LONGEST_METHOD: Final = max(map(len, HTTP1_METHODS))


class Accepting(Protocol):
    """The acceptor of clients: a `Listener`.

    Attributes:
        context: the state that all connections share.
        find: names the handler of a request.
        serve: answers plain HTTP/1.1 requests.
    """

    context: WireContext
    find: Callable[[RequestHead], Handler]
    serve: Serve

    def opened(self, protocol: ServerProtocol) -> None:
        """A client has connected."""

    def closed(self, protocol: ServerProtocol) -> None:
        """A client is gone."""

    def flush_soon(self) -> None:
        """Writes waiting output when all sockets of this turn of the loop have been read."""


class ServerProtocol(WireProtocol):
    """An accepted connection: finds out by its first bytes whether it speaks HTTP/2 or HTTP/1.1.

    Args:
        listener: the acceptor.
        port: the number of the listening socket; None for a client that another process has accepted.
    """

    def __init__(self, listener: Accepting, port: int | None = None) -> None:
        super().__init__(listener.context)
        self.port = port
        self._drain: Status | None = None  # for streaming calls, once the drain has begun
        self._listener = listener
        self._traffic = listener.context.counters.clients
        self._first = b""
        self._http1: Http1Connection | None = None
        self._calls: LocalCalls | None = None  # of a client that speaks HTTP/1.1
        self._owed: tuple[int, int] | None = None  # by such a client, at the last tick
        self._since = monotonic()
        self._closing_since = 0.0
        self._waiting = 0
        self._discarded = 0
        self._account: Account | None = None  # of the bytes that wait for their turn
        self.peer = self.address = "unknown"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        super().connection_made(transport)
        self.peer = peer_name(transport)
        self.address = address_of(self.peer)
        self._listener.opened(self)

    def data_received(self, data: bytes) -> None:
        """Works on bytes that came, as far as this client's share of the turn allows; the rest waits."""
        self._traffic.received += len(data)
        if self._closing_since:
            self._discard(len(data))
            return
        turns, connection = self._turns, self.connection
        if len(data) > LITTLE or self._unread or self._is_full:
            is_served = False
        elif connection is None:
            is_served = self._http1 is not None and turns.serve_little(self, self._take_http1, data)
        else:
            try:
                is_served = turns.serve_little(self, connection.take, data)
            except Exception:
                connection.on_bug()
                is_served = True
        if not is_served:
            self._unread = self._unread + data if self._unread else data
            if turns.is_crowded and connection is None and self._http1 is None and not asks(self._first + self._unread):
                turns.serve_last(self)
            else:
                turns.serve(self, len(data))
            if self._unread and len(self._unread) >= MOST_UNREAD:
                self._read(False)  # until its turn has come
        if not turns.will_run:  # else it leaves with the output of the other sockets
            self._listener.flush_soon()

    def _wants_bytes(self) -> bool:
        """Whether more bytes of the client can be worked on, when all earlier ones have been."""
        if self._is_full or self._closing_since or self.transport is None or self.transport.is_closing():
            return False
        http1 = self._http1
        return http1 is None or not http1.is_served or http1.unread_bytes < MOST_UNREAD or http1.wants_bytes

    def _take_http1(self, data: bytes, stop: float) -> bool:
        """Works on bytes of HTTP/1.1 until the time `stop`; True if work is left."""
        self._unread = data
        return self._work_otherwise(stop)

    def _unread_bytes(self) -> int:
        """The bytes that have come and wait to be worked on."""
        return super()._unread_bytes() + (0 if self._http1 is None else self._http1.unread_bytes)

    def _count_unread(self, size: int) -> None:
        """Accounts for `size` unread bytes as memory that this client holds; without memory the connection ends."""
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
        """Ends the connection: there is no memory for this client's bytes that wait for their turn."""
        self.context.reached("max_buffered_bytes")
        log.warning("%s: closing: no memory for what it has sent (max_buffered_bytes)", self.peer)
        self._abort()

    def _discard(self, size: int) -> None:
        """Throws away bytes that come after the end; above MOST_DISCARDED esp stops to read."""
        self._discarded += size
        if self._discarded > MOST_DISCARDED:
            self._read(False)

    @property
    def is_behind(self) -> bool:
        """Whether bytes that have come could be worked on, or wait for an answer that is not whole yet."""
        return super().is_behind or (self._http1 is not None and (self._http1.behind or self._http1.is_served))

    @property
    def server(self) -> ServerConnection | None:
        """The connection that has the client's calls; None if it has no calls."""
        if isinstance(self.connection, ServerConnection):
            return self.connection
        return None if self._calls is None else self._calls.server

    def local_calls(self) -> LocalCalls:
        """The calls of a client that speaks HTTP/1.1, to this process."""
        calls = self._calls
        if calls is None or not calls.is_usable:
            if calls is not None:
                calls.close("replaced")
            calls = LocalCalls(self.context, self.peer, self._listener.find, self._charge, self._want_turn)
            self._calls = calls
        return calls

    def _work_otherwise(self, stop: float) -> bool:
        """Works on the first bytes, or on HTTP/1.1. A client that does not take its answers gets no further ones."""
        if self._is_full or self._closing_since or self.transport is None or self.transport.is_closing():
            return False
        if self._http1 is None:
            self._sniff()
            if self.connection is not None:
                return self.work(stop)
        if self._http1 is None:
            return self._is_left(False)
        http1 = self._http1
        data, self._unread = self._unread, b""
        is_left = self._calls is not None and self._calls.run(stop)
        self._serve_http1(http1, data, stop)
        if self._calls is not None and self._calls.run(stop):
            is_left = True
        if http1.is_served and not http1.behind and not is_left:
            # Reads on, so as to see the client's end; but keeps no more than a bit of what is of no use now.
            wants_bytes = http1.unread_bytes < MOST_UNREAD or http1.wants_bytes
            if wants_bytes is not self._reads:
                self._read(wants_bytes)
            return False
        if http1.behind or is_left:
            # At once it goes on in a turn (`serve_little`), without a pause in between.
            return True if stop == -inf else self._is_left(True)
        return self._is_left(False)

    def _sniff(self) -> None:
        first = self._unread = self._first + self._unread
        self._first = b""
        if first.startswith(PREFACE[:3]):
            self.attach(connection := ServerConnection(self.context, self.peer, self._listener.find))
            if self._drain is not None:
                connection.drain(self._drain)
        elif first.startswith(HTTP1_METHODS):
            self._http1 = Http1Connection(self._listener.serve, self._turns.clock, self.context.limits)
            self._http1.on_late = self._on_late
            self._http1.on_behind = self._want_turn
            self._http1.local_calls = self.local_calls
            if self._drain is not None:
                self._afterwards = partial(self.drain, self._drain)
        elif len(first) >= _LONGEST_METHOD or not _may_become_known(first):
            self._refuse(stranger(first), answer_with_tls(first))
        else:
            self._first, self._unread = first, b""

    def _refuse(self, reason: str, answer: bytes) -> None:
        """Ends a connection that speaks another protocol; `answer` is for the client's user."""
        log.warning("%s: closing: %s", self.peer, reason)
        if answer and self.transport is not None:
            self.transport.write(answer)
            self.close()
        else:
            self._abort()

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
            self._traffic.sent += len(answer)
            self.transport.write(answer)
            self._since = monotonic()
        if http1.ended:
            self.close()

    def _on_late(self, answer: bytes) -> None:
        """Sends bytes of the answer for which the client waits."""
        http1 = self._http1
        if http1 is None or self._closing_since or self.transport is None or self.transport.is_closing():
            return
        if answer:
            self._traffic.sent += len(answer)
            self.transport.write(answer)
            self._since = monotonic()
        if http1.ended:
            self.close()
        elif not http1.is_served and (self.is_behind or not self._reads or self._afterwards is not None):
            # For bytes that have come meanwhile. Not at once: each answer would stand on the stack of the one before.
            self._turns.stand_in_line(self)

    def pause_writing(self) -> None:
        """Stops to read from a client that does not read: the answers to more requests would only pile up."""
        super().pause_writing()
        self._is_full = True
        if self._http1 is not None:
            self._http1.is_full = True
        if self._calls is not None:
            self._calls.server.pause()
        self._read(False)

    def resume_writing(self) -> None:
        """The client reads again."""
        self._is_full = False
        super().resume_writing()
        if self._calls is not None:
            self._calls.server.resume()
        if self._http1 is not None:
            self._http1.resumed()
        if self._is_full:
            return  # waiting output has filled the transport again
        if self.is_behind or self._afterwards is not None:
            self._turns.serve(self, 0)
            self._listener.flush_soon()
        elif not self._reads:
            self._read(True)

    def close(self) -> None:
        """Half-closes, and closes later: otherwise the kernel would throw away bytes that the client has not read."""
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
            except OSError:  # the client has gone, and the loop has not reported it yet
                self._abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        super().connection_lost(exc)
        if self._http1 is not None:
            self._end_http1(self._http1)
        if self._account is not None:
            self._account.close()
        self._listener.closed(self)

    def _end_http1(self, http1: Http1Connection) -> None:
        try:
            http1.lost()
            if self._calls is not None:
                self._calls.close("connection lost")
        except Exception:
            log.exception("%s: a bug in esp; a call was not told of its client's end", self.peer)
        self.context.flush()

    def eof_received(self) -> bool:
        """The client sends no more, and is gone or waits for the rest of its answers.

        The end stands in line as work does: thousands of clients may go at the same time.
        """
        if self._http1 is not None:
            try:
                self._http1.end_of_client()
            except Exception:
                log.exception("%s: a bug in esp; closing the connection", self.peer)
                self._abort()
            self._listener.flush_soon()
        if super().eof_received():
            return True
        if self._is_full or self._closing_since or self.transport is None or self.transport.is_closing():
            return False
        self._afterwards = self.transport.close
        self._turns.serve_last(self)
        return True

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
            if self._waiting < before:
                self._since = now  # slow, but reading
            if self._calls is not None:
                self._calls.server.unread = bool(self._unread)
                if self._waiting < before:
                    self._calls.server.blocked_since = now
                self._calls.tick(now)
            self._check_time(now)

    def _check_output(self) -> None:
        if self._waiting > self.context.limits.max_output_hard_bytes:
            self.context.reached("max_output_hard_bytes")
            log.warning("%s: closing: %d bytes wait and are not read", self.peer, self._waiting)
            self._abort()

    def _check_time(self, now: float) -> None:
        """Looks at the deadlines of a client that speaks HTTP/1.1, or has sent nothing yet."""
        limits, http1 = self.context.limits, self._http1
        limit, seconds = "preface_timeout", limits.preface_timeout
        if self._waiting:
            limit, seconds = "blocked_write_timeout", limits.blocked_write_timeout
        elif http1 is not None and http1.is_idle:
            limit, seconds = "idle_timeout", limits.idle_timeout
        elif http1 is not None and http1.is_served:
            limit, seconds = "request_timeout", limits.request_timeout
            owed = http1.owed()
            if owed is None or owed != self._owed or self._unread or http1.behind:
                self._since = now  # esp owes the next step, or the client has taken one
            self._owed = owed
        elif self.is_behind:
            self._since = now
        if now - self._since > seconds:
            self.context.reached(limit)
            log.info("%s: closing: %s", self.peer, limit.replace("_", " "))
            self._abort()

    def _abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    @property
    def idle_since(self) -> float | None:
        """The time since which the client has no open request; None if it has, or if its protocol is not known yet."""
        if self._closing_since or self.is_behind:
            return None
        if isinstance(self.connection, ServerConnection):
            return self.connection.idle_since
        return self._since if self._http1 is not None and self._http1.is_idle else None

    def let_go(self) -> None:
        """Ends this idle connection."""
        if isinstance(self.connection, ServerConnection):
            self.connection.let_go()
        else:
            self.close()

    def _end_if_silent(self) -> None:
        if self.connection is None and self._http1 is None:
            self.close()

    def drain(self, streaming: Status) -> None:
        """Finishes open calls and takes no new ones.

        A client that has just connected gets a moment to speak: a closed socket would be a broken connection to it,
        where an answer tells it to go elsewhere.
        """
        self._drain = streaming
        if self.connection is None and self._http1 is None and monotonic() - self._since < SILENT_SECONDS:
            self.later(SILENT_SECONDS, self._end_if_silent)
            return
        server = self.server
        if server is not None:
            server.drain(streaming)
        if self.connection is not None:
            return
        if self.is_behind:
            self._afterwards = partial(self.drain, streaming)
        else:
            self.close()


def _may_become_known(first: bytes) -> bool:
    return PREFACE.startswith(first) or any(method.startswith(first) for method in HTTP1_METHODS)
