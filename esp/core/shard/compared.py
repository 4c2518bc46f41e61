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
from collections.abc import Callable
from typing import Final, NamedTuple

from google.protobuf.message import DecodeError

from esp.core.pb import auth_pb2, rpc_pb2
from esp.core.varint import size_at, varint
from esp.core.wire.frames import pack_u32, unpack_u32
from esp.core.wire.message import PREFIX_SIZE, prefix

GUARD_KEY: Final = b"\0esp/guard"
"""The key of the guard, on each shard."""
GUARD_PERMISSION: Final = auth_pb2.Permission(permType=auth_pb2.Permission.READ, key=GUARD_KEY)
"""The right to have the guard compared: etcd checks a comparison as a read by the client's user."""
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
_TXN: Final = 4 << 3 | _BYTES
BEGINNING: Final = 512
"""So many bytes of an answer tell what to make of it: a header, an answer's header or the guard, and lengths."""
MOST_FORMS: Final = 256
"""The most sizes of answers of one kind for which a guard keeps how to cut them."""
SMALL: Final = 512
"""Up to so many bytes of a request, the bytes in front are made once for each size: at most 200 KB for a guard."""
_MOST_HEADER: Final = 0x7F
"""The most bytes of an answer's header: four numbers."""


class Kind:
    """Requests of KV, as the tags in RequestOp, and of their answers in ResponseOp: numbers, which cost little."""

    RANGE: Final = 1 << 3 | _BYTES
    PUT: Final = 2 << 3 | _BYTES
    DELETE_RANGE: Final = 3 << 3 | _BYTES
    TXN: Final = 4 << 3 | _BYTES
    """A client's transaction."""
    READS: Final = 0
    """A transaction of esp's own, which compares nothing, and has no failure list."""


_KINDS: Final = (Kind.READS, Kind.RANGE, Kind.PUT, Kind.DELETE_RANGE, Kind.TXN)


class GarbledError(ValueError):
    """Bytes that are no answer of etcd's to such a request, or no request."""


class Cut(NamedTuple):
    """An answer inside of a transaction's answer: its beginning, written anew, and where in the latter the rest begins.

    The rest goes to the end. So an answer can be passed on while it still comes. An answer that is right as it is has
    no such beginning, and is all rest.
    """

    head: bytes
    rest: int


_Form = tuple[Callable[[bytes], tuple[bytes, ...]], bytes, bytes, bytes, bytes, int]
"""Unpacks an answer of one size: what is in front of the revision, the revision, what is between, the revision again.
Then what the first and the third are, what takes the place of the first, what follows the revision, and where the rest
begins."""


class Guard:
    """The guard of one shard by one map.

    Attributes:
        value: what the shard must hold for the shard to accept a request.
    """

    __slots__ = ("_compare", "_forms", "_fronts", "_read", "value")

    def __init__(self, key: bytes, value: bytes) -> None:
        compare = rpc_pb2.Compare(key=key, target=rpc_pb2.Compare.VALUE, result=rpc_pb2.Compare.EQUAL, value=value)
        # Serializable, so that the transaction stays as serializable as the client has made it.
        read = rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=key, serializable=True))
        self.value = value
        # By the tag, and then by the size of small requests, and of answers.
        self._fronts: dict[int, dict[int, bytes]] = {kind: {} for kind in _KINDS}
        self._forms: dict[int, dict[int, _Form]] = {kind: {} for kind in _KINDS}
        self._compare = rpc_pb2.TxnRequest(compare=[compare]).SerializeToString()
        self._read = rpc_pb2.TxnRequest(failure=[read]).SerializeToString()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Guard) and other.value == self.value

    __hash__ = None  # type: ignore[assignment]

    def compared(self, kind: int, message: bytes) -> bytes:
        """The transaction for a request; both with gRPC prefix.

        Raises:
            GarbledError: the message is no transaction, and should be one.
        """
        size = len(message) - PREFIX_SIZE
        front = self._fronts[kind].get(size)
        if front is None:
            if kind == _TXN:
                return self._beside(message)
            if not kind:
                return prefix(message[PREFIX_SIZE:] + self._compare)
            front = self._front(kind, size)
            if size <= SMALL:
                self._fronts[kind][size] = front
        return front + message[PREFIX_SIZE:]

    def _front(self, tag: int, size: int) -> bytes:
        """The bytes in front of a request of `size` bytes, from the gRPC prefix on."""
        inner = bytes((tag,)) + varint(size)
        outer = bytes((_SUCCESS,)) + varint(len(inner) + size)
        length = len(self._compare) + len(outer) + len(inner) + size
        return b"\0" + pack_u32(length) + self._compare + outer + inner

    def _beside(self, message: bytes) -> bytes:
        """A client's transaction with the comparison."""
        if _is_harmless_on_failure(message):
            return prefix(self._read + message[PREFIX_SIZE:] + self._compare)
        try:
            request = rpc_pb2.TxnRequest.FromString(message[PREFIX_SIZE:])
        except DecodeError:
            raise GarbledError from None
        compare = rpc_pb2.TxnRequest.FromString(self._compare).compare
        nested = rpc_pb2.TxnRequest(compare=compare, success=request.failure)
        del request.failure[:]
        request.compare.extend(compare)
        request.failure.add().request_txn.CopyFrom(nested)
        return prefix(request.SerializeToString())

    def whole(self, answer: bytes, kind: int) -> bytes | None:
        """As `cut`, for an answer that has come whole; in few steps if it looks like one before.

        Raises:
            GarbledError: the answer is none of etcd's.
        """
        form = self._forms[kind].get(len(answer))
        if form is not None:
            unpack, front, between, new_front, behind, rest = form
            found, revision, then, again = unpack(answer)
            if found == front and then == between and revision == again:
                return new_front + revision + behind + answer[rest:]
        cut = self.cut(answer, kind)
        if cut is None:
            return None
        head, rest = cut
        if kind and kind != _TXN and rest < SMALL:
            if len(self._forms[kind]) >= MOST_FORMS:
                self._forms[kind].clear()
            self._forms[kind][len(answer)] = _form(answer, head, rest)
        return head + answer[rest:] if rest else answer

    def cut(self, answer: bytes, kind: int) -> Cut | None:
        """The answer to a request, in the answer to its transaction; None if the shard has refused the comparison.

        The beginning of the answer is enough, of BEGINNING bytes if there are so many.

        Raises:
            GarbledError: the answer is none of etcd's.
        """
        try:
            if kind and kind != _TXN:
                return _cut(answer, kind)
            position, succeeded = _front(answer)
            if succeeded:
                return Cut(b"", 0)
            return self._cut_failed(answer, position) if kind else None
        except (IndexError, struct.error, DecodeError):  # the answer is cut off, for one
            raise GarbledError from None

    def _cut_failed(self, answer: bytes, position: int) -> Cut | None:
        """The answer to a client's transaction of which some comparison has failed."""
        end = PREFIX_SIZE + unpack_u32(answer, 1)[0]
        if answer[position] != _RESPONSES:
            raise GarbledError
        size, start = size_at(answer, position + 1)
        after = start + size
        if after > end:
            raise GarbledError
        if answer[start] == _TXN:
            rest = _behind_success(answer, start, after)
            if after != end:
                raise GarbledError
            if rest is None:
                return None
        else:
            if after > len(answer):
                raise GarbledError
            found = rpc_pb2.ResponseOp.FromString(answer[start:after])
            if found.WhichOneof("response") != "response_range":
                raise GarbledError
            if [pair.value for pair in found.response_range.kvs] != [self.value]:
                return None
            rest = after
        header = answer[PREFIX_SIZE:position]
        return Cut(b"\0" + pack_u32(len(header) + end - rest) + header, rest)


def _form(answer: bytes, head: bytes, rest: int) -> _Form:
    """How to cut the next answer of this size: its revision, which stands in it twice, may be another one."""
    inner = PREFIX_SIZE + 2 + answer[PREFIX_SIZE + 1]
    inner += 3
    _, inner = size_at(answer, inner)
    _, inner = size_at(answer, inner + 1)
    again = inner + 3
    size = rest - again
    place = head.rfind(answer[again - 1 : rest]) + 1
    front, between = place, again - place - size
    unpack = struct.Struct(f"{front}s{size}s{between}s{size}s").unpack_from
    return unpack, answer[:front], answer[front + size : again], head[:place], head[place + size :], rest


def _behind_success(answer: bytes, position: int, after: int) -> int | None:
    """Where the responses of a nested transaction begin, whose answer stands there; None if it has not succeeded."""
    size, position = size_at(answer, position + 1)
    if position + size != after:
        raise GarbledError
    if position < after and answer[position] == _HEADER:
        size, position = size_at(answer, position + 1)
        position += size
    if position >= after or answer[position] != _SUCCEEDED:
        return None
    if answer[position + 1] != 1 or position + 2 > after:
        raise GarbledError
    return position + 2


def _cut(answer: bytes, tag: int) -> Cut | None:
    """The answer to a request that became the one operation of a transaction. This runs once per request."""
    size = answer[PREFIX_SIZE + 1]
    position = PREFIX_SIZE + 2 + size
    end = PREFIX_SIZE + unpack_u32(answer, 1)[0]
    if answer[0] or answer[PREFIX_SIZE] != _HEADER or size > _MOST_HEADER or position > end:
        raise GarbledError
    if position == end or answer[position] != _SUCCEEDED:
        return None
    header = answer[PREFIX_SIZE:position]
    if answer[position + 1] != 1 or answer[position + 2] != _RESPONSES:
        raise GarbledError
    size = answer[position + 3]
    position += 4
    if size > 0x7F:
        size, position = size_at(answer, position - 1)
    if position + size != end or answer[position] != tag:
        raise GarbledError
    size = answer[position + 1]
    position += 2
    if size > 0x7F:
        size, position = size_at(answer, position - 1)
    rest = position + 2 + answer[position + 1]
    if position + size != end or rest > end or rest > len(answer) or answer[position] != _HEADER:
        raise GarbledError
    # etcd fills in only the revision inside, the same as outside, where at most the term follows.
    revision = answer[position + 2 : rest]
    place = header.rfind(revision)
    after = place + len(revision)
    if place <= 0 or revision[0] != _REVISION or (after != len(header) and header[after] != _RAFT_TERM):
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
                if not size or message[position] != Kind.RANGE:
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
