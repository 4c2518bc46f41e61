"""A message in bytes as JSON, as Go's protojson prints it with `UseProtoNames`, without a blank.

Small messages are parsed and printed at once. Of a large one, the parts are printed as their bytes come: only a value
has to be whole, never the message. So an answer of any size takes little memory and no long step.

Fields that are not repeated may come again: of several shards' answers the last one counts (services/kv/concat.py). So
values are printed at the end of their message. Messages, such as a header, are printed where they stand; if another one
came later, that is an error.
"""

from __future__ import annotations

from binascii import b2a_base64
from collections.abc import Callable, Iterator
from json.encoder import encode_basestring
from typing import Any, Final

from google.protobuf.message import DecodeError, Message

from esp.core.gateway.shapes import Field, Kind, Shape
from esp.core.wire.frames import unpack_u32
from esp.core.wire.message import PREFIX_SIZE

SMALL: Final = 4096
"""Bytes of a message, or of a part of one, that is printed at once: about a millisecond."""
PIECE: Final = 49_152
"""Bytes of a value that are printed in one step; a multiple of 3, so that the pieces' base64 is that of the value."""
MOST_VARINT: Final = 10
MAX_DEPTH: Final = 100
"""The deepest nesting of messages, as in protobuf."""

_ESCAPED: Final = (("&", "\\u0026"), ("<", "\\u003c"), (">", "\\u003e"), ("\u2028", "\\u2028"), ("\u2029", "\\u2029"))


class Garbled(Exception):
    """Bytes that are not the message."""


def text_of(shape: Shape, data: bytes) -> str:
    """A whole message as JSON.

    Raises:
        Garbled: `data` is no such message.
    """
    return _object(shape, _parsed(shape, data))


def _parsed(shape: Shape, data: bytes) -> Message:
    try:
        return shape.message.FromString(data)
    except DecodeError as error:
        raise Garbled(str(error)) from None


def string(text: str) -> str:
    """A string as JSON."""
    return encode_basestring(text)


def for_html(text: str) -> str:
    """JSON as Go's encoding/json prints it, which escapes what has a meaning in HTML."""
    for character, escape in _ESCAPED:
        if character in text:
            text = text.replace(character, escape)
    return text


def _object(shape: Shape, message: Message) -> str:
    if shape.numbers is not None:
        numbers = shape.numbers(message)
        if 0 not in numbers:
            return shape.all_numbers % numbers
    fields = shape.by_number
    printed = []
    for descriptor, value in message.ListFields():
        field = fields[descriptor.number]
        if field.whole:  # most of them
            printed.append(field.whole % value)
        elif field.repeated:
            printed.append(f'"{field.name}":[{",".join([_value(field, inner) for inner in value])}]')
        else:
            printed.append(f'"{field.name}":{_value(field, value)}')
    return f"{{{','.join(printed)}}}"


def _value(field: Field, value: Any) -> str:
    kind = field.kind
    if kind is Kind.BYTES:
        return f'"{b2a_base64(value, newline=False).decode()}"'
    if kind is Kind.MESSAGE:
        assert field.shape is not None
        return _object(field.shape, value)
    if kind is Kind.INT64 or kind is Kind.UINT64:
        return f'"{value}"'
    if kind is Kind.STRING:
        return string(value)
    if kind is Kind.BOOL:
        return "true" if value else "false"
    if kind is Kind.ENUM:
        name = field.numbers.get(value)
        return str(value) if name is None else f'"{name}"'
    return str(value)


class _Open:
    """A message that is being printed.

    Attributes:
        end: its last position.
        field: the repeated field that is open.
        single: all fields so far that are not repeated, in bytes.
        left: the bytes of those fields while they are printed.
        printed: the messages among them that are printed, by the names of their fields.
    """

    __slots__ = ("end", "field", "left", "printed", "seen", "shape", "single")

    def __init__(self, shape: Shape, end: int) -> None:
        self.shape = shape
        self.end = end
        self.field: Field | None = None
        self.seen: set[int] = set()
        self.single = bytearray()
        self.left = 0
        self.printed: dict[str, Message] = {}


class Printer:
    """Prints the messages of a call's answer, whose bytes come in pieces of any size.

    Args:
        shape: of the messages.
        write: takes the printed text.
        began, ended: called around each message: before its first text, and after its last.

    Attributes:
        held: bytes that have come and are not printed yet.
        is_within: a message has been printed in part.
    """

    __slots__ = ("_began", "_buffer", "_ended", "_open", "_passed", "_shape", "_size", "_write")

    def __init__(
        self, shape: Shape, write: Callable[[str], None], began: Callable[[bool], None], ended: Callable[[], None]
    ) -> None:
        self._shape = shape
        self._write = write
        self._began = began
        self._ended = ended
        self._buffer = bytearray()
        self._size = -1  # of the message that comes, -1 between messages
        self._passed = 0  # bytes of that message that have left the buffer
        self._open: list[_Open] = []

    @property
    def held(self) -> int:
        """Bytes that have come and are not printed yet."""
        return len(self._buffer) + sum([len(one.single) + one.left for one in self._open])

    @property
    def is_within(self) -> bool:
        """Whether a part of a message has been printed."""
        return bool(self._open)

    def feed(self, data: bytes) -> None:
        """Takes the next bytes: messages with their prefixes."""
        self._buffer += data

    def steps(self) -> Iterator[None]:
        """Prints as much as has come.

        Raises:
            Garbled: the bytes are no such messages.
        """
        buffer = self._buffer
        while True:
            if self._size < 0:
                if len(buffer) < PREFIX_SIZE:
                    return
                if buffer[0]:
                    raise Garbled("a compressed message")
                self._size = unpack_u32(buffer, 1)[0]
                del buffer[:PREFIX_SIZE]
            if not self._open and self._size <= SMALL:
                if len(buffer) < self._size:
                    return
                data = bytes(buffer[: self._size])
                del buffer[: self._size]
                self._size = -1
                self._began(True)
                self._write(text_of(self._shape, data))
                self._ended()
                yield
                continue
            if not self._open:
                self._began(False)
                self._write("{")
                self._passed = 0
                self._open.append(_Open(self._shape, self._size))
            while self._open:
                top = self._open[-1]
                if top.end == self._passed:
                    yield from self._close(top)
                    continue
                used = self._field(top)
                if used < 0:
                    return
                del buffer[:used]
                self._passed += used
                yield
            self._size = -1
            self._ended()

    def _field(self, top: _Open) -> int:
        """Prints the next field, or the beginning of one; the bytes used, or -1 if more have to come."""
        buffer = self._buffer
        left = top.end - self._passed
        tag, at = _varint(buffer, 0, left)
        if at < 0:
            return -1
        field = top.shape.by_number.get(tag >> 3)
        kind = tag & 7
        if kind == 0:
            _, at = _varint(buffer, at, left)
            return -1 if at < 0 else self._whole(top, field, at)
        if kind != 2:
            size = {1: 8, 5: 4}.get(kind)
            if size is None or field is not None:
                raise Garbled(f"a field of type {kind}")
            return self._ignored(at + size, left)
        size, at = _varint(buffer, at, left)
        if at < 0:
            return -1
        if at + size > left:
            raise Garbled("a field that is longer than its message")
        if field is None:
            return self._ignored(at + size, left)
        if field.kind is Kind.MESSAGE and size > SMALL:
            assert field.shape is not None
            if len(self._open) >= MAX_DEPTH:
                raise Garbled("messages nested too deep")
            self._name(top, field)
            self._write("{")
            self._open.append(_Open(field.shape, self._passed + at + size))
            return at
        return self._whole(top, field, at + size)

    def _ignored(self, end: int, left: int) -> int:
        """Skips a field that this version of esp does not know."""
        if end > left:
            raise Garbled("a field that is longer than its message")
        return end if len(self._buffer) >= end else -1

    def _whole(self, top: _Open, field: Field | None, end: int) -> int:
        """Prints a field whose bytes, with its tag, are those up to `end`; keeps one that is not repeated."""
        buffer = self._buffer
        if len(buffer) < end:
            return -1
        if field is None:
            return end
        if not field.repeated:
            top.single += buffer[:end]
            if field.kind is Kind.MESSAGE and field.name not in top.printed:
                message = getattr(_parsed(top.shape, bytes(buffer[:end])), field.name)
                top.printed[field.name] = message
                self._name(top, field)
                self._write(_value(field, message))
            return end
        for inner in getattr(_parsed(top.shape, bytes(buffer[:end])), field.name):
            self._name(top, field)
            self._write(_value(field, inner))
        return end

    def _name(self, top: _Open, field: Field) -> None:
        """Prints what stands in front of a value."""
        if top.field is field:
            self._write(",")
            return
        if field.number in top.seen:
            raise Garbled(f"field {field.name} in two places")
        if top.field is not None:
            self._write("],")
        elif top.seen:
            self._write(",")
        top.seen.add(field.number)
        top.field = field if field.repeated else None
        self._write(f'"{field.name}":[' if field.repeated else f'"{field.name}":')

    def _close(self, top: _Open) -> Iterator[None]:
        """Prints the end of a message, in steps: the fields that are not repeated."""
        if top.single:
            fields = _parsed(top.shape, bytes(top.single)).ListFields()
            top.left = len(top.single)
            top.single = bytearray()
            for descriptor, value in fields:
                field = top.shape.by_number[descriptor.number]
                if field.name in top.printed:
                    if top.printed[field.name] != value:
                        raise Garbled(f"two of field {field.name}")
                    continue
                self._name(top, field)
                if field.kind is Kind.BYTES and len(value) > PIECE:
                    self._write('"')
                    for at in range(0, len(value), PIECE):
                        self._write(b2a_base64(value[at : at + PIECE], newline=False).decode())
                        yield
                    self._write('"')
                else:
                    self._write(_value(field, value))
        self._write("]}" if top.field is not None else "}")
        del self._open[-1]
        yield


def _varint(buffer: bytearray, at: int, most: int) -> tuple[int, int]:
    """A number at `at`, and the position behind it; -1 if it has not come whole."""
    value = shift = 0
    for place in range(at, min(len(buffer), at + MOST_VARINT)):
        byte = buffer[place]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if place >= most:
                raise Garbled("a field that is longer than its message")
            return value & 2**64 - 1, place + 1
        shift += 7
    if len(buffer) - at >= MOST_VARINT or len(buffer) >= most:
        raise Garbled("a number that does not end")
    return 0, -1
