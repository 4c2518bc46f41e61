"""The changes to messages in a namespace, field by field.

A `Form` is made of a message's descriptor. Fields that esp does not know are left out, because they may hold keys: so a
peer sees what it would see if the other were an etcd of esp's generation.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError

from esp.core.namespace import Namespace
from esp.core.pb import kv_pb2
from esp.core.services.namespace.fields import CONTAINED, KEYS, Kind, field_tag, holds_keys, message_in
from esp.core.varint import varint

_MOST_SHIFT: Final = 63
"""The shift of the last byte of a number."""
_KEY_TAG: Final = 0x0A
_VALUE_TAG: Final = 0x2A

Leaf = Callable[[bytes], bytes | None]
"""The new content of a field; None leaves the field out."""


class Malformed(Exception):
    """The bytes are no such message, or in a form that no protobuf library writes."""


class Outside(Exception):
    """An answer holds a key that is not in the namespace."""


class Form:
    """The changes to the fields of a message.

    Attributes:
        actions: by tag: a `Form` of the message inside, a function for its content, or None to copy it. A field without
            an entry is left out.
        needed: the tag of the field that must not be missing; 0 if there is none.
        default: the whole field that takes its place.
        is_flat: the keys are all in fields of this message, or of its rows.
    """

    __slots__ = ("actions", "default", "is_flat", "needed")

    def __init__(self) -> None:
        self.actions: dict[int, Form | Leaf | None] = {}
        self.needed = 0
        self.default = b""
        self.is_flat = True


class Forms:
    """The forms of requests, which get the prefix, or of answers, which lose it."""

    def __init__(self, leaves: dict[Kind, Leaf], defaults: dict[Kind, bytes]) -> None:
        """`leaves` rewrite the fields of each kind; `defaults` are the contents of fields that must not be missing."""
        self._leaves = leaves
        self._defaults = defaults
        self._made: dict[str, Form] = {}

    @classmethod
    def of_requests(cls, namespace: Namespace) -> Forms:
        """The forms of requests."""
        prefix, first = namespace.prefix, namespace.prefix + b"\0"

        def span_key(key: bytes) -> bytes:
            return prefix + key if key else first

        def name(name: bytes) -> bytes:
            return prefix + name

        leaves: dict[Kind, Leaf] = {
            Kind.KEY: namespace.key,
            Kind.SPAN_KEY: span_key,
            Kind.RANGE_END: namespace.range_end,
            Kind.NAME: name,
        }
        return cls(leaves, {Kind.SPAN_KEY: first, Kind.NAME: prefix})

    @classmethod
    def of_answers(cls, namespace: Namespace) -> Forms:
        """The forms of answers."""
        size = len(namespace.prefix)

        def key(key: bytes) -> bytes:
            stripped = namespace.stripped(key)
            if stripped is None and key:
                raise Outside
            return stripped or b""

        def name(name: bytes) -> bytes:
            if not name.startswith(namespace.prefix) and name:
                raise Outside
            return name[size:]

        leaves: dict[Kind, Leaf] = {
            Kind.KEY: key,
            Kind.NAME: name,
            Kind.ANY_KEY: namespace.stripped,
            Kind.ROW: Row(namespace, key),
        }
        return cls(leaves, {})

    def form(self, message: Descriptor) -> Form:
        """The form of a message."""
        form = self._made.get(message.full_name)
        if form is None:
            form = self._made[message.full_name] = Form()
            for field in message.fields:
                self._add(form, field)
        return form

    def _add(self, form: Form, field: FieldDescriptor) -> None:
        inner = message_in(field)
        kind = KEYS.get(field.full_name) if inner is None or inner.full_name != CONTAINED else Kind.ROW
        tag = field_tag(field)
        if kind is not None:
            form.actions[tag] = self._leaves[kind]
            if (content := self._defaults.get(kind)) is not None:
                form.needed = tag
                form.default = varint(tag) + varint(len(content)) + content
        elif inner is not None and holds_keys(inner):
            form.actions[tag] = self.form(inner)
            form.is_flat = False
        else:
            form.actions[tag] = None
            if field.is_repeated:
                form.actions[field_tag(field, 2)] = None  # many numbers in one field


class Row:
    """The content of a KeyValue without the prefix of its key.

    The usual form is that of every protobuf library: each field at most once, in the order of the numbers. Any other is
    parsed and written anew.
    """

    _NUMBERS: Final = re.compile(rb"(?:[\x10\x18\x20][\x80-\xff]{0,9}[\x00-\x7f])*")
    _LEASE: Final = re.compile(rb"(?:\x30[\x80-\xff]{0,9}[\x00-\x7f])?")

    def __init__(self, namespace: Namespace, strip: Leaf) -> None:
        self._prefix = namespace.prefix
        self._size = len(namespace.prefix)
        self._strip = strip

    def __call__(self, row: bytes) -> bytes:
        """The row's content without the prefix of its key."""
        try:
            if row[0] == _KEY_TAG:
                size, start = number(row, 1)
                after = start + size
                if size > self._size and row.startswith(self._prefix, start) and self._is_usual(row, after):
                    return b"".join((b"\x0a", varint(size - self._size), row[start + self._size :]))
        except IndexError:  # it is empty, or ends too soon
            pass
        return self._anew(row)

    def _is_usual(self, row: bytes, position: int) -> bool:
        """Whether only the other fields of a KeyValue come, each once, from `position` on."""
        numbers = self._NUMBERS.match(row, position)
        assert numbers is not None, "it matches nothing at least"
        position = numbers.end()
        if position < len(row) and row[position] == _VALUE_TAG:
            size, start = number(row, position + 1)
            position = start + size
        return position == len(row) or self._LEASE.fullmatch(row, position) is not None

    def _anew(self, row: bytes) -> bytes:
        try:
            parsed = kv_pb2.KeyValue.FromString(row)
        except DecodeError:
            raise Malformed from None
        parsed.DiscardUnknownFields()
        parsed.key = self._strip(parsed.key) or b""
        return parsed.SerializeToString()


def number(data: bytes, position: int) -> tuple[int, int]:
    """The number at `position`, and the position behind it.

    Raises:
        IndexError: the number is not there as a whole.
        Malformed: it is longer than a number can be.
    """
    byte = data[position]
    if byte < 0x80:
        return byte, position + 1
    value = byte & 0x7F
    shift = 7
    while True:
        position += 1
        byte = data[position]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position + 1
        if shift == _MOST_SHIFT:
            raise Malformed
        shift += 7
