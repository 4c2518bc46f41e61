"""The shapes of messages: what reading and printing need to know of each type, made once from its descriptor."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from operator import attrgetter
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from esp.core.varint import varint


class Kind(IntEnum):
    """The kinds of fields that messages of etcd's API have; the names are those of Go's error texts."""

    INT64 = FieldDescriptor.TYPE_INT64
    UINT64 = FieldDescriptor.TYPE_UINT64
    UINT32 = FieldDescriptor.TYPE_UINT32
    BOOL = FieldDescriptor.TYPE_BOOL
    ENUM = FieldDescriptor.TYPE_ENUM
    STRING = FieldDescriptor.TYPE_STRING
    BYTES = FieldDescriptor.TYPE_BYTES
    MESSAGE = FieldDescriptor.TYPE_MESSAGE


DELIMITED: Final = frozenset((Kind.STRING, Kind.BYTES, Kind.MESSAGE))
"""Kinds that have a length in front of them in bytes."""
BOUNDS: Final = {
    Kind.INT64: (-(2**63), 2**63 - 1),
    Kind.UINT64: (0, 2**64 - 1),
    Kind.UINT32: (0, 2**32 - 1),
    Kind.ENUM: (-(2**31), 2**31 - 1),
}
"""The lowest and the highest number of each kind of number."""


class Field:
    """A field.

    Attributes:
        number, name, json_name, repeated: as in the proto.
        kind: the kind of its values.
        tag: the tag in front of each value; of a repeated number, in front of all of them.
        oneof: the full name of the oneof that the field is in, "" for none. In there, zero is a value like any other.
        names, numbers: of an enum, the number of each name, and the name of each number.
        shape: of a message.
        whole: of a whole number of 64 bits, how it is printed with its name, for `%`; "" of other fields.
    """

    __slots__ = (
        "json_name",
        "kind",
        "name",
        "names",
        "number",
        "numbers",
        "oneof",
        "repeated",
        "shape",
        "tag",
        "whole",
    )

    def __init__(self, field: FieldDescriptor) -> None:
        self.number: int = field.number
        self.name: str = field.name
        self.json_name: str = field.json_name
        self.kind = Kind(field.type)
        self.repeated: bool = field.is_repeated
        self.tag = varint(field.number << 3 | (2 if self.repeated or self.kind in DELIMITED else 0))
        self.oneof: str = field.containing_oneof.full_name if field.containing_oneof else ""
        self.names: dict[str, int] = {}
        self.numbers: dict[int, str] = {}
        if field.enum_type is not None:
            self.names = {value.name: value.number for value in field.enum_type.values}
            self.numbers = {value.number: value.name for value in field.enum_type.values}
        self.shape: Shape | None = None
        is_whole = not self.repeated and self.kind in (Kind.INT64, Kind.UINT64)
        self.whole = f'"{field.name}":"%d"' if is_whole else ""


class Shape:
    """A type of message.

    Attributes:
        message: the class of parsed messages.
        by_name: the fields by either of their names.
        by_number: the fields.
        numbers: gives the values of all fields; None if not all of them are whole numbers of 64 bits, as those of the
            header that every answer has are.
        all_numbers: how such a message is printed if none of its fields is 0, for `%`.
    """

    __slots__ = ("all_numbers", "by_name", "by_number", "message", "numbers")

    def __init__(self, descriptor: Descriptor) -> None:
        self.message: type[Message] = GetMessageClass(descriptor)
        fields = [Field(field) for field in descriptor.fields]
        self.by_number: dict[int, Field] = {field.number: field for field in fields}
        self.by_name: dict[str, Field] = {field.name: field for field in fields}
        self.by_name |= {field.json_name: field for field in fields}
        self.numbers: Callable[[Message], tuple[int, ...]] | None = None
        self.all_numbers = ""
        if len(fields) > 1 and all(field.whole and not field.oneof for field in fields):
            fields.sort(key=lambda field: field.number)
            self.numbers = attrgetter(*[field.name for field in fields])
            self.all_numbers = f"{{{','.join([field.whole for field in fields])}}}"


_SHAPES: dict[str, Shape] = {}


def shape_of(descriptor: Any) -> Shape:
    """The shape of a type of message, and of the types inside it; these may contain one another."""
    known = _SHAPES.get(descriptor.full_name)
    if known is not None:
        return known
    shape = _SHAPES[descriptor.full_name] = Shape(descriptor)
    for field in descriptor.fields:
        if field.message_type is not None:
            shape.by_number[field.number].shape = shape_of(field.message_type)
    return shape
