"""Values of fields: from the strings and numbers of JSON, as Go's protojson takes them, and as fields in bytes."""

from __future__ import annotations

import re
from binascii import a2b_base64
from typing import Any, Final

from esp.core.gateway.shapes import BOUNDS, Field, Kind
from esp.core.varint import varint

MAX_DIGITS: Final = 1000
"""The most characters of a number."""

_NUMBER: Final = re.compile(r"(-?)(0|[1-9][0-9]*)(?:\.([0-9]+))?(?:[eE]([+-]?[0-9]+))?")
_STANDARD: Final = re.compile(r"[A-Za-z0-9+/]*(={0,2})")
_FROM_URL: Final = str.maketrans("-_+/", "+/??")
_MOST_DIGITS: Final = 20

Written = tuple[int, bytes]
"""A field's number, and the field in bytes."""


class NotOfTheKind(Exception):
    """A value of JSON that is none of a field's kind."""


# From JSON. Each raises `NotOfTheKind`.


def bounded(kind: Kind, number: int) -> int:
    """The number, if it lies within the bounds of its kind."""
    low, high = BOUNDS[kind]
    if not low <= number <= high:
        raise NotOfTheKind
    return number


def from_text(field: Field, text: str) -> Any:
    """A string's text as a value; None for an unknown name of an enum."""
    kind = field.kind
    if kind is Kind.STRING:
        return text.encode()
    if kind is Kind.BYTES:
        return from_base64(text)
    if kind is Kind.ENUM:
        return field.names.get(text)
    if kind is Kind.BOOL:
        raise NotOfTheKind
    return whole_number(kind, text)


def whole_number(kind: Kind, text: str) -> int:
    """A whole number, however it is written."""
    parts = _NUMBER.fullmatch(text) if len(text) <= MAX_DIGITS else None
    if parts is None:
        raise NotOfTheKind
    sign, whole, fraction, power = parts.groups("")
    whole, fraction = "" if whole == "0" else whole, fraction.rstrip("0")
    digits = "0"
    if whole or fraction:
        if len(power) > _MOST_DIGITS and power.lstrip("+-0"):
            raise NotOfTheKind
        exponent = int(power or "0")
        if not -(2**31) <= exponent < 2**31 or len(fraction) > max(exponent, 0):
            raise NotOfTheKind
        if exponent >= 0:
            if len(whole) + exponent > _MOST_DIGITS:
                raise NotOfTheKind
            digits = (whole + fraction).ljust(len(whole) + exponent, "0")
        else:
            place = len(whole) + exponent
            if place < 0 or whole[place:].strip("0"):
                raise NotOfTheKind
            digits = whole[:place]
    if not digits or len(digits) > _MOST_DIGITS:
        raise NotOfTheKind
    return bounded(kind, int(sign + digits))


def from_base64(text: str) -> bytes:
    """Bytes in base64, in either alphabet, padded or not."""
    try:
        return a2b_base64(text, strict_mode=True)  # nearly all
    except ValueError:
        pass
    padded = not len(text) % 4
    if "-" in text or "_" in text:
        text = text.translate(_FROM_URL)
    if "\n" in text or "\r" in text:
        text = text.replace("\n", "").replace("\r", "")
    found = _STANDARD.fullmatch(text)
    if found is None or (found.group(1) and not padded) or len(text) % 4 == 1 or (padded and len(text) % 4):
        raise NotOfTheKind
    return a2b_base64(text + "=" * (-len(text) % 4))


# Fields in bytes. A value of None is an enum's unknown name, which is left out.


def delimited(field: Field, data: bytes) -> bytes:
    """A value that has its length in front of it."""
    return field.tag + varint(len(data)) + data


def scalar(field: Field, value: Any) -> bytes:
    """The value of a field that is neither repeated nor a message; nothing for zero, as every library writes it."""
    if value is None or (not value and not field.oneof):
        return b""
    if field.kind in (Kind.BYTES, Kind.STRING):
        return delimited(field, value)
    return field.tag + varint(value)


def listed(field: Field, values: list[Any]) -> bytes:
    """The values of a repeated field that is no message."""
    values = [value for value in values if value is not None]
    if field.kind in (Kind.BYTES, Kind.STRING):
        return b"".join([delimited(field, value) for value in values])
    return delimited(field, b"".join(map(varint, values))) if values else b""


def joined(written: list[Written]) -> bytes:
    """The fields in the order of their numbers, as every library writes them."""
    if len(written) == 1:
        return written[0][1]
    written.sort()
    return b"".join([data for _, data in written])
