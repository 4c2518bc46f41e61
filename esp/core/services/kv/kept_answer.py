"""The answer of one shard to a part of a Range (`concat_part`), as far as it is kept: as bytes, counted as memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from typing import Final, Self

from esp.core.services.kv.range_bytes import LONGEST_END, end_of_rows, keep_rows, rows_of
from esp.core.services.kv.rows import ROW_BYTES
from esp.core.varint import MOST_BYTES
from esp.core.wire.client_stream import STREAM_WINDOW, ClientStream
from esp.core.wire.frames import MAX_FRAME_SIZE
from esp.core.wire.message import PREFIX_SIZE
from esp.core.wire.server_stream import ServerCall

TAIL_BYTES: Final = 1 + MOST_BYTES
"""Bytes of the count, the same for any count: the length of the answer is known before the count."""
RESERVED: Final = STREAM_WINDOW
"""Bytes of a part that are accounted for in one go."""
_AT_ONCE: Final = 256
_ROWS_IN_STEP: Final = 4096
_NO_PREFIX: Final = bytes(PREFIX_SIZE)


class KeptAnswer(ClientStream):
    """The bytes of an answer behind its prefix, whole or in pieces.

    Attributes:
        down: the client's stream, whose memory the bytes are.
        limit: the rows that were asked for; 0 for all.
        whole: a small answer that has come whole, with prefix; b"" for any other.
        header: the field with the answer's header, once it has come.
        length: the bytes of the answer without prefix, once its header has come.
        pieces: the bytes of an answer that did not come whole, or is large.
    """

    __slots__ = ("_got", "_kept", "_reserved", "_tail", "down", "header", "length", "limit", "pieces", "whole")

    down: ServerCall
    limit: int
    whole: bytes
    header: bytes
    length: int
    _reserved: int

    def _prepare(self) -> None:
        self._tail = b""
        self._got = self._kept = self._reserved = 0
        self.pieces: deque[bytes] = deque()

    def hold(self, size: int) -> bool:
        """Accounts for `size` bytes of the answer that are kept, as memory of the client's call."""
        return self.down.hold(size)

    def release(self, size: int) -> None:
        """Returns `size` bytes that `hold` gave."""
        self.down.release(size)

    def next_piece(self) -> bytes:
        """Takes the next piece, and gives its memory back."""
        piece = self.pieces.popleft()
        if self._reserved:
            self._kept -= len(piece)
            if not self.pieces or self._reserved - self._kept >= 2 * RESERVED:
                self.release(self._reserved - self._kept)
                self._reserved = self._kept
        return piece

    def _keep(self, size: int) -> bool:
        """Accounts for `size` bytes of the answer, and for some of the bytes to follow; False if there is no room.

        To account for each piece alone took a tenth of the time of a large answer.
        """
        kept = self._kept + size
        if kept > self._reserved:
            missing = kept - self._reserved
            more = max(missing, min(RESERVED, missing + self.length - self._got))
            if not self.down.may_hold(more):
                more = missing
            if not self.hold(more):
                return False
            self._reserved += more
        self._kept = kept
        return True

    def joined(self) -> bytes:
        """A small answer that came in pieces, with a place for its prefix."""
        return b"".join((_NO_PREFIX, *self.pieces))

    def unfold(self) -> None:
        """Makes a piece of a small answer that came whole."""
        if self.whole:
            self._prepare()
            self._tail = self.whole[-TAIL_BYTES:]
            self.pieces.append(self.whole[PREFIX_SIZE:])

    def trim(self) -> int | None:
        """Leaves only rows of a kept answer; the count at its end, None if the answer is not of etcd's form."""
        self.unfold()
        pieces, first = self.pieces, len(self.header)
        last = pieces.pop()
        while pieces and len(last) < LONGEST_END:
            last = pieces.pop() + last
        found = end_of_rows(last, 0 if pieces else first, self.limit)
        if found is None:
            return None
        pieces.append(last[: found[0]])
        pieces[0] = pieces[0][first:]
        self._count_kept()
        return found[1]

    def cut(self, rows: int) -> Generator[None, None, bool]:
        """Leaves only the first rows of a trimmed answer, in steps; False if there are not so many."""
        is_cut = yield from keep_rows(self.pieces, rows)
        self._count_kept()
        return is_cut

    def rows(self, rows: list[bytes]) -> Generator[None, None, bool]:
        """Moves the rows out of a trimmed answer to `rows`, in steps; False if there is anything else.

        Their memory stays that of this answer.
        """
        are_rows = yield from rows_of(self.pieces, rows)
        return are_rows

    def hold_rows(self, count: int) -> bool:
        """Accounts for what rows take besides their bytes. Without memory for that the call ends; then False."""
        if not self.hold(ROW_BYTES * count):
            self.down.cut()
            return False
        self._reserved += ROW_BYTES * count
        return True

    def adopt(self, rows: list[bytes], others: Iterable[Self]) -> Generator[None, None, int]:
        """Takes rows of this answer and of others for its pieces, and the memory of the others, in steps.

        Returns the bytes of the rows.
        """
        for one in others:
            self._reserved += one._reserved
            one._reserved = 0
            one.pieces.clear()
        pieces = self.pieces
        pieces.clear()
        for at in range(0, len(rows), _AT_ONCE):
            joined = b"".join(rows[at : at + _AT_ONCE])
            rows[at : at + _AT_ONCE] = [b""] * len(rows[at : at + _AT_ONCE])
            pieces.extend(joined[cut : cut + MAX_FRAME_SIZE] for cut in range(0, len(joined), MAX_FRAME_SIZE))
            if at and not at % _ROWS_IN_STEP:
                yield
        self._count_kept()
        return self.size

    def _count_kept(self) -> None:
        if self._reserved:
            self._kept = self.size

    @property
    def size(self) -> int:
        """The bytes of all pieces."""
        return sum(map(len, self.pieces))

    def drop_pieces(self) -> None:
        """Drops all bytes, and gives their memory back."""
        if self._reserved:
            self.release(self._reserved)
            self._prepare()

    def count(self) -> int | None:
        """The count at the end of an answer that has been sent on; None if the answer is not of etcd's form."""
        if self.length == len(self.header):
            return 0
        tail = self._tail
        found = end_of_rows(tail, 0, 0)
        return None if found is None else found[1]
