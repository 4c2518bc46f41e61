"""TLS without sockets, at the server's end: opens sealed bytes, as they are on the socket, and seals plain ones.

OpenSSL works in memory here. So the turns decide when sealed bytes are opened, and how many at a time (`tls_records`).
"""

from __future__ import annotations

import ssl
from contextlib import suppress
from typing import Final

from esp.core.wire.strangers import answer_without_tls, stranger_to_tls
from esp.core.wire.tls_faults import TlsFault, fault_of
from esp.core.wire.tls_records import HEAD_SIZE, RUN_RECORDS, RecordRuns

MOST_PLAIN: Final = 16_384
"""The most plain bytes of a record."""
MOST_OPENED: Final = 65_536
"""Runs are opened at once, before the connection works on them, until they have so many bytes."""
HANDSHAKE: Final = 0x16


class Tls:
    """The server's end of one TLS connection.

    Attributes:
        is_open: the handshake is over.
        is_ended: the client has said that it sends no more.
    """

    __slots__ = (
        "_at",
        "_context",
        "_hello",
        "_incoming",
        "_object",
        "_outgoing",
        "_read",
        "_runs",
        "_sealed",
        "_write",
        "is_ended",
        "is_open",
    )

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context: ssl.SSLContext | None = context
        self._hello = b""
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._runs = RecordRuns()
        self._sealed = b""
        self._at = 0
        self.is_open = False
        self.is_ended = False

    @property
    def has_begun(self) -> bool:
        """Whether the handshake has begun."""
        return self._context is None

    def _begin(self) -> None:
        """Begins the handshake. Not before its first record has come: OpenSSL takes 50 KB for a connection by then."""
        context, self._context = self._context, None
        assert context is not None
        if self._sealed[0] != HANDSHAKE:
            raise TlsFault(stranger_to_tls(self._sealed), answer_without_tls(self._sealed))
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._read = self._object.read
        self._write = self._object.write

    # Bytes that come.

    @property
    def waiting(self) -> int:
        """The bytes that have come and have not been opened."""
        return len(self._sealed) - self._at

    def receive(self, sealed: bytes) -> None:
        """Takes bytes that have come, to be opened later. The first record waits until it is whole."""
        if self._context is not None:
            self._hello += sealed
            if _is_begun(self._hello):
                return
            sealed, self._hello = self._hello, b""
        self._sealed = self._sealed[self._at :] + sealed if self._sealed else sealed
        self._at = 0

    def drop(self) -> None:
        """Forgets the bytes that wait."""
        self._sealed, self._at, self._hello = b"", 0, b""

    def is_one(self, sealed: bytes) -> bool:
        """Whether `sealed` is one whole record, and nothing waits before it: then `open_one` takes it."""
        return self.is_open and not self._sealed and self._runs.is_one(sealed)

    def open_one(self, sealed: bytes) -> bytes:
        """The plain bytes of one record; b"" if the record is a message of TLS itself.

        Raises:
            TlsFault: as `open`.
        """
        self._incoming.write(sealed)
        try:
            plain = self._read(MOST_PLAIN)
        except ssl.SSLWantReadError:
            return b""
        except ssl.SSLZeroReturnError:  # both ends have ended
            plain = b""
        except ssl.SSLError as error:
            raise fault_of(error) from None
        if not plain:
            self.is_ended = True
        return plain

    def open(self) -> bytes:
        """Goes on with the handshake, or opens the next few records; b"" if they hold no whole plain ones.

        Afterwards there may be `output`, also if this raises.

        Raises:
            TlsFault: the client does not keep to the rules, or one end does not trust the other.
        """
        if self._context is not None:
            self._begin()
        parts: list[bytes] = []
        start, records = self._at, 0
        try:
            while records < RUN_RECORDS:
                self._feed()
                records += self._runs.records
                self._open_fed(parts)
                if not self._sealed or self._at - start >= MOST_OPENED:
                    break
        except ssl.SSLZeroReturnError:  # both ends have ended
            self.is_ended = True
        except ssl.SSLError as error:
            raise fault_of(error) from None
        if self.is_ended:
            self.drop()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _feed(self) -> None:
        """Gives OpenSSL the next run."""
        sealed, at = self._sealed, self._at
        end = self._runs.end_of_run(sealed, at)
        if end == len(sealed):
            self._incoming.write(sealed[at:] if at else sealed)
            self._sealed, self._at = b"", 0
        else:
            self._incoming.write(sealed[at:end])
            self._at = end

    def _open_fed(self, parts: list[bytes]) -> None:
        """Opens the run that OpenSSL has been given."""
        incoming, read = self._incoming, self._read
        with suppress(ssl.SSLWantReadError):
            if not self.is_open:
                self._object.do_handshake()
                self.is_open = True
            while incoming.pending and not self.is_ended:
                part = read(MOST_PLAIN)
                if part:
                    parts.append(part)
                else:
                    self.is_ended = True

    # Bytes that leave.

    @property
    def has_output(self) -> bool:
        """Whether the handshake, or another message of TLS itself, has bytes to send."""
        return self._outgoing.pending > 0

    def output(self) -> bytes:
        """Those bytes."""
        return self._outgoing.read()

    def seal(self, plain: bytes | bytearray | memoryview) -> bytes:
        """The records for plain bytes.

        Raises:
            ssl.SSLError: the connection is not open any more.
        """
        if not self.is_open:
            raise ssl.SSLError("the handshake is not over")
        if len(plain) <= MOST_PLAIN:
            self._write(plain)
            return self._outgoing.read()
        parts, view = [], memoryview(plain)
        for at in range(0, len(plain), MOST_PLAIN):  # OpenSSL's memory keeps the size of the most that it ever had
            self._write(view[at : at + MOST_PLAIN])
            parts.append(self._outgoing.read())
        return b"".join(parts)

    def end(self) -> bytes:
        """The record that says that this end sends no more, and what else is to be sent."""
        if self.is_open:
            with suppress(ssl.SSLError):  # the client has not ended yet, or the connection is broken
                self._object.unwrap()
        return self._outgoing.read()


def _is_begun(first: bytes) -> bool:
    """Whether `first` is the beginning of a record that begins a handshake, and not yet all of it."""
    if not first or first[0] != HANDSHAKE:
        return not first
    return len(first) < HEAD_SIZE or len(first) < HEAD_SIZE + (first[3] << 8 | first[4]) <= HEAD_SIZE + MOST_PLAIN
