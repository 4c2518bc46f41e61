"""Finds the watch id and the revision of a WatchResponse with one event, as nearly all have, without parsing.

The same for the watch id of a reply to a create (`granted`).

A result means: behind the header come a watch id and one event and nothing else, each field at most once and in the
order of the field numbers, as every protobuf library writes them. So a parser reads the same in the message. None means
only that the message has to be parsed. The header, the key, the value and the previous pair are skipped by their
lengths, and go on unchanged.
"""

from __future__ import annotations

# Tags of one byte: the number of the field, and its kind: bytes (2) or a number (0).
_HEADER = 1 << 3 | 2
_WATCH_ID = 2 << 3
WATCH_ID = bytes((_WATCH_ID,))
_EVENTS = 11 << 3 | 2
_TYPE = 1 << 3
_KV = 2 << 3 | 2
_PREV_KV = 3 << 3 | 2
_KEY = 1 << 3 | 2
_CREATE_REVISION = 2 << 3
_MOD_REVISION = 3 << 3
_VERSION = 4 << 3
_VALUE = 5 << 3 | 2
_LEASE = 6 << 3

CREATED = bytes((3 << 3, 1))
"""The end of a reply that grants a create."""

_MOST_SHIFT = 56  # of the ninth byte, the last of a number below 2**63


def one_event(body: bytes) -> tuple[int, int, int, int] | None:
    """The watch id, the end of the header, the beginning of the bytes behind the id, and the event's revision."""
    whole = len(body)
    try:
        head = body[1] + 2
        if body[0] != _HEADER or head > 0x81 or body[head] != _WATCH_ID:
            return None
        watch_id = body[head + 1]
        tail = head + 2
        if watch_id > 0x7F:
            watch_id, tail = number(body, head + 1)
        size = body[tail + 1]
        at = tail + 2
        if size > 0x7F:
            size, at = number(body, tail + 1)
        if body[tail] != _EVENTS or at + size != whole:
            return None
        if body[at] == _TYPE:
            if body[at + 1] > 0x7F:
                return None
            at += 2
        size = body[at + 1]
        kv = at + 2
        if size > 0x7F:
            size, kv = number(body, at + 1)
        if body[at] != _KV or body[kv] != _KEY:
            return None
        end = kv + size
        size = body[kv + 1]
        at = kv + 2
        if size > 0x7F:
            size, at = number(body, kv + 1)
        at += size
        if body[at] == _CREATE_REVISION:
            at += 1
            while body[at] > 0x7F:
                at += 1
            at += 1
        if body[at] != _MOD_REVISION:
            return None
        revision, at = number(body, at + 1)
        # No further field may change the meaning.
        if at < end and body[at] == _VERSION:
            at += 1
            while body[at] > 0x7F:
                at += 1
            at += 1
        if at < end and body[at] == _VALUE:
            size, at = number(body, at + 1)
            at += size
        if at < end and body[at] == _LEASE:
            at += 1
            while body[at] > 0x7F:
                at += 1
            at += 1
        if at != end:
            return None
        if end != whole:
            size, at = number(body, end + 1)
            if body[end] != _PREV_KV or at + size != whole:
                return None
    except IndexError:
        return None
    return (watch_id, head, tail, revision) if watch_id and revision else None


def granted(body: bytes) -> tuple[int, int] | None:
    """The watch id, and the end of the header, of a reply that grants a create and has no other field."""
    try:
        head = body[1] + 2
        if body[0] != _HEADER or head > 0x81 or body[head] != _WATCH_ID:
            return None
        watch_id, at = number(body, head + 1)
    except IndexError:
        return None
    return (watch_id, head) if watch_id and body[at:] == CREATED else None


def watch_id_of(begun: bytes) -> int | None:
    """The watch id of a message with these first bytes; None if they have none."""
    try:
        at = begun[1] + 2
        if begun[0] != _HEADER or at > 0x81 or begun[at] != _WATCH_ID:
            return None
        return number(begun, at + 1)[0]
    except IndexError:
        return None


def number(body: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, and the place behind it.

    IndexError for a number that is cut off, has not the shortest form, or is longer than any number.
    """
    value = body[at]
    if value < 0x80:
        return value, at + 1
    byte = body[at + 1]
    value += byte - 1 << 7
    if byte < 0x80:
        if not byte:
            raise IndexError
        return value, at + 2
    byte = body[at + 2]
    value += byte - 1 << 14
    if byte < 0x80:
        if not byte:
            raise IndexError
        return value, at + 3
    shift = 14
    at += 2
    while byte > 0x7F:
        at += 1
        shift += 7
        if shift > _MOST_SHIFT:
            raise IndexError
        byte = body[at]
        value += byte - 1 << shift
    if not byte:
        raise IndexError
    return value, at + 1
