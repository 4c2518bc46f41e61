"""Finds the keys of a request in its bytes, without parsing, for the fast path.

A result means: protobuf would parse the message, with this key (and range end), and the message has the form that every
protobuf library writes. In this form each field comes at most once, in the order of the field numbers; numbers have
their shortest form; no field is unknown, and no byte is missing or left over. So every parser reads the same in the
message, and its bytes may go to a shard unchanged. None means only that the fast path cannot take the message: it is
unusual in some way, or has an empty key, a sort option that etcd does not know, or a number that may be a vector token.

`put_key`, `bare_key` and `txn_key` recognise, in a few steps, the form that nearly all requests have. A `message` is a
gRPC message with its prefix; the protobuf bytes start at `offset`.
"""

from __future__ import annotations

from typing import Final

from esp.core.wire.message import PREFIX_SIZE

# Tags of one byte: the number of the field, and its kind: bytes (2) or a number (0).
_KEY = 1 << 3 | 2
_SECOND = 2 << 3 | 2  # Put's value, the others' range_end

# The fields after these two are numbers: by tag, the first value too large for its single byte. An _INT64 may go on.
_BOOL = 2
_INT64 = 0x80
PUT_FIELDS = {3 << 3: _INT64, 4 << 3: _BOOL, 5 << 3: _BOOL, 6 << 3: _BOOL}  # lease, prev_kv, ignore_value and _lease
RANGE_FIELDS = {
    3 << 3: _INT64,  # limit
    4 << 3: _INT64,  # revision
    5 << 3: 3,  # sort_order
    6 << 3: 5,  # sort_target
    7 << 3: _BOOL,  # serializable
    8 << 3: _BOOL,  # keys_only
    9 << 3: _BOOL,  # count_only
    10 << 3: _INT64,  # and the revision filters
    11 << 3: _INT64,
    12 << 3: _INT64,
    13 << 3: _INT64,
}
DELETE_FIELDS = {3 << 3: _BOOL}  # prev_kv
_COMPARE, _SUCCESS, _FAILURE = 1 << 3 | 2, 2 << 3 | 2, 3 << 3 | 2  # of a Txn
_OPERATIONS = {1 << 3 | 2: RANGE_FIELDS, 2 << 3 | 2: PUT_FIELDS, 3 << 3 | 2: DELETE_FIELDS}
_MOST_PARTS = 4  # compares and operations of a transaction in its usual form
_REVISIONS = frozenset((4 << 3, 10 << 3, 11 << 3, 12 << 3, 13 << 3, 5 << 3, 6 << 3))  # of a Range, and of a Compare
_RESULT, _TARGET, _COMPARED_KEY = 1 << 3, 2 << 3, 3 << 3 | 2  # of a Compare
_COMPARED = {tag: {tag: _INT64} for tag in (4 << 3, 5 << 3, 6 << 3, 8 << 3)}  # version, create and mod_revision, lease
_BIT_52 = 0x08  # in the last byte of a number of eight


def _value_fronts(most: int) -> list[bytes]:
    fronts = [bytes(rest + 1) for rest in range(most + 1)]  # longer than what is left, so that no message has it there
    for size in range(most - 2):
        front = bytes((_SECOND, size)) if size < 0x80 else bytes((_SECOND, size & 0x7F | 0x80, size >> 7))
        fronts[len(front) + size] = front
    return fronts


_SHORTEST_RANGE: Final = PREFIX_SIZE + 5
_LONGEST_USUAL: Final = 2048
_VALUE_FRONTS: Final = _value_fronts(_LONGEST_USUAL)
"""By the number of bytes behind a Put's key the tag and the length of its value, if nothing but the value is there."""


def put_key(message: bytes) -> bytes | None:
    """The key of a Put, whose protobuf bytes start behind the prefix of gRPC."""
    try:
        end = 7 + message[6]
        front = _VALUE_FRONTS[
            len(message) - end
        ]  # if less than nothing is left, another one, which does not stand there
        if message[end : end + len(front)] == front and message[5] == _KEY and 7 < end < 7 + 0x80:
            return message[7:end]
    except IndexError:
        pass  # it is short, or long
    fields = look(message, PREFIX_SIZE, len(message), PUT_FIELDS)
    return _at(message, fields[0]) if fields else None


def bare_key(message: bytes, offset: int) -> bytes | None:
    """The key of a Range with no other field than its one key, of at most 127 bytes, as in nearly all Ranges."""
    end = len(message)
    if end - offset > 2 and message[offset] == _KEY:
        size = message[offset + 1]
        if size < 0x80 and offset + 2 + size == end:
            return message[offset + 2 :]
    return None


def bare_range(message: bytes) -> tuple[bytes, bytes] | None:
    """The key and range_end of a Range with no other field than these two, each of at most 127 bytes; not empty."""
    size = len(message)
    if size > _SHORTEST_RANGE and message[5] == _KEY and 0 < message[6] < 0x80:
        end = 7 + message[6]
        start = end + 2
        if start < size and message[end] == _SECOND and message[end + 1] < 0x80 and start + message[end + 1] == size:
            return message[7:end], message[start:]
    return None


def range_key(message: bytes, offset: int) -> bytes | None:
    """The key of a Range for one key; None for any range, even a range that holds only one key.

    Also for DeleteRange, which has fewer fields: etcd ignores fields of Range there, and so does esp.
    """
    key = bare_key(message, offset)
    if key is not None:
        return key
    fields = look(message, offset, len(message), RANGE_FIELDS)
    return _at(message, fields[0]) if fields and fields[1] is None else None


def asked_range(message: bytes, offset: int) -> tuple[bytes, bytes | None] | None:
    """The key and range_end of a Range or a DeleteRange; None for the range_end of one key.

    None also for a message with an empty range_end: etcd reads it as an open end, but protobuf as no range_end.
    """
    fields = look(message, offset, len(message), RANGE_FIELDS)
    if fields is None:
        return None
    key, end = fields
    if end is None:
        return _at(message, key), None
    return (_at(message, key), _at(message, end)) if end.start < end.stop else None


def look(message: bytes, offset: int, end: int, limits: dict[int, int]) -> tuple[slice, slice | None] | None:
    """The places of the key and of the field after it, which may be missing; None if anything is unusual."""
    if offset >= end or message[offset] != _KEY:
        return None
    key = _bytes_at(message, offset + 1, end)
    if key is None or key.start == key.stop:
        return None
    second, rest = None, key.stop
    if rest < end and message[rest] == _SECOND:
        second = _bytes_at(message, rest + 1, end)
        if second is None:
            return None
        rest = second.stop
    return (key, second) if rest == end or _are_numbers(message, rest, end, limits) else None


def compared_key(message: bytes, offset: int, end: int) -> slice | None:
    """The place of the key of a Compare with one number that is no token, or without any; None for any other."""
    if offset + 1 < end and message[offset] == _RESULT and message[offset + 1] < 0x80:
        offset += 2
    if offset + 1 < end and message[offset] == _TARGET and message[offset + 1] < 0x80:
        offset += 2
    if offset >= end or message[offset] != _COMPARED_KEY:
        return None
    key = _bytes_at(message, offset + 1, end)
    if key is None or key.start == key.stop or (key.stop < end and message[key.stop] not in _COMPARED):
        return None
    return key if key.stop == end or _are_numbers(message, key.stop, end, _COMPARED[message[key.stop]]) else None


def txn_key(message: bytes) -> bytes | None:
    """The one key of a transaction that compares, puts, deletes and reads nothing else, as nearly all do.

    None for any other transaction, and for one with tokens or ranges, nested or long.
    """
    try:
        return _usual_txn_key(message) or _txn_key(message)
    except IndexError:  # it is cut short
        return None


def _put_fronts(most: int) -> list[bytes]:
    fronts = [bytes(rest + 1) for rest in range(most + 1)]  # as in `_value_fronts`
    for size in range(most):
        inner = bytes((_SUCCESS,)) + _length(size)
        front = bytes((_SUCCESS,)) + _length(len(inner) + size) + inner
        if len(front) + size <= most:
            fronts[len(front) + size] = front
    return fronts


def _length(size: int) -> bytes:
    return bytes((size,)) if size < 0x80 else bytes((size & 0x7F | 0x80, size >> 7))


_PUT_FRONTS: Final = _put_fronts(_LONGEST_USUAL)
"""By the number of bytes of the one operation in the first branch what is in front of it, if it is a Put."""


_SHORT: Final = 0x7C
"""Keys below this length have a length of one byte even as a field of a field."""
_KEY_FRONTS: Final = [bytes((_KEY, size)) for size in range(_SHORT)]
_READ_FRONTS: Final = [bytes((_FAILURE, size + 4, _KEY, size + 2)) for size in range(_SHORT)]
"""By the length of a key what is in front of the key as a field, and in front of that field in a branch that only reads
the key; a read has the same tag as a key."""
_NEXT: Final = bytes(range(0x80, 0x100))
"""The bytes of a number of several bytes, but for its last one."""


def _usual_txn_key(message: bytes) -> bytes | None:
    """As `txn_key`, for a compare, a put, and perhaps a read if the compare fails: as a kube-apiserver writes a key."""
    end = 7 + message[6]
    if message[5] != _COMPARE or end > 0x86:
        return None
    key = _quickly_compared(message, 7, end)
    if key is None:
        return None
    size = len(key)
    if size >= _SHORT:
        return None
    field = _KEY_FRONTS[size] + key
    last = len(message)
    read = last - size - 6
    if message[read:] == _READ_FRONTS[size] + field:
        last = read
    rest = last - end
    if rest > _LONGEST_USUAL:
        return None
    front = _PUT_FRONTS[rest] + field  # if less than nothing is left, another one, which does not stand there
    after = end + len(front)
    if message[end:after] != front or last <= after:
        return None
    front = _VALUE_FRONTS[last - after]
    return key if message[after : after + len(front)] == front else None


def _quickly_compared(message: bytes, start: int, end: int) -> bytes | None:
    """As `compared_key`, but the key itself, if it is short, and the number has at most seven bytes and is no token."""
    if message[start] == _RESULT and message[start + 1] < 0x80:
        start += 2
    if message[start] == _TARGET and message[start + 1] < 0x80:
        start += 2
    after = start + 2 + message[start + 1]
    last = end - 1
    if message[start] != _COMPARED_KEY or not start + 2 < after < start + 0x82 or not 0 < last - after < 8:
        return None
    if message[after] not in _COMPARED or message[last] > 0x7F or (not message[last] and last - after > 1):
        return None
    if message[after + 1 : last].translate(None, _NEXT):
        return None
    return message[start + 2 : after]


def _txn_key(message: bytes) -> bytes | None:
    key = field = b""  # the key, and the key as the first field of an operation
    position, size = PREFIX_SIZE, len(message)
    for _ in range(_MOST_PARTS):
        tag, length, start = message[position], message[position + 1], position + 2
        if length > 0x7F:
            high = message[start]
            if not 0 < high < 0x80:
                return None
            length, start = length & 0x7F | high << 7, start + 1
        position = start + length
        if position > size:
            return None
        if tag == _COMPARE:
            named = _quickly_compared(message, start, position)
            if named is None:
                place = compared_key(message, start, position)
                if place is None:
                    return None
                named = _at(message, place)
        else:
            limits = _OPERATIONS.get(message[start])
            if limits is None or (tag != _SUCCESS and tag != _FAILURE):
                return None
            length, start = message[start + 1], start + 2
            if length > 0x7F:
                high = message[start]
                if not 0 < high < 0x80:
                    return None
                length, start = length & 0x7F | high << 7, start + 1
            if start + length != position:
                return None
            if field and message.startswith(field, start):
                end = start + len(field)
                rest = position - end
                if not rest or (
                    limits is PUT_FIELDS and 0 < rest <= _LONGEST_USUAL and message.startswith(_VALUE_FRONTS[rest], end)
                ):
                    if position == size:
                        return key
                    continue
            found = look(message, start, position, limits)
            if found is None or (found[1] is not None and limits is not PUT_FIELDS):
                return None
            named = _at(message, found[0])
        if not key:
            key = named
            if len(key) > 0x7F:
                return None
            field = bytes((_KEY, len(key))) + key
        elif named != key:
            return None
        if position == size:
            return key
    return None


def _at(message: bytes, place: slice) -> bytes:
    """The bytes at `place`: mypyc takes any index that is spelled otherwise for a number."""
    return message[place.start : place.stop]


def _bytes_at(message: bytes, offset: int, end: int) -> slice | None:
    """The place of the bytes whose length is at `offset`; None if the length is unusual."""
    if offset >= end:
        return None
    size = message[offset]
    offset += 1
    if size > 0x7F:
        size &= 0x7F
        byte = 0
        for shift in (7, 14, 21, 28):
            if offset == end:
                return None
            byte = message[offset]
            offset += 1
            size |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
        if not 0 < byte < 0x80:  # not the shortest form, or longer than any message
            return None
    return slice(offset, offset + size) if offset + size <= end else None


def _are_numbers(message: bytes, offset: int, end: int, limits: dict[int, int]) -> bool:
    """Whether only the fields of `limits` follow from `offset` on, in order."""
    last = 0
    while offset + 1 < end:
        tag = message[offset]
        limit = limits.get(tag)
        if limit is None or tag <= last:
            return False
        last = tag
        byte = message[offset + 1]
        offset += 2
        if byte < limit:
            continue
        if limit != _INT64:
            return False
        length = 1
        while byte > 0x7F:
            if offset == end or length == 10:
                return False
            byte = message[offset]
            offset += 1
            length += 1
        if not byte or (length == 10 and byte > 1):  # not the shortest form, or more than 64 bits
            return False
        if length == 8 and byte >= _BIT_52 and tag in _REVISIONS:  # a token: another revision on each shard
            return False
    return offset == end
