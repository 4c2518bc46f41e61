"""The first key of a request, found in its bytes, for a line of the log.

The message may be of any form, malformed, or cut short: whatever the client has sent, no more than a look at its first
fields is taken, and nothing but a field that holds a key is ever returned.
"""

from __future__ import annotations

from typing import Final

MOST_FIELDS: Final = 16
"""Fields of a message that are looked at. Every library writes the key, or the messages with keys, among the first."""
BEGINNING: Final = 256
"""Bytes of a message that a call keeps for this, if it does not need the message any more."""
_PREFIX: Final = 5
_BYTES: Final = 2
_SIZES: Final = {1: 8, 5: 4}

Way = tuple[int, ...]
"""The numbers of the fields that lead to a key: of messages, and at last of the key."""

_KEY: Final[tuple[Way, ...]] = ((1,),)
_OPERATIONS: Final[tuple[Way, ...]] = ((1, 1), (2, 1), (3, 1))  # the requests of Range, Put, DeleteRange
WAYS: Final[dict[bytes, tuple[Way, ...]]] = {
    b"/etcdserverpb.KV/Range": _KEY,
    b"/etcdserverpb.KV/RangeStream": _KEY,
    b"/etcdserverpb.KV/Put": _KEY,
    b"/etcdserverpb.KV/DeleteRange": _KEY,
    b"/etcdserverpb.KV/Txn": ((1, 3), *((branch, *way) for branch in (2, 3) for way in _OPERATIONS)),
    b"/v3lockpb.Lock/Lock": _KEY,
    b"/v3lockpb.Lock/Unlock": _KEY,
    b"/v3electionpb.Election/Campaign": _KEY,
    b"/v3electionpb.Election/Leader": _KEY,
    b"/v3electionpb.Election/Proclaim": ((1, 1),),
    b"/v3electionpb.Election/Resign": ((1, 1),),
}
"""By path, where the first key may be: that of a compare goes before those of operations."""


def first_key(path: bytes, message: bytes, most: int) -> tuple[bytes, bool]:
    """The first key of a request, at most so many bytes of it, and whether it is longer.

    `message` is a gRPC message with its prefix, or its beginning. b"" if there is no key: for other RPCs, in a
    compressed message, or where none is found.
    """
    if message[:1] == b"\0":
        for way in WAYS.get(path, ()):
            found = _follow(message, way)
            if found is not None:
                start, end = found
                return message[start : min(end, start + most)], end - start > most
    return b"", False


def _follow(message: bytes, way: Way) -> tuple[int, int] | None:
    """Where the key begins and ends that a way leads to; None if it leads to none."""
    start, end = _PREFIX, len(message)
    for number in way:
        found = _field(message, start, end, number)
        if found is None:
            return None
        start, end = found
    return start, end


def _field(message: bytes, place: int, end: int, number: int) -> tuple[int, int] | None:
    """Where the first field of bytes with this number begins and ends, among the first fields of a message."""
    try:
        for _ in range(MOST_FIELDS):
            if place >= end:
                return None
            tag, place = _number(message, place)
            kind = tag & 7
            if kind == _BYTES:
                size, place = _number(message, place)
                if tag >> 3 == number:
                    return place, place + size
                place += size
            elif kind == 0:
                _, place = _number(message, place)
            elif kind in _SIZES:
                place += _SIZES[kind]
            else:
                return None
    except IndexError:  # cut short
        pass
    return None


def _number(message: bytes, place: int) -> tuple[int, int]:
    """A number in protobuf's encoding, and the place behind it; a number of more than 64 bits ends the look."""
    value = 0
    for shift in range(0, 64, 7):
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise IndexError
