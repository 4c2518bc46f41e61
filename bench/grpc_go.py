"""Request header blocks as grpc-go writes them, which is what almost every etcd client is.

What is followed (grpc-go `http2_client.go`, `controlbuf.go`; golang.org/x/net `hpack/encode.go`): the order of the
fields; everything that fits goes into the dynamic table; the table never grows beyond 4,096 bytes and shrinks to what
the server announces in SETTINGS_HEADER_TABLE_SIZE; Huffman only where it is shorter. `hpack.Encoder` differs in the
last point, and writes incremental literals even where the table holds nothing, which would be other work for the proxy.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterable

from hpack.hpack import encode_integer
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.table import HeaderTable

Field = tuple[bytes, bytes]
_STATIC = HeaderTable.STATIC_TABLE_MAPPING
_FIRST_DYNAMIC = HeaderTable.STATIC_TABLE_LENGTH + 1
_ENTRY_OVERHEAD = 32  # RFC 7541 section 4.1
_LARGEST_TABLE = 4096
_huffman = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)


def unary_fields(path: bytes, authority: bytes, timeout: bytes) -> list[Field]:
    """The header fields of one unary call of etcd's Go client, with a deadline."""
    return [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path),
        (b":authority", authority),
        (b"content-type", b"application/grpc"),
        (b"user-agent", b"grpc-go/1.82.1"),
        (b"te", b"trailers"),
        (b"grpc-timeout", timeout),
        (b"client-api-version", b"3.7"),
    ]


class Encoder:
    """The compression state of one connection's requests."""

    def __init__(self) -> None:
        self._limit = _LARGEST_TABLE
        self._tell_limit = False
        self._size = 0
        self._entries: deque[tuple[Field, int]] = deque()  # oldest first, with their sizes
        self._inserted = 0
        self._by_field: dict[Field, int] = {}  # field -> its number among all insertions, the newest of equals
        self._by_name: dict[bytes, int] = {}

    def announced(self, table_size: int) -> None:
        """The server has sent SETTINGS_HEADER_TABLE_SIZE. A smaller table is taken over, a larger one never used."""
        if table_size < self._limit:
            self._limit, self._tell_limit = table_size, True
            self._evict()

    def encode(self, fields: Iterable[Field]) -> bytes:
        """The header block; advances the table, so blocks must be sent in the order they were made."""
        block = bytearray()
        if self._tell_limit:
            self._tell_limit = False
            block += _integer(self._limit, 5, 0x20)
        for field in fields:
            self._append(block, field)
        return bytes(block)

    def _append(self, block: bytearray, field: Field) -> None:
        name, value = field
        static = _STATIC.get(name)
        if static and (index := static[1].get(value)):
            block += _integer(index, 7, 0x80)
            return
        if number := self._by_field.get(field):
            block += _integer(self._inserted - number + _FIRST_DYNAMIC, 7, 0x80)
            return
        index = static[0] if static else 0
        if not index and (number := self._by_name.get(name)):
            index = self._inserted - number + _FIRST_DYNAMIC
        size = len(name) + len(value) + _ENTRY_OVERHEAD
        if size <= self._limit:
            self._insert(field, size)
            block += _integer(index, 6, 0x40)
        else:
            block += _integer(index, 4, 0)
        if not index:
            block += _string(name)
        block += _string(value)

    def _insert(self, field: Field, size: int) -> None:
        self._inserted += 1
        self._size += size
        self._entries.append((field, size))
        self._by_field[field] = self._by_name[field[0]] = self._inserted
        self._evict()

    def _evict(self) -> None:
        while self._size > self._limit:
            evicted, its_size = self._entries.popleft()
            number = self._inserted - len(self._entries)
            self._size -= its_size
            if self._by_field.get(evicted) == number:
                del self._by_field[evicted]
            if self._by_name.get(evicted[0]) == number:
                del self._by_name[evicted[0]]


def _integer(value: int, prefix_bits: int, pattern: int) -> bytes:
    encoded = encode_integer(value, prefix_bits)
    encoded[0] |= pattern
    return bytes(encoded)


@functools.lru_cache(1024)
def _string(text: bytes) -> bytes:
    packed = _huffman.encode(text)
    if len(packed) < len(text):
        return _integer(len(packed), 7, 0x80) + packed
    return _integer(len(text), 7, 0) + text
