"""Requests of KV with a comparison of the shard's guard, as bytes; and the answers, cut out of a transaction's.

A Put, DeleteRange or Range becomes a transaction with the comparison and the one request. To etcd that is the same as
the request alone: the same checks, permissions, errors and revisions (docs/decisions/2026-11-30-one-map.md has the
exceptions). A client's own transaction gets the comparison as one more of its own, and is not nested, because older
etcds check no permissions inside of a nested one. If it fails, the first answer tells whose comparison failed:

- A failure list that only reads, as of now, gets a read of the guard in front. Reads do no harm if they were routed
  wrongly.
- Any other is nested below a second comparison of the guard: it writes, or reads at a revision, which may be an error
  on a shard that does not own the keys.

Nothing is parsed, except for such lists, and the answers to these.
"""

from __future__ import annotations

import struct
from enum import Enum
from typing import Final, NamedTuple

from google.protobuf.message import DecodeError

from esp.core.pb import rpc_pb2
from esp.core.varint import size_at, varint
from esp.core.wire.frames import pack_u32, unpack_u32
from esp.core.wire.message import PREFIX_SIZE, prefix

_BYTES: Final = 2  # the wire type of bytes
_HEADER: Final = 1 << 3 | _BYTES
_COMPARE: Final = 1 << 3 | _BYTES
_SUCCESS: Final = 2 << 3 | _BYTES
_FAILURE: Final = 3 << 3 | _BYTES
_SUCCEEDED: Final = 2 << 3
_RESPONSES: Final = 3 << 3 | _BYTES
_REVISION: Final = 3 << 3
_RAFT_TERM: Final = 4 << 3
_KEY: Final = 1 << 3 | _BYTES
_RANGE_END: Final = 2 << 3 | _BYTES
_AT_REVISION: Final = 4 << 3
SMALL: Final = 512
"""Up to so many bytes of a request, the bytes in front are made once for each size: at most 200 KB for a guard."""
_MOST_HEADER: Final = 0x7F
"""The most bytes of an answer's header: four numbers."""


class Kind(Enum):
    """A request that becomes a transaction; the value is its tag in RequestOp, and that of its answer in ResponseOp."""

    RANGE = 1 << 3 | _BYTES
    PUT = 2 << 3 | _BYTES
    DELETE_RANGE = 3 << 3 | _BYTES


class GarbledError(ValueError):
    """Bytes that are no answer of etcd's to such a request, or no request."""


class Cut(NamedTuple):
    """An answer inside of a transaction's answer: its beginning, written anew, and where in the latter the rest begins.

    The rest goes to the end. So an answer can be passed on while it still comes.
    """

    head: bytes
    rest: int


class Guard:
    """The guard of one shard by one map.

    Attributes:
        value: what the shard must hold for the shard to accept a request.
    """

    __slots__ = ("_compare", "_fronts", "_read", "value")

    def __init__(self, key: bytes, value: bytes) -> None:
        compare = rpc_pb2.Compare(key=key, target=rpc_pb2.Compare.VALUE, result=rpc_pb2.Compare.EQUAL, value=value)
        # Serializable, so that the transaction stays as serializable as the client has made it.
        read = rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=key, serializable=True))
        self.value = value
        self._fronts: dict[tuple[int, int], bytes] = {}  # by tag and size of small requests
        self._compare = rpc_pb2.TxnRequest(compare=[compare]).SerializeToString()
        self._read = rpc_pb2.TxnRequest(failure=[read]).SerializeToString()

    def around(self, kind: Kind, message: bytes) -> bytes:
        """The transaction for a request; both with gRPC prefix."""
        tag, size = kind.value, len(message) - PREFIX_SIZE
        front = self._fronts.get((tag, size))
        if front is None:
            front = self._front(tag, size)
            if size <= SMALL:
                self._fronts[tag, size] = front
        return front + message[PREFIX_SIZE:]

    def _front(self, tag: int, size: int) -> bytes:
        """The bytes in front of a request of `size` bytes, from the gRPC prefix on."""
        inner = bytes((tag,)) + varint(size)
        outer = bytes((_SUCCESS,)) + varint(len(inner) + size)
        length = len(self._compare) + len(outer) + len(inner) + size
        return b"\0" + pack_u32(length) + self._compare + outer + inner

    def beside(self, message: bytes) -> tuple[bytes, bool]:
        """A client's transaction with the comparison, and whether a part of it is nested; both with gRPC prefix.

        Raises:
            GarbledError: the message is no transaction.
        """
        if _is_harmless_on_failure(message):
            return prefix(self._read + message[PREFIX_SIZE:] + self._compare), False
        try:
            request = rpc_pb2.TxnRequest.FromString(message[PREFIX_SIZE:])
        except DecodeError:
            raise GarbledError from None
        compare = rpc_pb2.TxnRequest.FromString(self._compare).compare
        nested = rpc_pb2.TxnRequest(compare=compare, success=request.failure)
        del request.failure[:]
        request.compare.extend(compare)
        request.failure.add().request_txn.CopyFrom(nested)
        return prefix(request.SerializeToString()), True

    def taken(self, answer: bytes, nested: bool) -> bytes | None:
        """The answer to a client's transaction; None if the shard has refused the comparison.

        Raises:
            GarbledError: the answer is none of etcd's.
        """
        try:
            position, succeeded = _front(answer)
            if succeeded:
                return answer
            return self._taken_nested(answer) if nested else self._taken(answer, position)
        except (IndexError, struct.error, DecodeError):
            raise GarbledError from None

    def _taken(self, answer: bytes, position: int) -> bytes | None:
        if answer[position] != _RESPONSES:
            raise GarbledError
        size, start = size_at(answer, position + 1)
        found = rpc_pb2.ResponseOp.FromString(answer[start : start + size])
        if found.WhichOneof("response") != "response_range" or start + size > len(answer):
            raise GarbledError
        if [pair.value for pair in found.response_range.kvs] != [self.value]:
            return None
        return prefix(answer[PREFIX_SIZE:position] + answer[start + size :])

    def _taken_nested(self, answer: bytes) -> bytes | None:
        response = rpc_pb2.TxnResponse.FromString(answer[PREFIX_SIZE:])
        if len(response.responses) != 1 or response.responses[0].WhichOneof("response") != "response_txn":
            raise GarbledError
        inner = response.responses[0].response_txn
        if not inner.succeeded:
            return None
        outer = rpc_pb2.TxnResponse(header=response.header, responses=inner.responses)
        return prefix(outer.SerializeToString())


def cut(answer: bytes, kind: Kind) -> Cut | None:
    """The answer to a request, in the answer to its transaction; None if the shard has refused the comparison.

    The beginning of the answer is enough, of 256 bytes if there are so many.

    Raises:
        GarbledError: the answer is none of etcd's.
    """
    try:
        return _cut(answer, kind)
    except (IndexError, struct.error):  # the answer is cut off
        raise GarbledError from None


def _cut(answer: bytes, kind: Kind) -> Cut | None:
    position, succeeded = _front(answer)
    if not succeeded:
        return None
    end = PREFIX_SIZE + unpack_u32(answer, 1)[0]
    header = answer[PREFIX_SIZE : position - 2]
    if answer[position] != _RESPONSES:
        raise GarbledError
    size, position = size_at(answer, position + 1)
    if position + size != end or answer[position] != kind.value:
        raise GarbledError
    size, position = size_at(answer, position + 1)
    rest = position + 2 + answer[position + 1]
    if position + size != end or rest > end or not _is_header_inside(answer[position:rest], header):
        raise GarbledError
    return Cut(b"\0" + pack_u32(len(header) + end - rest) + header, rest)


def _front(answer: bytes) -> tuple[int, bool]:
    """Where the responses of a transaction's answer begin, and whether the transaction has succeeded."""
    if answer[0] or answer[PREFIX_SIZE] != _HEADER:
        raise GarbledError
    size = answer[PREFIX_SIZE + 1]
    position = PREFIX_SIZE + 2 + size
    end = PREFIX_SIZE + unpack_u32(answer, 1)[0]
    if size > _MOST_HEADER or position > end:
        raise GarbledError
    if position == end or answer[position] != _SUCCEEDED:
        return position, False
    if answer[position + 1] != 1:
        raise GarbledError
    return position + 2, True


def _is_header_inside(inner: bytes, header: bytes) -> bool:
    """Whether these are the headers of an answer in a transaction and of the transaction.

    etcd fills in only the revision there, the same as outside, where at most the term follows.
    """
    revision = inner[2:]
    place = header.rfind(revision)
    after = place + len(revision)
    return (
        inner[0] == _HEADER
        and inner[2] == _REVISION
        and place > 0
        and (after == len(header) or header[after] == _RAFT_TERM)
    )


def _is_harmless_on_failure(message: bytes) -> bool:
    """Whether the failure list of a transaction has nothing but reads as of now. False for what is no transaction."""
    position, end = PREFIX_SIZE, len(message)
    try:
        while position < end:
            tag = message[position]
            if tag not in (_COMPARE, _SUCCESS, _FAILURE):
                return False
            size, position = size_at(message, position + 1)
            if tag == _FAILURE:
                if not size or message[position] != Kind.RANGE.value:
                    return False
                inner, start = size_at(message, position + 1)
                if start + inner != position + size:  # a second field takes the place of the first
                    return False
                if not _reads_as_of_now(message, start, start + inner):
                    return False
            position += size
    except IndexError:
        return False
    return position == end


def _reads_as_of_now(message: bytes, position: int, end: int) -> bool:
    """Whether the RangeRequest in these bytes names no revision. False for what is none."""
    while position < end:
        tag = message[position]
        position += 1
        if tag in (_KEY, _RANGE_END):
            size, position = size_at(message, position)
            position += size
        elif tag & 7 == 0 and tag != _AT_REVISION and tag < 0x80:
            while message[position] > 0x7F:
                position += 1
            position += 1
        else:
            return False
    return position == end
