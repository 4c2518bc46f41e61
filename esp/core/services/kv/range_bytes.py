"""The bytes of a RangeResponse as etcd writes it: header, rows, `more`, count; each number in its shortest form.

Where the rows end cannot be seen from `more`, since the last row may end with the same bytes. But `more` is set if, and
only if, there are more keys than the limit of the request; and the count is always there if any row is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from typing import Final

from esp.core.varint import varint
from esp.core.wire.frames import pack_u32
from esp.core.wire.message import PREFIX_SIZE

HEADER_TAG: Final = 0x0A
ROW_TAG: Final = 0x12
MORE: Final = b"\x18\x01"
COUNT_TAG: Final = 0x20
LONGEST_END: Final = 13
"""The most bytes behind the rows."""
_KEY: Final = b"\x0a"
_RANGE_END: Final = b"\x12"
_LONGEST_HEAD: Final = 6
"""The most bytes in front of a row's own: its tag, and its length."""
_AT_ONCE: Final = 500
"""Rows that are passed over in one step: some 0.2 ms."""


def part_messages(message: bytes, boundaries: Sequence[bytes]) -> list[bytes]:
    """The requests for the parts of a Range with nothing but its keys, cut at these boundaries; all with prefix.

    `message` is as `peek.bare_range` knows it.
    """
    start = PREFIX_SIZE + 2 + message[PREFIX_SIZE + 1]
    low, last = message[PREFIX_SIZE:start], message[start:]
    messages = []
    for boundary in boundaries:
        length = varint(len(boundary)) + boundary
        messages.append(b"".join((b"\0", pack_u32(len(low) + 1 + len(length)), low, _RANGE_END, length)))
        low = _KEY + length
    messages.append(b"".join((b"\0", pack_u32(len(low) + len(last)), low, last)))
    return messages


def end_of_rows(data: bytes, start: int, limit: int) -> tuple[int, int] | None:
    """The place behind the rows in `data`, the end of an answer, and the count; None if it is not of etcd's form.

    Args:
        data: the end of the answer, from its header's end on or from some place further.
        start: the place in `data` where the rows begin.
        limit: of the request; 0 for none.
    """
    at = len(data) - 1
    if at < start:
        return start, 0  # neither rows nor a count
    count = data[at]
    if count > 0x7F:
        return None
    at -= 1
    while at > start and data[at] > 0x7F:
        count = count << 7 | data[at] & 0x7F
        at -= 1
    if at < start or data[at] != COUNT_TAG:
        return None
    if 0 < limit < count:
        at -= len(MORE)
        if at < start or not data.startswith(MORE, at):
            return None
    return at, count


def end(count: int, *, more: bool) -> bytes:
    """The bytes behind the rows."""
    written = bytes((COUNT_TAG,)) + varint(count) if count else b""
    return MORE + written if more else written


def keep_rows(pieces: deque[bytes], rows: int) -> Generator[None, None, bool]:
    """Cuts off all rows but the first `rows` of those in `pieces`, in steps. False if there are not so many."""
    skipped, place, done = 0, 0, 0
    while done < rows:
        if place == len(pieces):
            return False
        piece = pieces[place]
        at, size = skipped, len(piece)
        while at < size and done < rows:
            length = position = 0
            if size - at >= _LONGEST_HEAD or place + 1 == len(pieces):
                length, position = _row(piece, at)
            if not position:
                if place + 1 == len(pieces):
                    return False
                pieces[place], pieces[place + 1] = piece[:at], piece[at:] + pieces[place + 1]
                size = at
                break
            at = position + length
            done += 1
            if not done % _AT_ONCE:
                yield
        skipped = at - size
        place += 1
    if skipped > 0:
        # the last row reaches into further pieces
        while place < len(pieces) and skipped > len(pieces[place]):
            skipped -= len(pieces[place])
            place += 1
        if place == len(pieces):
            return False
        pieces[place] = pieces[place][:skipped]
        place += 1
    elif skipped < 0:
        pieces[place - 1] = pieces[place - 1][:skipped]
    while len(pieces) > place:
        pieces.pop()
    return True


def first_rows(data: bytes, rows: int) -> bytes:
    """The first `rows` rows of a short answer's, or as many as there are."""
    pieces = deque((data,))
    for _ in keep_rows(pieces, rows):
        pass
    return b"".join(pieces)


def rows_of(pieces: deque[bytes], rows: list[bytes]) -> Generator[None, None, bool]:
    """Moves the rows in `pieces` to `rows`, each with tag and length, in steps. False if there is anything else."""
    waiting: list[bytes] = []
    size, wanted, stop = 0, 1, _AT_ONCE
    while pieces:
        piece = pieces.popleft()
        waiting.append(piece)
        size += len(piece)
        if size < wanted:
            continue
        data = waiting[0] if len(waiting) == 1 else b"".join(waiting)
        at, wanted = _whole_rows(data, rows)
        if not wanted:
            return False
        waiting = [data[at:]] if at < size else []
        size -= at
        if len(rows) >= stop and pieces:
            stop = len(rows) + _AT_ONCE
            yield
    return not size


def _whole_rows(data: bytes, rows: list[bytes]) -> tuple[int, int]:
    """Appends the whole rows in `data`. The place behind them, and the bytes from there on that the next row needs.

    No bytes are needed if something else stands there.
    """
    at, size = 0, len(data)
    add = rows.append
    while size - at >= _LONGEST_HEAD:
        if data[at] != ROW_TAG:
            return at, 0
        length, behind = data[at + 1], at + 2
        if length > 0x7F:  # as in `_row`, in fewer steps for nearly all
            high = data[behind]
            if high < 0x80:
                length, behind = length & 0x7F | high << 7, at + 3
            else:
                length, behind = _row(data, at)
                if not behind:
                    return at, 0
        behind += length
        if behind > size:
            return at, behind - at
        add(data[at:behind])
        at = behind
    while at < size:  # the last rows may be shorter than the longest head
        length, behind = _row(data, at)
        if not behind:
            return (at, 0) if data[at] != ROW_TAG else (at, size - at + 1)
        behind += length
        if behind > size:
            return at, behind - at
        add(data[at:behind])
        at = behind
    return at, 1


def _row(data: bytes, at: int) -> tuple[int, int]:
    """The length of the row at `at`, and the place behind that length; 0 for the place if no row is there."""
    size = len(data)
    if data[at] != ROW_TAG:
        return 0, 0
    length = shift = 0
    for position in range(at + 1, min(size, at + _LONGEST_HEAD)):
        byte = data[position]
        length |= (byte & 0x7F) << shift
        if byte < 0x80:
            return length, position + 1
        shift += 7
    return 0, 0
