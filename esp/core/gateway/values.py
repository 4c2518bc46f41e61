"""Cuts a body into JSON values, as Go's encoding/json does; what that refuses is refused in its words."""

from __future__ import annotations

import re
from typing import Final

from esp.core.wire.message import quote

MAX_DEPTH: Final = 10_000
"""The deepest nesting that encoding/json reads."""
MAX_ESCAPES: Final = 100_000
"""The most escapes in a string: a string is read in one step, and an escape takes as long as some hundred bytes."""

_BLANKS: Final = re.compile(rb"[ \t\r\n]*")
_PLAIN: Final = re.compile(rb'[^"\\\x00-\x1f]*')
_DIGITS: Final = re.compile(rb"[0-9]*")
_HEX: Final = frozenset(b"0123456789abcdefABCDEF")
_LITERALS: Final = {0x74: b"true", 0x66: b"false", 0x6E: b"null"}
_OBJECT, _ARRAY, _QUOTE, _BACKSLASH = b'{["\\'
_END: Final = {_OBJECT: 0x7D, _ARRAY: 0x5D}

# What may come next. In a literal or a number, its beginning has come.
_VALUE, _VALUE_OR_END, _KEY, _KEY_OR_END, _COLON, _AFTER, _STRING, _ESCAPE, _LITERAL = range(9)
_MINUS, _ZERO, _INTEGER, _POINT, _FRACTION, _E, _SIGN, _EXPONENT = range(9, 17)
_BEHIND: Final = {
    _VALUE: "looking for beginning of value",
    _VALUE_OR_END: "looking for beginning of value",
    _KEY: "looking for beginning of object key string",
    _KEY_OR_END: "looking for beginning of object key string",
    _COLON: "after object key",
    _STRING: "in string literal",
    _ESCAPE: "in string escape code",
    _MINUS: "in numeric literal",
    _POINT: "after decimal point in numeric literal",
    _E: "in exponent of numeric literal",
    _SIGN: "in exponent of numeric literal",
}
_ENDS_NUMBER: Final = frozenset((_ZERO, _INTEGER, _FRACTION, _EXPONENT))


class NotJson(Exception):
    """A body that is no JSON; the text is Go's, or begins with `esp:`."""


class Values:
    """The JSON values of a body that comes in pieces.

    Attributes:
        held: the bytes that have come and are in no value yet.
    """

    __slots__ = ("_at", "_buffer", "_escapes", "_in_key", "_left", "_stack", "_state")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._at = 0  # the bytes before were looked at
        self._state = _VALUE
        self._stack = bytearray()
        self._in_key = False
        self._escapes = 0  # in this string
        self._left = b""  # of a literal, or of an escape

    @property
    def held(self) -> int:
        """The bytes that have come and are in no value yet."""
        return len(self._buffer)

    def feed(self, data: bytes) -> None:
        """Takes the next piece."""
        self._buffer += data

    def next(self, most: int) -> tuple[bytes | None, bool]:
        """The next value, and whether there may be more in the bytes that have come; looks at `most` tokens at most.

        Raises:
            NotJson: the bytes are no JSON.
        """
        for _ in range(most):
            if self._at >= len(self._buffer):
                return None, False
            if self._step():
                return self._take(), bool(self._buffer)
        return None, True

    def end(self) -> bytes | None:
        """The body has ended, and `next` has no more: the last value if it is a number, None if there is none.

        Raises:
            NotJson: the last value is incomplete.
        """
        if self._state in _ENDS_NUMBER and not self._stack:
            return self._take()
        if self._buffer:
            raise NotJson("unexpected EOF")
        return None

    def _take(self) -> bytes:
        value = bytes(self._buffer[: self._at])
        del self._buffer[: self._at]
        self._at = 0
        self._state = _VALUE
        return value

    def _step(self) -> bool:
        """Looks at a token, or a part of one; True if a value ends with it."""
        buffer, state = self._buffer, self._state
        if state == _STRING:
            return self._string()
        if state == _LITERAL:
            return self._literal()
        if state >= _MINUS:
            return self._number()
        if state == _ESCAPE:
            return self._escape()
        blanks = _BLANKS.match(buffer, self._at)
        assert blanks is not None
        at = self._at = blanks.end()
        if not self._stack and state == _VALUE and at:
            del buffer[:at]  # a value begins with its first byte
            at = self._at = 0
        if at >= len(buffer):
            return False
        byte = buffer[at]
        if state in (_VALUE, _VALUE_OR_END):
            return self._value(byte)
        self._at = at + 1
        if state in (_KEY, _KEY_OR_END):
            if byte == _QUOTE:
                self._state, self._in_key = _STRING, True
                return False
            if byte == _END[_OBJECT] and state == _KEY_OR_END:
                return self._close()
        elif state == _COLON:
            if byte == 0x3A:
                self._state = _VALUE
                return False
        else:
            inner = self._stack[-1]
            if byte == 0x2C:
                self._state = _KEY if inner == _OBJECT else _VALUE
                return False
            if byte == _END[inner]:
                return self._close()
            raise _fault(byte, "after object key:value pair" if inner == _OBJECT else "after array element")
        raise _fault(byte, _BEHIND[state])

    def _value(self, byte: int) -> bool:
        state = self._state
        self._at += 1
        if byte == _QUOTE:
            self._state, self._in_key = _STRING, False
        elif byte in (_OBJECT, _ARRAY):
            self._stack.append(byte)
            if len(self._stack) > MAX_DEPTH:
                raise _fault(byte, "exceeded max depth")
            self._state = _KEY_OR_END if byte == _OBJECT else _VALUE_OR_END
        elif byte in _LITERALS:
            self._state, self._left = _LITERAL, _LITERALS[byte]
            self._left = self._left[1:]
        elif 0x30 <= byte <= 0x39 or byte == 0x2D:
            self._state = _MINUS if byte == 0x2D else _ZERO if byte == 0x30 else _INTEGER
        elif byte == _END[_ARRAY] and state == _VALUE_OR_END:
            return self._close()
        else:
            raise _fault(byte, _BEHIND[state])
        return False

    def _close(self) -> bool:
        del self._stack[-1]
        return self._ended()

    def _ended(self) -> bool:
        self._state = _AFTER
        return not self._stack

    def _string(self) -> bool:
        plain = _PLAIN.match(self._buffer, self._at)
        assert plain is not None
        at = self._at = plain.end()
        if at >= len(self._buffer):
            return False
        byte = self._buffer[at]
        self._at = at + 1
        if byte == _QUOTE:
            self._escapes = 0
            if self._in_key:
                self._state = _COLON
                return False
            return self._ended()
        if byte != _BACKSLASH:
            raise _fault(byte, _BEHIND[_STRING])
        self._state, self._left = _ESCAPE, b""
        self._escapes += 1
        if self._escapes > MAX_ESCAPES:
            raise NotJson(f"esp: more than {MAX_ESCAPES} escapes in a string")
        return False

    def _escape(self) -> bool:
        """The rest of an escape: a character, or u and four digits."""
        byte = self._buffer[self._at]
        self._at += 1
        if not self._left:
            if byte == 0x75:
                self._left = b"4"
            elif byte in b'bfnrt\\/"':
                self._state = _STRING
            else:
                raise _fault(byte, _BEHIND[_ESCAPE])
        elif byte not in _HEX:
            raise _fault(byte, "in \\u hexadecimal character escape")
        elif self._left == b"1":
            self._state = _STRING
        else:
            self._left = bytes((self._left[0] - 1,))
        return False

    def _literal(self) -> bool:
        wanted = self._left
        got = bytes(self._buffer[self._at : self._at + len(wanted)])
        for place, byte in enumerate(got):
            if byte != wanted[place]:
                known = next(word for word in _LITERALS.values() if word.endswith(wanted))
                raise _fault(byte, f"in literal {known.decode()} (expecting {chr(wanted[place])!r})")
        self._at += len(got)
        self._left = wanted[len(got) :]
        return not self._left and self._ended()

    def _number(self) -> bool:
        """The next part of a number; a number ends in front of the first byte that is none of its own."""
        state = self._state
        if state in (_INTEGER, _FRACTION, _EXPONENT):
            digits = _DIGITS.match(self._buffer, self._at)
            assert digits is not None
            self._at = digits.end()
            if self._at >= len(self._buffer):
                return False
        byte = self._buffer[self._at]
        is_digit = 0x30 <= byte <= 0x39
        if state == _MINUS and is_digit:
            self._state = _ZERO if byte == 0x30 else _INTEGER
        elif state == _POINT and is_digit:
            self._state = _FRACTION
        elif state in (_E, _SIGN) and is_digit:
            self._state = _EXPONENT
        elif state == _E and byte in b"+-":
            self._state = _SIGN
        elif state in (_ZERO, _INTEGER) and byte == 0x2E:
            self._state = _POINT
        elif state in (_ZERO, _INTEGER, _FRACTION) and byte in b"eE":
            self._state = _E
        elif state in _ENDS_NUMBER:
            return self._ended()
        else:
            raise _fault(byte, _BEHIND[state])
        self._at += 1
        return False


def _fault(byte: int, where: str) -> NotJson:
    character = chr(byte)
    if character == "'":
        shown = "'\\''"
    elif character == '"':
        shown = "'\"'"
    else:
        shown = "'" + quote(character.encode())[1:-1] + "'"
    return NotJson(f"invalid character {shown} {where}")
