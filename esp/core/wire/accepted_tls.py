"""The socket of a client that speaks TLS: as a plain one, with records that are opened in the client's turns."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from typing import Final, cast

from esp.core.wire.accepted import Accepting, ServerProtocol
from esp.core.wire.tls import Tls
from esp.core.wire.tls_faults import TlsFault
from esp.core.wire.transport import MOST_UNREAD

log = logging.getLogger("esp.wire")

CHARGED: Final = 4096
"""Bytes above which sealing is charged to the client; sealing fewer takes hardly longer than a look at the clock."""


class TlsTransport(asyncio.Transport):
    """A socket's transport for plain bytes, which it seals.

    Attributes:
        on_charge: called with the seconds that sealing many bytes has taken.
    """

    def __init__(self, socket: asyncio.Transport, tls: Tls, clock: Callable[[], float]) -> None:
        super().__init__()
        self._socket = socket
        self._tls = tls
        self._clock = clock
        self.on_charge: Callable[[float], None] | None = None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Writes plain bytes, after the handshake."""
        try:
            if len(data) < CHARGED:
                self._socket.write(self._tls.seal(data))
                return
            begun = self._clock()
            self._socket.write(self._tls.seal(data))
            if self.on_charge is not None:
                self.on_charge(self._clock() - begun)
        except ssl.SSLError:  # broken, or ended from here; the client gets no more
            self._socket.abort()

    def write_in_the_plain(self, data: bytes) -> None:
        """Writes bytes as they are."""
        self._socket.write(data)

    def can_write_eof(self) -> bool:
        """Yes: a client may still read when the server has ended."""
        return self._socket.can_write_eof()

    def write_eof(self) -> None:
        """Says to the client that no more bytes come, and ends the writing half of the socket."""
        self._socket.write(self._tls.end())
        self._socket.write_eof()

    def close(self) -> None:
        """Says to the client that no more bytes come, and closes the socket when all is written."""
        if not self._socket.is_closing():
            self._socket.write(self._tls.end())
            self._socket.close()

    def abort(self) -> None:
        """Closes the socket at once."""
        self._socket.abort()

    def is_closing(self) -> bool:
        """Whether the socket is closed, or will be."""
        return self._socket.is_closing()

    def pause_reading(self) -> None:
        """Stops to read from the socket."""
        self._socket.pause_reading()

    def resume_reading(self) -> None:
        """Reads from the socket again."""
        self._socket.resume_reading()

    def get_write_buffer_size(self) -> int:
        """The sealed bytes that wait."""
        return self._socket.get_write_buffer_size()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Says when the protocol is to pause, in sealed bytes."""
        self._socket.set_write_buffer_limits(high, low)

    def get_extra_info(self, name: str, default: object = None) -> object:
        """As the socket's transport."""
        return self._socket.get_extra_info(name, default)


class TlsServerProtocol(ServerProtocol):
    """An accepted connection of TLS.

    Sealed bytes wait in `Tls`, plain bytes wait as in a plain connection. Bytes are opened only when the connection has
    worked on all earlier ones, so what waits is small.

    Args:
        context: gives the certificates to be used now.
        listener, port: as of a plain connection.
    """

    def __init__(self, context: Callable[[], ssl.SSLContext], listener: Accepting, port: int | None = None) -> None:
        super().__init__(listener, port)
        self._tls = Tls(context())
        self._has_eof = False  # the socket's; bytes that came before wait to be opened
        self._is_over = False  # the connection knows that no more bytes come

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected; its handshake comes next."""
        sealing = TlsTransport(cast("asyncio.Transport", transport), self._tls, self._turns.wall)
        sealing.on_charge = self._charge
        super().connection_made(sealing)

    def data_received(self, data: bytes) -> None:
        """Opens one record at once, as nearly all reads are; all else in turns."""
        tls = self._tls
        if self._closing_since:
            self._discard(len(data))
        elif tls.is_one(data):
            try:
                plain = tls.open_one(data)
            except TlsFault as fault:
                self._fail(fault)
                return
            if plain:
                super().data_received(plain)
            else:
                self._write_output()
                if tls.is_ended:
                    self._end_input()
        else:
            tls.receive(data)
            if tls.is_open:
                self._turns.serve(self, len(data))
            elif tls.waiting:
                self._turns.serve_later(self)
            if tls.waiting >= MOST_UNREAD:
                self._read(False)  # until its turn has come
            if not self._turns.will_run:
                self._listener.flush_soon()

    def work(self, stop: float) -> bool:
        """Works on bytes that are open, then opens further ones, until `stop`; True if work is left."""
        tls = self._tls
        if not tls.waiting:
            return super().work(stop)
        while tls.waiting and self._wants_bytes():
            was_open = tls.is_open
            try:
                plain = tls.open()
            except TlsFault as fault:
                self._fail(fault)
                return False
            self._write_output()
            if tls.is_open and not was_open:
                self.context.counters.tls_handshakes += 1
            if plain:
                self._traffic.received += len(plain)
                self._unread = self._unread + plain if self._unread else plain
                is_left = super().work(stop)
            else:
                is_left = self._is_left(False)
            if not tls.waiting and (tls.is_ended or self._has_eof):
                self._end_input()
            if is_left:
                return True
            if tls.waiting and self._turns.clock() >= stop:
                return self._is_left(True)
        return False

    def _is_left(self, behind: bool) -> bool:
        """As of a plain connection; while sealed bytes wait, the end of the open ones is not the end of the turn."""
        return False if not behind and self._tls.waiting else super()._is_left(behind)

    @property
    def is_behind(self) -> bool:
        """Whether bytes have come that could be worked on."""
        return self._tls.waiting > 0 or super().is_behind

    def _unread_bytes(self) -> int:
        return self._tls.waiting + super()._unread_bytes()

    def _write_output(self) -> None:
        """Writes what TLS itself has to say."""
        if self._tls.has_output:
            cast("TlsTransport", self.transport).write_in_the_plain(self._tls.output())

    def _fail(self, fault: TlsFault) -> None:
        """Ends the connection for a fault of the client, or because one end does not trust the other."""
        self.context.counters.tls_faults += 1
        log.warning("%s: closing: %s", self.peer, fault)
        self._tls.drop()
        if self._tls.is_open:
            self._abort()
            return
        self._write_output()  # an alert
        if fault.answer:
            cast("TlsTransport", self.transport).write_in_the_plain(fault.answer)
        self.close()

    def eof_received(self) -> bool:
        """The client sends no more. Bytes that came before are worked on first, unless they only begin a handshake."""
        if self._tls.waiting and self._tls.has_begun:
            self._has_eof = True
            return True
        self._tls.drop()
        if self._is_over:
            return self.is_behind
        self._is_over = True
        return super().eof_received()

    def _end_input(self) -> None:
        """Ends the connection's input as the end of a socket would."""
        if not self.eof_received() and self.transport is not None:
            self.context.flush()  # a closing transport would lose the bytes
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        if self.transport is not None:
            cast("TlsTransport", self.transport).on_charge = None  # in a cycle of objects
        super().connection_lost(exc)
