"""A JSON value as a message in bytes, as Go's protojson reads it with `DiscardUnknown`; refusals have its words.

There are two ways. Nearly all requests are small and plain, and Python's own scanner reads them in C (`_plain`). A
value that is large or in any way unusual is read by `read`, token by token, so that the work can be divided. `read`
decides, and finds the words for a refusal; `_plain` gives up where the two might differ.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator
from typing import Any, Final

from esp.core.gateway.fields import (
    MAX_DIGITS,
    NotOfTheKind,
    Written,
    bounded,
    delimited,
    from_base64,
    from_text,
    joined,
    listed,
    scalar,
    whole_number,
)
from esp.core.gateway.shapes import BOUNDS, Field, Kind, Shape
from esp.core.wire.message import quote

SMALL: Final = 16384
"""Bytes of a value that is read at once: less than a millisecond, whatever stands in it."""
MAX_DEPTH: Final = 100
"""The deepest nesting of messages; protobuf's own bound when it reads bytes. Go's is 10000."""
TOKENS: Final = 100
"""Tokens that are read in a step."""
SHOWN: Final = 1024
"""The most bytes of a value that a refusal shows."""

_BLANK: Final = " \t\r\n"
_BLANKS: Final = re.compile(rb"[ \t\r\n]*")
_STRING: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_WORD: Final = re.compile(rb'[{}\[\],:]|[^\s{}\[\],:"]+')
_WHOLE: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,18})")
_LONE: Final = re.compile(r"[\ud800-\udfff]")
_ESCAPE: Final = re.compile(rb"\\(?:u[0-9a-fA-F]{4}|.)", re.DOTALL)
_SECOND_HALF: Final = re.compile(rb"\\u[dD][c-fC-F][0-9a-fA-F]{2}")

_QUOTE, _BACKSLASH = b'"\\'

Steps = Generator[None, None, Any]


class NotTheMessage(Exception):
    """A JSON value that is not the wanted message; the text is Go's."""

    def __init__(self, text: str) -> None:
        super().__init__(f"proto: {text}")


class _Unusual(Exception):
    """A value that `_plain` leaves to `read`."""


def read_small(shape: Shape, value: bytes) -> bytes | None:
    """The message in a JSON value; None if the value is for `read`."""
    if len(value) > SMALL or b"\\u" in value:
        return None
    try:
        text = value.decode().strip(_BLANK)
        decoded, end = _scan(text, 0)
        return _plain(shape, decoded) if end == len(text) else None
    except (_Unusual, NotOfTheKind, ValueError, StopIteration, RecursionError, OverflowError):
        return None


# The plain way.


def _refuse(_: str) -> Any:
    raise _Unusual


_scan: Final[Callable[[str, int], tuple[Any, int]]] = json.JSONDecoder(
    object_pairs_hook=tuple, parse_float=_refuse, parse_constant=_refuse
).scan_once  # type: ignore[attr-defined]
"""The value at a place in a text, and the place behind it. Objects become tuples of pairs, so that repeated names are
seen."""


def _plain(shape: Shape, value: Any) -> bytes:
    if type(value) is not tuple:
        raise _Unusual
    written: list[Written] = []
    seen = set()
    for name, inner in value:
        field = shape.by_name.get(name)
        if field is None:
            continue
        mark = field.oneof or field.number
        if mark in seen:
            raise _Unusual
        seen.add(mark)
        if inner is None:
            if field.oneof:
                raise _Unusual
            continue
        if field.repeated:
            data = _plain_list(field, inner)
        elif field.kind is Kind.BYTES and type(inner) is str:  # nearly always
            content = from_base64(inner)
            data = delimited(field, content) if content or field.oneof else b""
        elif field.kind is Kind.MESSAGE:
            assert field.shape is not None
            data = delimited(field, _plain(field.shape, inner))
        else:
            data = scalar(field, _plain_scalar(field, inner))
        if data:
            written.append((field.number, data))
    return joined(written)


def _plain_list(field: Field, value: Any) -> bytes:
    if type(value) is not list:
        raise _Unusual
    if field.kind is Kind.MESSAGE:
        assert field.shape is not None
        shape = field.shape
        return b"".join([delimited(field, _plain(shape, inner)) for inner in value])
    return listed(field, [_plain_scalar(field, inner) for inner in value])


def _plain_scalar(field: Field, value: Any) -> Any:
    kind = field.kind
    if kind is Kind.BYTES:
        if type(value) is str:
            return from_base64(value)
    elif kind is Kind.STRING:
        if type(value) is str:
            return value.encode()
    elif kind is Kind.BOOL:
        if type(value) is bool:
            return value
    elif kind is Kind.ENUM:
        if type(value) is str:
            return field.names.get(value)
        if type(value) is int:
            return bounded(kind, value)
    elif type(value) is int:
        return bounded(kind, value)
    elif type(value) is str and _WHOLE.fullmatch(value):
        return bounded(kind, int(value))
    raise _Unusual


# The thorough way.


def read(shape: Shape, value: bytes) -> Generator[None, None, bytes]:
    """The message in a JSON value, which is valid JSON; in steps of `TOKENS` tokens.

    Raises:
        NotTheMessage: the value is not that message.
    """
    message: bytes = yield from _Reader(value).message(shape, 1)
    return message


class _Reader:
    """Reads a value token by token. A token is its first and last position."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        self._count = 0

    def _next(self) -> tuple[int, int]:
        data, start = self._data, self._begin()
        self._count += 1
        if data[start] == _QUOTE:
            end = data.index(_QUOTE, start + 1) + 1
            if data.find(_BACKSLASH, start, end) >= 0:
                string = _STRING.match(data, start)
                assert string is not None
                end = string.end()
        else:
            word = _WORD.match(data, start)
            assert word is not None, "the value is valid JSON"
            end = word.end()
        self._at = end
        return start, end

    def _begin(self) -> int:
        """Where the next token begins."""
        blanks = _BLANKS.match(self._data, self._at)
        assert blanks is not None
        self._at = blanks.end()
        return self._at

    def _peek(self) -> int:
        """The next token's first byte."""
        return self._data[self._begin()]

    def _skip(self, wanted: bytes) -> bool:
        """Skips the next token if it is `wanted`, a comma or a bracket."""
        if self._peek() != wanted[0]:
            return False
        self._next()
        return True

    # Faults.

    def _where(self, at: int) -> str:
        before = self._data[:at]
        line = before.count(b"\n") + 1
        column = len(before[before.rfind(b"\n") + 1 :].decode("utf-8", "surrogateescape")) + 1
        return f"(line {line}:{column})"

    def _raw(self, token: tuple[int, int]) -> str:
        start, end = token
        if end - start > SHOWN:
            return self._data[start : start + SHOWN].decode("utf-8", "replace") + "..."
        return self._data[start:end].decode("utf-8", "replace")

    def _unexpected(self, token: tuple[int, int]) -> NotTheMessage:
        return self._syntax(token[0], f"unexpected token {self._raw(token)}")

    def _syntax(self, at: int, text: str) -> NotTheMessage:
        return NotTheMessage(f"syntax error {self._where(at)}: {text}")

    def _fault(self, token: tuple[int, int], text: str) -> NotTheMessage:
        return NotTheMessage(f"{self._where(token[0])}: {text}")

    # Values.

    def message(self, shape: Shape, depth: int) -> Steps:
        """The next value, as a message."""
        if depth > MAX_DEPTH:
            raise NotTheMessage("exceeded max recursion depth")
        data = self._data
        token = self._next()
        if data[token[0]] != 0x7B:
            if data[token[0]] == 0x22:
                self._text(token)
            raise self._unexpected(token)
        written: list[Written] = []
        seen: set[int] = set()
        oneofs: set[str] = set()
        if self._skip(b"}"):
            return b""
        while True:
            if self._count > TOKENS:
                self._count = 0
                yield
            token = self._next()
            field = shape.by_name.get(self._text(token))
            self._next()  # the colon
            if field is None:
                yield from self._ignore()
            else:
                if field.number in seen:
                    raise self._fault(token, f"duplicate field {self._raw(token)}")
                seen.add(field.number)
                if self._peek() == 0x6E:
                    self._next()
                else:
                    if field.oneof and not field.repeated:
                        if field.oneof in oneofs:
                            text = f"error parsing {self._raw(token)}, oneof {field.oneof} is already set"
                            raise self._fault(token, text)
                        oneofs.add(field.oneof)
                    value = yield from self._field(field, depth)
                    if value:
                        written.append((field.number, value))
            if self._skip(b"}"):
                return joined(written)
            self._next()  # the comma

    def _field(self, field: Field, depth: int) -> Steps:
        if not field.repeated:
            if field.kind is Kind.MESSAGE:
                inner = yield from self.message(_shape(field), depth + 1)
                return delimited(field, inner)
            return scalar(field, self._value(field))
        token = self._next()
        if self._data[token[0]] != 0x5B:
            if self._data[token[0]] == 0x22:
                self._text(token)
            raise self._unexpected(token)
        values: list[Any] = []
        while not self._skip(b"]"):
            if values:
                self._next()  # the comma
            if field.kind is Kind.MESSAGE:
                inner = yield from self.message(_shape(field), depth + 1)
                values.append(delimited(field, inner))
            else:
                values.append(self._value(field))
            if self._count > TOKENS:
                self._count = 0
                yield
        return b"".join(values) if field.kind is Kind.MESSAGE else listed(field, values)

    def _ignore(self) -> Steps:
        """Skips a value; its strings have to be valid all the same."""
        depth = 0
        while True:
            token = self._next()
            first = self._data[token[0]]
            if first == 0x22:
                self._text(token)
            elif first in b"{[":
                depth += 1
            elif first in b"}]":
                depth -= 1
            if not depth:
                return
            if self._count > TOKENS:
                self._count = 0
                yield

    def _value(self, field: Field) -> Any:
        """The next token as a value of a field that is no message."""
        token = self._next()
        first = self._data[token[0]]
        text = self._text(token) if first == 0x22 else None
        try:
            return from_text(field, text) if text is not None else self._from_word(field, token)
        except NotOfTheKind:
            name = field.kind.name.lower()
            text = f"invalid value for {name} field {field.json_name}: {self._raw(token)}"
            raise self._fault(token, text) from None

    def _from_word(self, field: Field, token: tuple[int, int]) -> Any:
        word = self._data[token[0] : token[1]]
        if field.kind is Kind.BOOL and word in (b"true", b"false"):
            return word == b"true"
        if field.kind in BOUNDS and word[:1] in b"-0123456789":
            return whole_number(field.kind, word[: MAX_DIGITS + 1].decode())
        raise NotOfTheKind

    def _text(self, token: tuple[int, int]) -> str:
        """The text of a string."""
        start, end = token
        raw = self._data[start:end]
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            raise self._syntax(start, "invalid UTF-8 in string") from None
        if "\\" not in text:
            return text[1:-1]
        plain: str = json.loads(text)
        if _LONE.search(plain):
            rest = _lone_escape(self._data, start)
            if len(rest) < 6:
                raise NotTheMessage("unexpected EOF")
            raise self._syntax(start, f"invalid escape code {quote(rest)} in string")
        return plain


def _shape(field: Field) -> Shape:
    assert field.shape is not None
    return field.shape


def _lone_escape(data: bytes, start: int) -> bytes:
    """The six bytes behind the first half of a pair that has no other half, in the string that begins at `start`."""
    at = start
    while (found := _ESCAPE.search(data, at)) is not None:
        at = found.end()
        code = found.group()
        if code[1:2] != b"u" or not 0xD800 <= int(code[2:], 16) <= 0xDFFF:
            continue
        rest = data[at : at + 6]
        if int(code[2:], 16) >= 0xDC00 or _SECOND_HALF.fullmatch(rest) is None:
            return rest
        at += 6
    return b""
