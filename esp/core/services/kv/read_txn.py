"""The bytes of a transaction for several reads of one key each, and the transaction's answer cut into their answers.

To etcd, a transaction without compares that only reads is the same as its reads one by one, at one moment (etcd
server/etcdserver/v3_server.go, Range and Txn). etcd waits for the same agreement before it reads, checks the same
permissions, and answers with the header that each read would have got.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from esp.core.varint import size_at, varint
from esp.core.wire.frames import pack_u32, unpack_u32
from esp.core.wire.message import PREFIX_SIZE, prefix

_BYTES_1 = 1 << 3 | 2  # tags of one byte: field 1 with bytes
_SUCCEEDED = 2 << 3
_REVISION = 3 << 3
_RESPONSES = 3 << 3 | 2


def _operation(size: int) -> bytes:
    """The bytes in front of a RangeRequest of `size` bytes: TxnRequest.success, RequestOp.request_range."""
    inner = bytes((_BYTES_1,)) + varint(size)
    return bytes((2 << 3 | 2,)) + varint(len(inner) + size) + inner


LONGEST_READ: Final = 0x200
_OPERATIONS = [_operation(size) for size in range(LONGEST_READ + 1)]
"""The results, by the size of a read."""


def join(messages: Sequence[bytes]) -> bytes:
    """The transaction for the reads in `messages`, of at most LONGEST_READ bytes each without gRPC prefix; all with it.

    `peek.bare_key` or `peek.bare_range` has recognised them.
    """
    parts = []
    for message in messages:
        parts.append(_OPERATIONS[len(message) - PREFIX_SIZE])
        parts.append(message[PREFIX_SIZE:])
    return prefix(b"".join(parts))


def split(answer: bytes, count: int) -> list[bytes] | None:
    """The RangeResponses for `count` reads, as gRPC messages, cut out of a TxnResponse; all with gRPC prefix.

    None unless `answer` has etcd's form: a header, success, and `count` answers that were read at the header's
    revision.
    """
    try:
        return _split(answer, count)
    except (IndexError, struct.error):  # the answer is cut off
        return None


def _split(answer: bytes, count: int) -> list[bytes] | None:
    position = PREFIX_SIZE
    end = len(answer)
    if answer[0] or unpack_u32(answer, 1)[0] != end - position or answer[position] != _BYTES_1:
        return None
    size = answer[position + 1]
    after = position + 2 + size
    if size > 0x7F or answer[after] != _SUCCEEDED or answer[after + 1] != 1:
        return None
    header = answer[position:after]
    inner_header = _inner_header(answer, position + 2, after)
    position = after + 2
    answers = []
    while position < end:
        if answer[position] != _RESPONSES:
            return None
        size, position = size_at(answer, position + 1)
        after = position + size
        if answer[position] != _BYTES_1:
            return None
        size, position = size_at(answer, position + 1)
        body = position + len(inner_header)
        if position + size != after or not body <= after <= end or answer[position:body] != inner_header:
            return None
        answers.append(b"\0" + pack_u32(len(header) + after - body) + header + answer[body:after])
        position = after
    return answers if len(answers) == count else None


def _inner_header(answer: bytes, position: int, end: int) -> bytes:
    """The header of an answer inside the transaction. etcd fills in only the revision, the same as outside."""
    while answer[position] != _REVISION:
        position += 1
        while answer[position] > 0x7F:
            position += 1
        position += 1
        if position >= end:
            raise IndexError
    start = position
    position += 1
    while answer[position] > 0x7F:
        position += 1
    revision = answer[start : position + 1]
    return bytes((_BYTES_1, len(revision))) + revision
