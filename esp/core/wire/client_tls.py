"""A connection to a server by TLS: seals what the connection writes, and opens what comes."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from typing import Final

from esp.core.wire.client import ClientConnection
from esp.core.wire.connection import Connection
from esp.core.wire.transport import ClientProtocol

MOST_PLAIN: Final = 16_384
"""Bytes in a record, at most (RFC 8446 section 5.1)."""
SLICE_BYTES: Final = 65_536
"""Bytes that are sealed at a time: OpenSSL keeps as much memory as the largest piece that it was given."""


class TlsClientProtocol(ClientProtocol):
    """As `ClientProtocol`. The connection begins when the handshake is over.

    All that a read has brought is opened at once: no more than some 256 KiB, which takes OpenSSL a tenth of a
    millisecond. A server that the connection does not keep up with is not read from, as without TLS.

    Attributes:
        opened: done when the handshake is over; an SSLError if it has failed, a ConnectionResetError if the server has
            hung up.
        fault: why TLS has ended the connection after the handshake; None if it has not.
    """

    def __init__(self, connection: ClientConnection, context: ssl.SSLContext, server_name: str) -> None:
        super().__init__(connection)
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.fault: ssl.SSLError | None = None
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_name)
        self._is_open = False
        self._is_over = False  # the server has said that it sends no more

    def begin(self) -> None:
        """Begins the handshake."""
        self._shake_hands()

    def _shake_hands(self) -> None:
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            self._write_output()
        except ssl.SSLError as error:
            self._write_output()  # an alert
            self._fail(error)
        else:
            self._is_open = True
            super().begin()
            self._write_output()
            if not self.opened.done():
                self.opened.set_result(None)

    def attach(self, connection: Connection) -> None:
        """Gives the transport to `connection`, which writes plain bytes."""
        super().attach(connection)
        connection.on_flush = self._seal

    def data_received(self, data: bytes) -> None:
        """Opens the records that have come."""
        self._incoming.write(data)
        if not self._is_open:
            self._shake_hands()
            if not self._is_open:
                return
        plain = self._opened_bytes()
        if plain:
            super().data_received(plain)
        if self._is_over and not self.eof_received() and self.transport is not None:
            self.transport.close()

    def _opened_bytes(self) -> bytes:
        parts = []
        try:
            while self._incoming.pending and not self._is_over:
                part = self._object.read(MOST_PLAIN)
                if part:
                    parts.append(part)
                else:
                    self._is_over = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self._fail(error)
        self._write_output()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _seal(self, data: bytes) -> None:
        """Writes plain bytes of the connection."""
        transport = self.transport
        assert transport is not None, "the connection has been given one"
        try:
            if len(data) <= SLICE_BYTES:
                self._object.write(data)
                transport.write(self._outgoing.read())
            else:
                view = memoryview(data)
                for at in range(0, len(data), SLICE_BYTES):
                    self._object.write(view[at : at + SLICE_BYTES])
                    transport.write(self._outgoing.read())
        except ssl.SSLError as error:  # not even a part of `data` may be written twice
            self._fail(error)

    def _write_output(self) -> None:
        """Writes what TLS itself has to say."""
        if self._outgoing.pending and self.transport is not None and not self.transport.is_closing():
            self.transport.write(self._outgoing.read())

    def _fail(self, error: ssl.SSLError) -> None:
        if not self.opened.done():
            self.opened.set_exception(error)
        self.fault = self.fault or error
        if self.transport is None:
            return
        if self._is_open:
            self.transport.abort()
        else:
            self.transport.close()

    def close(self) -> None:
        """Says that no more bytes come, and closes."""
        if self._is_open and self.transport is not None and not self.transport.is_closing():
            with suppress(ssl.SSLError):  # the server has not said so yet
                self._object.unwrap()
            self._write_output()
        super().close()

    def connection_lost(self, exc: Exception | None) -> None:
        """The server is gone."""
        if not self.opened.done():
            self.opened.set_exception(ConnectionResetError("the server has hung up"))
        super().connection_lost(self.fault or exc)
