"""Header blocks: a decoder behind a memo, and an encoder that keeps no state (RFC 7541).

The meaning of a header block depends on the peer's dynamic table. Most blocks do not change the table. Until a block
does, equal bytes are equal headers, and one dictionary look-up replaces the decoding. A block that changes the table
empties the memo. A block that is not in the memo is always decoded, to keep the table in step with the peer. esp's
blocks to clients use only the static table and literals without indexing, so no client has a part in the bytes that
another client sees.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Generic, NoReturn, TypeVar

from hpack import HPACKError, OversizedHeaderListError
from hpack.hpack import encode_integer

from esp.core.wire.divided import COMPOSITE, DividedBlock
from esp.core.wire.field_decoder import FIELD_OVERHEAD, FieldDecoder
from esp.core.wire.frames import ConnectionFault, ErrorCode, StreamFault
from esp.core.wire.header_table import STATIC_FIELDS

Fields = list[tuple[bytes, bytes]]

STATIC: Final = {field: index for index, field in list(enumerate(STATIC_FIELDS))[:0:-1]}
STATIC_NAMES: Final = {field[0]: index for index, field in list(enumerate(STATIC_FIELDS))[:0:-1]}
_SENSITIVE: Final = frozenset((b"token", b"authorization", b"cookie"))
"""Marked as never indexed, so that no hop between here and the peer puts them into a table."""

MEMO_ENTRIES: Final = 256
MEMO_BLOCK_BYTES: Final = 8192
MEMO_BYTES: Final = 131_072
"""Bytes in a connection's memos: blocks, and their fields, counted as in RFC 9113 section 6.5.2."""


def encode_field(name: bytes, value: bytes) -> bytes:
    """One field as a static index or a literal without indexing."""
    index = STATIC.get((name, value))
    if index is not None and name not in _SENSITIVE:
        encoded = encode_integer(index, 7)
        encoded[0] |= 0x80
        return bytes(encoded)
    kind = 0x10 if name in _SENSITIVE else 0x00
    index = STATIC_NAMES.get(name)
    if index is None:
        head = bytes((kind,)) + bytes(encode_integer(len(name), 7)) + name
    else:
        encoded = encode_integer(index, 4)
        encoded[0] |= kind
        head = bytes(encoded)
    return head + bytes(encode_integer(len(value), 7)) + value


def encode(fields: Fields) -> bytes:
    """A header block for `fields`, in order; a `DividedBlock` if a value is `COMPOSITE`."""
    block = b"".join(encode_field(name, value) for name, value in fields)
    return DividedBlock(block) if block.find(COMPOSITE) >= 0 else block


def decode(block: bytes) -> Fields:
    """The fields of a block that `encode` has made. Such a block uses no table, so the connection does not matter."""
    return FieldDecoder(len(block) * 8 + MEMO_BYTES).decode(block)


Head = TypeVar("Head")


class TooLarge(StreamFault):
    """A header block above a limit; only its own stream is concerned, the peer's table is known."""

    def __init__(self, fields: Fields, found: str, limit: str, most: int) -> None:
        reason = "too many header fields" if limit == "max_header_fields" else "header list too large"
        super().__init__(ErrorCode.ENHANCE_YOUR_CALM, reason, limit)
        self.fields = fields
        self.text = f"the request's metadata {found}, {limit} is {most}"


class HeaderDecoder(Generic[Head]):
    """One connection's decoder: makes heads of blocks; `build` makes the head of a block's fields.

    Attributes:
        memo: the heads of blocks whose meaning has not changed; the connections' frame loops look here directly.
    """

    __slots__ = (
        "_acknowledged",
        "_build",
        "_decoder",
        "_list_bytes",
        "_max_fields",
        "_max_list_bytes",
        "_memo_bytes",
        "_repeatable",
        "memo",
    )

    def __init__(
        self, build: Callable[[Fields], Head], max_list_bytes: int, max_fields: int, most_bytes: int = 0
    ) -> None:
        """A block above `max_list_bytes` is refused; a block above `most_bytes` is not even decoded to its end."""
        self._build = build
        self._decoder = FieldDecoder(max(max_list_bytes, most_bytes))
        self._max_list_bytes = max_list_bytes
        self._max_fields = max_fields
        self._acknowledged = False
        self._repeatable = False
        self._list_bytes = 0
        self._memo_bytes = 0
        self.memo: dict[bytes, Head] = {}

    @property
    def stateless(self) -> bool:
        """Whether the peer's table is at 0 bytes for good, so that a block's meaning is in its bytes alone.

        A peer that went to 0 before it acknowledged esp's SETTINGS may still go back to the size first granted.
        """
        return self._acknowledged and self._decoder.table.maxsize == 0

    def settings_acknowledged(self) -> None:
        """The peer has taken over SETTINGS_HEADER_TABLE_SIZE 0: from now on it may not ask for a larger table.

        A peer that keeps its table is tolerated. Its blocks are decoded each time, without the memo.
        """
        self._acknowledged = True

    def fields(self, block: bytes) -> Fields:
        """The fields of `block`, the table updated.

        Raises:
            ConnectionFault: the block is not HPACK, or larger than allowed; the table is unusable from here on.
            TooLarge: the block is above a limit, but was decoded.
        """
        _check_size_updates(block, to_zero=self._acknowledged)
        table = self._decoder.table
        before = table.changes
        try:
            fields = self._decoder.decode(block)
        except OversizedHeaderListError:
            raise ConnectionFault(
                ErrorCode.ENHANCE_YOUR_CALM, "header list too large", "max_header_block_bytes"
            ) from None
        except HPACKError as error:
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, f"header block: {error}") from None
        self._repeatable = table.changes == before
        if not self._repeatable:
            self.forget()
        size = self._list_bytes = sum([len(name) + len(value) + FIELD_OVERHEAD for name, value in fields])
        if size > self._max_list_bytes:
            raise TooLarge(fields, f"takes {size} bytes", "max_header_list_bytes", self._max_list_bytes)
        if len(fields) > self._max_fields:
            raise TooLarge(fields, f"has {len(fields)} fields", "max_header_fields", self._max_fields)
        return fields

    def decode(self, block: bytes) -> Head:
        """The result of `build` for `block`; remembered when the block does not change the table.

        Raises:
            ConnectionFault: as `fields`.
            StreamFault: too many fields, or `build` refuses them.
        """
        known = self.memo.get(block)
        if known is not None:
            return known
        head = self._build(self.fields(block))
        if self._repeatable and len(block) <= MEMO_BLOCK_BYTES:
            self.remember(block, head)
        return head

    def remember(self, block: bytes, head: Head) -> None:
        """Puts `head`, just made of `block`, into the memo. A full memo is emptied first."""
        self._make_room(len(block), len(self.memo))
        self.memo[block] = head

    def _make_room(self, size: int, entries: int) -> None:
        """Makes room for the meaning of the last block, of which `size` bytes are kept, when the memo is full."""
        if entries >= MEMO_ENTRIES or self._memo_bytes + size + self._list_bytes > MEMO_BYTES:
            self.forget()
        self._memo_bytes += size + self._list_bytes

    def close(self) -> None:
        """Empties the memo, and drops `build`, which refers to the connection: no more blocks come."""
        self.forget()
        self._build = _closed

    def forget(self) -> None:
        """Empties the memo."""
        self.memo.clear()
        self._memo_bytes = 0


def _closed(_: Fields) -> NoReturn:
    raise ConnectionFault(ErrorCode.NO_ERROR, "the connection has ended")


def _check_size_updates(block: bytes, *, to_zero: bool) -> None:
    """Refuses a block that begins with more than two dynamic table size updates (RFC 7541, section 4.2).

    With `to_zero`, also refuses a block with an update above 0 (section 6.3).
    """
    position = updates = 0
    while position < len(block) and block[position] & 0xE0 == 0x20:
        updates += 1
        if updates > 2:
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, "header block: too many table size updates")
        if to_zero and block[position] != 0x20:
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, "header block: table size update above what was granted")
        if block[position] == 0x3F:
            position += 1
            while position < len(block) and block[position] & 0x80:
                position += 1
        position += 1
