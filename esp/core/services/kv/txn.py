"""etcd's checks of a transaction, made on the parsed message.

A transaction whose keys are all in one shard goes there unchanged, and that shard checks it. So esp only looks through
its bytes, in steps. esp parses a transaction in two cases: it spans shards, so no shard will check it; or it has not
the form that every protobuf library writes, so a shard might read something else in it than esp. protobuf allows at
most 100 messages inside each other. That is 50 transactions, and bounds the recursion here.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Generator, Iterable, Iterator
from itertools import chain
from typing import Final

from esp.core import errors
from esp.core.pb import rpc_pb2
from esp.core.services.kv.validate import validate_delete, validate_put, validate_range
from esp.core.services.pace import LOOKED_AT_ONCE, Pace
from esp.core.wire.status import Code, Status

MAX_OPS = 128
"""etcd's default of --max-txn-ops. Only the shard itself knows how many it allows."""

MAX_PARSED: Final = 10_000
"""The most compares and operations, with nested ones, in a transaction that esp parses: that takes a step of 2 ms."""
PARSED_BYTES: Final = 256
"""About the memory that a parsed compare or operation takes besides its bytes."""
READ_BYTES: Final = 1024
"""About the memory that an operation takes, besides its rows, until all are read over several shards."""
TOO_ODD: Final = Status(
    Code.INVALID_ARGUMENT,
    "esp: the transaction cannot be looked through; write it as protobuf libraries do, each field once and none that "
    f"etcd 3.7 lacks, or no more than {MAX_PARSED:,} operations in one",
)


def validate(request: rpc_pb2.TxnRequest, max_ops: int = MAX_PARSED) -> Generator[None, None, Status | None]:
    """The error with which etcd refuses a transaction before it runs it; None if it is valid. In steps, as `look`.

    The first error that etcd finds, as in `Txn` of etcd's `api/v3rpc/key.go`. etcd first checks all operations one by
    one, with nested ones, and then looks for writes of the same key.

    Args:
        request: the transaction.
        max_ops: the most entries in each of compares, success and failure. For a nested transaction, the longest of the
            three lists around it is subtracted.
    """
    pace = Pace()
    wrong = yield from _validate_operations(request, max_ops, pace)
    if wrong:
        return wrong
    for branch in (request.success, request.failure):
        if (yield from _writes(branch, pace)) is None:
            return errors.DUPLICATE_KEY
    return None


def puts(request: rpc_pb2.TxnRequest) -> Iterator[rpc_pb2.PutRequest | None]:
    """The puts of both branches and of nested transactions; None for any other operation, to count steps."""
    waiting = [request]
    while waiting:
        txn = waiting.pop()
        for operation in chain(txn.success, txn.failure):
            kind = operation.WhichOneof("request")
            if kind == "request_txn":
                waiting.append(operation.request_txn)
            yield operation.request_put if kind == "request_put" else None


def _validate_operations(request: rpc_pb2.TxnRequest, max_ops: int, pace: Pace) -> Generator[None, None, Status | None]:
    longest = max(len(request.compare), len(request.success), len(request.failure))
    if longest > max_ops:
        return errors.TOO_MANY_OPS
    for compare in request.compare:
        if pace.is_over():
            yield
        if not compare.key:
            return errors.KEY_NOT_PROVIDED
    for operation in chain(request.success, request.failure):
        if pace.is_over():
            yield
        wrong: Status | None
        match operation.WhichOneof("request"):
            case "request_put":
                wrong = validate_put(operation.request_put)
            case "request_range":
                wrong = validate_range(operation.request_range)
            case "request_delete_range":
                wrong = validate_delete(operation.request_delete_range)
            case "request_txn":
                wrong = yield from _validate_operations(operation.request_txn, max_ops - longest, pace)
            case _:
                wrong = errors.KEY_NOT_FOUND
        if wrong:
            return wrong
    return None


class _Writes:
    """The keys that a list of operations writes, with nested transactions.

    The deleted ranges are sorted and disjoint: from `starts[i]` to `ends[i]`.
    """

    __slots__ = ("ends", "puts", "starts")

    def __init__(self) -> None:
        self.puts: set[bytes] = set()
        self.starts: list[bytes] = []
        self.ends: list[bytes] = []

    def meets(self, puts: set[bytes], pace: Pace) -> Generator[None, None, bool]:
        """Whether one of these keys was put or deleted before."""
        if not self.puts.isdisjoint(puts):
            return True
        if self.starts:
            for key in puts:
                if pace.is_over():
                    yield
                if self._deletes(key):
                    return True
        return False

    def delete(self, start: bytes, end: bytes) -> None:
        """Adds a deleted range; an empty range adds nothing."""
        starts, ends = self.starts, self.ends
        if end <= start:
            return
        first, last = bisect_left(ends, start), bisect_right(starts, end)
        low, high = (min(start, starts[first]), max(end, ends[last - 1])) if first < last else (start, end)
        starts[first:last] = [low]
        ends[first:last] = [high]

    def add(self, other: _Writes, pace: Pace) -> Generator[None, None, None]:
        """Adds all writes of `other`."""
        self.puts |= other.puts
        for start, end in zip(other.starts, other.ends, strict=True):
            if pace.is_over():
                yield
            self.delete(start, end)

    def _deletes(self, key: bytes) -> bool:
        place = bisect_right(self.starts, key)
        return place > 0 and key < self.ends[place - 1]


def _writes(operations: Iterable[rpc_pb2.RequestOp], pace: Pace) -> Generator[None, None, _Writes | None]:
    r"""The keys that these operations write; None if etcd refuses them because of two writes of a key.

    etcd's rule (`checkIntervals`) is not quite "no key is written twice". etcd looks first at this list's deletes, then
    at its nested transactions in order, then at its puts. It refuses a put of a key that it has seen put or deleted. So
    a nested put before a nested delete of the key is allowed, and the two branches of one nested transaction do not
    count against each other. etcd reads a delete up to an open end ("\0") as ending before its start, so it covers no
    key.
    """
    puts: list[bytes] = []
    nested: list[rpc_pb2.TxnRequest] = []
    seen = _Writes()
    for operation in operations:
        if pace.is_over():
            yield
        match operation.WhichOneof("request"):
            case "request_put":
                puts.append(operation.request_put.key)
            case "request_delete_range":
                deleted = operation.request_delete_range
                seen.delete(deleted.key, deleted.range_end or deleted.key + b"\0")
            case "request_txn":
                nested.append(operation.request_txn)
    for txn in nested:
        success = yield from _writes(txn.success, pace)
        failure = yield from _writes(txn.failure, pace)
        if success is None or failure is None:
            return None
        if (yield from seen.meets(success.puts, pace)) or (yield from seen.meets(failure.puts, pace)):
            return None
        yield from seen.add(success, pace)
        yield from seen.add(failure, pace)
        if len(seen.puts) >= LOOKED_AT_ONCE:
            yield  # a whole set was added in one step
    own = set(puts)
    if len(own) < len(puts) or (yield from seen.meets(own, pace)):
        return None
    seen.puts |= own
    return seen
