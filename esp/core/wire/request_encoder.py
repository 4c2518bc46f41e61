"""The heads of requests to one server; the server's dynamic table holds the fields that they share (RFC 7541).

Written out, a head is some 120 bytes, and the server makes the same strings of them for each call. The table holds the
fields that esp itself writes: `:authority`, `:path` and gRPC's own fields. Clients' metadata never go into the table:
no secret stays behind, and no client has a part in the bytes of another client. Entries are never evicted; a field that
does not fit is written out each time. So indexes change only when an entry is added, about once for each path.
"""

from __future__ import annotations

from typing import Final

from hpack.hpack import encode_integer
from hpack.table import HeaderTable

from esp.core.wire import traces
from esp.core.wire.frames import BLOCK_FRONTS, SHORT_BLOCK
from esp.core.wire.hpack import MEMO_ENTRIES, STATIC, STATIC_NAMES, encode_field

Forward = tuple[bytes, bytes]
"""The head of a request on its way to a server: the path, and the client's metadata as an encoded block."""

TABLE_BYTES: Final = 4096
"""Bytes of the table that a server grants by default, and that esp uses at most."""
ENTRY_BYTES: Final = 256
"""The largest entry, in bytes. A larger one, with a path longer than any RPC's, would take the room of many."""
FRONT_BYTES: Final = 1024
"""The longest front that is kept, in bytes. Longer ones have a path that is no RPC's, and are made for each call."""
BLOCKS: Final = 64
"""The most blocks that are kept."""
_LONGEST: Final = SHORT_BLOCK - 32
"""The longest block that is kept, in bytes: a `grpc-timeout` comes to it."""
_ENTRY_OVERHEAD: Final = 32  # RFC 7541, section 4.1
_FIRST_INDEX: Final = len(HeaderTable.STATIC_TABLE) + 1

_TIMEOUT: Final = b"\0\x0cgrpc-timeout"


def timeout_field(value: bytes) -> bytes:
    """A `grpc-timeout` field, in front of or behind any other fields."""
    return _TIMEOUT + bytes((len(value),)) + value


def traced(forward: Forward, trace: bytes) -> Forward:
    """The head with a `traceparent`."""
    return forward[0], traces.traced(forward[1], trace)


class RequestEncoder:
    """The encoder of one connection.

    Attributes:
        known: by path, the fronts of heads that do not change the server's table; the connection looks here.
        blocks: whole header blocks of such heads, without a `grpc-timeout`, with the first five bytes of their frames;
            the connection looks here first.
    """

    __slots__ = ("_authority", "_entries", "_limit", "_update_due", "_used", "blocks", "known")

    def __init__(self, authority: bytes) -> None:
        self._authority = authority
        self._limit = TABLE_BYTES
        self._update_due = False
        self._entries: dict[tuple[bytes, bytes], int] = {}
        self._used = 0
        self.known: dict[bytes, bytes] = {}
        self.blocks: dict[Forward, tuple[bytes, bytes]] = {}

    def limit(self, size: int) -> None:
        """The server grants a table of `size` bytes: the next block begins a new one."""
        size = min(size, TABLE_BYTES)
        if size != self._limit:
            self._limit = size
            self._update_due = True
            self._entries.clear()
            self._used = 0
            self._forget()

    def front(self, path: bytes) -> tuple[bytes, bool]:
        """The fields of a head in front of the metadata, and whether they change the server's table.

        A block that changes the table has to be sent, in its turn.
        """
        before = len(self._entries)
        updates = self._size_updates()
        front = updates + b"".join(
            (
                b"\x83\x86",  # :method POST, :scheme http
                self._field(b":authority", self._authority),
                self._field(b":path", path),
                self._field(b"content-type", b"application/grpc"),
                self._field(b"te", b"trailers"),
            )
        )
        if updates or len(self._entries) > before:
            self._forget()  # the indexes in them have moved
            return front, True
        if len(front) <= FRONT_BYTES:
            if len(self.known) >= MEMO_ENTRIES:
                self.known.clear()
            self.known[path] = front
        return front, False

    def remember(self, forward: Forward) -> None:
        """Keeps the block of a head, if its front is known, and it is the same for every server and short."""
        path, metadata = forward
        front = self.known.get(path)
        if front is not None and metadata.__class__ is bytes and len(front) + len(metadata) <= _LONGEST:
            if len(self.blocks) >= BLOCKS:
                self.blocks.clear()
            block = front + metadata
            self.blocks[forward] = BLOCK_FRONTS[len(block)], block

    def _forget(self) -> None:
        self.known.clear()
        self.blocks.clear()

    def _size_updates(self) -> bytes:
        """Table size updates: to 0, which empties the table, then to the size granted now (RFC 7541, section 4.2)."""
        if not self._update_due:
            return b""
        self._update_due = False
        size = encode_integer(self._limit, 5)
        size[0] |= 0x20
        return b"\x20" + bytes(size) if self._limit else b"\x20"

    def _field(self, name: bytes, value: bytes) -> bytes:
        """A field by its index; a new field gets one while there is room."""
        field = name, value
        place = self._entries.get(field)
        if place is not None:
            return _indexed(_FIRST_INDEX + len(self._entries) - 1 - place)
        size = len(name) + len(value) + _ENTRY_OVERHEAD
        if field in STATIC or size > ENTRY_BYTES or self._used + size > self._limit:
            return encode_field(name, value)
        self._entries[field] = len(self._entries)
        self._used += size
        index = STATIC_NAMES.get(name)
        head = b"\x40" + bytes(encode_integer(len(name), 7)) + name if index is None else bytes((0x40 | index,))
        return head + bytes(encode_integer(len(value), 7)) + value


def _indexed(index: int) -> bytes:
    encoded = encode_integer(index, 7)
    encoded[0] |= 0x80
    return bytes(encoded)
