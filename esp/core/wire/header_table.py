"""The table of a peer's header fields (RFC 7541, section 2.3): a static part, and what the peer's blocks put in."""

from __future__ import annotations

from collections import deque
from typing import Final

from hpack import InvalidTableIndex
from hpack.table import HeaderTable as _Library

Field = tuple[bytes, bytes]

FIELD_OVERHEAD: Final = 32
"""Added to the size of each field (RFC 7541, section 4.1; RFC 9113, section 6.5.2)."""
LARGEST: Final = _Library.DEFAULT_SIZE
"""Bytes that a table may have."""
STATIC_FIELDS: Final[tuple[Field, ...]] = ((b"", b""), *_Library.STATIC_TABLE)
"""The static part by index. Nothing has the index 0."""


class HeaderTable:
    """One peer's table, empty at first. The `hpack` library has one as well; an entry takes it three times as long.

    Attributes:
        maxsize: bytes; older entries give way to new ones when these do not fit.
        changes: how often the table has changed.
    """

    __slots__ = ("_entries", "_size", "changes", "maxsize")

    def __init__(self) -> None:
        self._entries: deque[Field] = deque()  # the newest last
        self._size = 0
        self.maxsize = LARGEST
        self.changes = 0

    @property
    def dynamic_entries(self) -> list[Field]:
        """What the peer's blocks have put in, the newest first."""
        return list(reversed(self._entries))

    def get_by_index(self, index: int) -> Field:
        """The field of an index.

        Raises:
            InvalidTableIndex: there is none.
        """
        if 0 < index < len(STATIC_FIELDS):
            return STATIC_FIELDS[index]
        place = index - len(STATIC_FIELDS)
        if 0 <= place < len(self._entries):
            return self._entries[-1 - place]
        raise InvalidTableIndex(f"no entry {index}")

    def add(self, field: Field) -> None:
        """Puts a field in. A field that is larger than the table empties it."""
        size = len(field[0]) + len(field[1]) + FIELD_OVERHEAD
        entries = self._entries
        if size <= self.maxsize:
            entries.append(field)
            self.changes += 1
            self._size += size
            self._shrink()
        elif entries:
            entries.clear()
            self.changes += 1
            self._size = 0

    def resize(self, maxsize: int) -> None:
        """Makes the table as large as the peer says."""
        if maxsize != self.maxsize:
            self.maxsize = maxsize
            self.changes += 1
            self._shrink()

    def _shrink(self) -> None:
        while self._size > self.maxsize:
            name, value = self._entries.popleft()
            self._size -= len(name) + len(value) + FIELD_OVERHEAD
