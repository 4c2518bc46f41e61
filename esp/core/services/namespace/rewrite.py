"""Messages with their keys changed by a form (forms.py), made of their bytes as they come.

An answer of any size is rewritten in the pieces in which it comes. Nothing is parsed as a whole. Only the lengths of
messages that are still open, and so the first bytes of a gRPC message, have to wait for the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from esp.core.services.namespace.forms import Form, Malformed, number
from esp.core.varint import varint
from esp.core.wire.frames import pack_u32

PIECE_BYTES: Final = 64
"""About the memory that a piece takes besides its bytes."""
STEP_BYTES: Final = 16_384
"""Bytes that are rewritten in one step."""
MOST_DEPTH: Final = 100
"""The most messages inside each other, as protobuf reads."""
_MOST_TAG: Final = 0xFFFFFFFF

_UNKNOWN: Final = False
"""The action for a field that is left out."""


class _Open:
    """A message whose end has not come.

    Attributes:
        form: its form.
        end: the place in the whole message where it ends.
        tag: its tag; its length is written behind it at the end.
        place: the place of this head among the pieces.
        size: bytes written so far.
        lacks: its needed field has not come yet.
    """

    __slots__ = ("end", "form", "lacks", "place", "size", "tag")

    def __init__(self, form: Form, end: int, tag: int, place: int) -> None:
        self.form = form
        self.end = end
        self.tag = tag
        self.place = place
        self.size = 0
        self.lacks = form.needed > 0


class Rewriter:
    """Rewrites one message of `size` bytes as it comes.

    Attributes:
        pieces: the new message, once it `is_whole`, without its gRPC prefix.
        held: about the bytes of memory that everything kept takes.
    """

    __slots__ = ("_at", "_gathered", "_kept", "_missing", "_open", "held", "pieces")

    def __init__(self, form: Form, size: int) -> None:
        self.pieces: list[bytes] = []
        self.held = 0
        self._at = 0
        self._kept: list[bytes] = []
        self._missing = 0
        self._gathered = 0
        self._open = [_Open(form, size, 0, -1)]
        if not size:
            self._close()

    @property
    def is_whole(self) -> bool:
        """Whether all of the message has come."""
        return not self._open

    @property
    def size(self) -> int:
        """The bytes of the new message."""
        return sum(map(len, self.pieces))

    def take(self, data: bytes) -> None:
        """Takes the next bytes of the message.

        Raises:
            Malformed: they are no such message.
            Outside: an answer has a key of another namespace.
        """
        self.held += len(data) + PIECE_BYTES
        missing = self._missing
        if missing > len(data):
            self._kept.append(data)
            self._missing -= len(data)
            return
        if self._kept:
            self._kept.append(data[:missing] if missing else data)
            whole = b"".join(self._kept)
            self._kept.clear()
            self._missing = 0
            self._walk(whole)
            data = data[missing:] if missing else b""
        if data:
            self._walk(data)
        self._gather()

    def _walk(self, data: bytes) -> None:
        """Goes over the fields in `data`, and keeps the bytes of an incomplete last field."""
        at, size, position = self._at, len(data), 0
        pieces, opened = self.pieces, self._open
        while position < size:
            if not opened:
                raise Malformed
            start = position
            one = opened[-1]
            try:
                tag = data[position]
                position += 1
                if tag > 0x7F:
                    tag, position = number(data, start)
                kind = tag & 7
                if kind == 0:
                    _, position = number(data, position)
                elif kind == 2:
                    length, begin = number(data, position)
                    position = begin + length
                elif kind in (1, 5):
                    position += 8 if kind == 1 else 4
                else:
                    raise Malformed
            except IndexError:
                self._keep(data, start, 0)
                return
            if at + position > one.end or not 7 < tag <= _MOST_TAG:
                raise Malformed
            action = one.form.actions.get(tag, _UNKNOWN)
            if len(opened) > MOST_DEPTH:
                raise Malformed
            if tag == one.form.needed:
                one.lacks = False
            if type(action) is Form:
                pieces.append(b"")
                opened.append(_Open(action, at + position, tag, len(pieces) - 1))
                position = begin
                self._at = at + position
                if length:
                    continue
                self._close()
            else:
                if position > size:
                    self._keep(data, start, position - size)
                    return
                if action is None:
                    piece = data[start:position]
                    pieces.append(piece)
                    one.size += len(piece)
                elif callable(action):
                    content = action(data[begin:position])
                    if content is not None:
                        piece = b"".join((varint(tag), varint(len(content)), content))
                        pieces.append(piece)
                        one.size += len(piece)
            self._at = at + position
            while opened and self._at >= opened[-1].end:
                self._close()

    def _close(self) -> None:
        """The innermost message is whole."""
        one = self._open.pop()
        if self._at > one.end:
            raise Malformed
        if one.lacks:
            self.pieces.append(one.form.default)
            one.size += len(one.form.default)
        if self._open:
            head = varint(one.tag) + varint(one.size)
            self.pieces[one.place] = head
            self._open[-1].size += len(head) + one.size

    def _keep(self, data: bytes, start: int, missing: int) -> None:
        self._kept = [data[start:]]
        self._missing = missing

    def _gather(self) -> None:
        """Joins what was written behind the last open length: many small pieces take more memory than their bytes."""
        pieces = self.pieces
        first = max(self._gathered, self._open[-1].place + 1 if self._open else 0)
        if len(pieces) - first > 1:
            pieces[first:] = [b"".join(pieces[first:])]
        self._gathered = len(pieces)


def rewritten(form: Form, message: bytes) -> bytes:
    """A whole message, rewritten, with its gRPC prefix.

    Raises:
        Malformed, Outside: as `Rewriter.take`.
    """
    if form.is_flat:
        new = _rewritten_flat(form, message)
    else:
        rewriter = Rewriter(form, len(message))
        if message:
            rewriter.take(message)
        if not rewriter.is_whole:
            raise Malformed
        new = b"".join(rewriter.pieces)
    return b"\0" + pack_u32(len(new)) + new


def _rewritten_flat(form: Form, message: bytes) -> bytes:
    """As `Rewriter` does it, in fewer steps, for a whole message in a form that is flat: nearly every Put and Range."""
    pieces: list[bytes] = []
    actions, lacks = form.actions, form.needed > 0
    copied = position = 0
    size = len(message)
    try:
        while position < size:
            start = position
            tag = message[position]
            position += 1
            if tag > 0x7F:
                tag, position = number(message, start)
            kind = tag & 7
            if kind == 2:
                length = message[position]
                begin = position + 1
                if length > 0x7F:
                    length, begin = number(message, position)
                position = begin + length
                if position > size:
                    raise Malformed
            elif kind == 0:
                _, position = number(message, position)
            elif kind in (1, 5):
                position += 8 if kind == 1 else 4
            else:
                raise Malformed
            if not 7 < tag <= _MOST_TAG:
                raise Malformed
            action = actions.get(tag, _UNKNOWN)
            if action is None:
                continue
            if copied < start:
                pieces.append(message[copied:start])
            copied = position
            if callable(action):
                content = action(message[begin:position])
                if content is not None:
                    pieces += varint(tag), varint(len(content)), content
                lacks = lacks and tag != form.needed
    except IndexError:
        raise Malformed from None
    if position > size:
        raise Malformed
    if copied < size:
        pieces.append(message[copied:])
    if lacks:
        pieces.append(form.default)
    return b"".join(pieces)


def steps(form: Form, message: bytes, offset: int) -> Iterator[bytes]:
    """As `rewritten`, of the bytes from `offset` on, in steps: each yields b"" save the last, which yields the message.

    Raises:
        Malformed, Outside: as `Rewriter.take`.
    """
    rewriter = Rewriter(form, len(message) - offset)
    for start in range(offset, len(message), STEP_BYTES):
        rewriter.take(message[start : start + STEP_BYTES])
        yield b""
    if not rewriter.is_whole:
        raise Malformed
    new = b"".join(rewriter.pieces)
    yield b"\0" + pack_u32(len(new)) + new
