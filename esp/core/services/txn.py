"""Transactions: what etcd refuses in them, and which keys they touch.

One whose keys are all in one shard goes there whole, and that shard says what is wrong with it. So nothing here takes
it apart; it is only looked through, and checked where no shard will. The messages come from the wire, where protobuf
allows at most 100 messages inside each other: that is 50 transactions, and bounds the recursion.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

from esp.core import errors
from esp.core.keys import KeyRange
from esp.core.pb import rpc_pb2
from esp.core.services.validate import has_known_sort, validate_delete, validate_put, validate_range
from esp.core.wire.status import Status

MAX_OPS = 128
"""etcd's default of --max-txn-ops. How many a shard allows, only that knows."""

MAX_IN_ALL = 10_000
"""The most compares and operations, nested ones included, that esp looks through.

etcd has no such limit: nesting lets the 2 MiB of a request hold 200,000. But looking through those would hold up
everybody else's requests for seconds.
"""


def refuse_unlooked(request: rpc_pb2.TxnRequest) -> Status | None:
    """Why a transaction may not even go to a shard; None when it may.

    More than MAX_IN_ALL operations are too many, whatever they are. And an unknown sort option may bring a shard down:
    see validate.py.
    """
    in_all = 0
    for txn in with_nested(request):
        in_all += len(txn.compare) + len(txn.success) + len(txn.failure)
        if in_all > MAX_IN_ALL:
            return errors.TOO_MANY_OPS
    for txn in with_nested(request):
        for branch in (txn.success, txn.failure):
            for operation in branch:
                if operation.WhichOneof("request") == "request_range" and not has_known_sort(operation.request_range):
                    return validate(request)
    return None


def validate(request: rpc_pb2.TxnRequest, max_ops: int = MAX_IN_ALL) -> Status | None:
    """What etcd finds wrong with a transaction before it runs it; None when nothing is.

    The first error that etcd would meet, as in `Txn` of etcd's `api/v3rpc/key.go`: all operations one by one first,
    nested ones included, then writes that meet.

    Args:
        request: The transaction.
        max_ops: The most that compares, success and failure may each hold. A nested transaction may hold that
            many less the longest of the three lists around it.
    """
    if wrong := _validate_operations(request, max_ops):
        return wrong
    if _writes(request.success) is None or _writes(request.failure) is None:
        return errors.DUPLICATE_KEY
    return None


def touched(request: rpc_pb2.TxnRequest) -> list[KeyRange]:
    """The keys of every compare and operation, of both branches and of nested transactions.

    Which branch will run makes no difference: only a shard that owns all of these can decide it, and etcd checks
    permissions on both. Keys may come more than once; a range that holds no key comes too, since a shard must see
    it. Where `validate` found an error the answer means nothing.

    This is what protobuf understood. A field that was sent twice may look different to etcd, so the shard must get
    the transaction serialised anew and not the client's bytes.
    """
    ranges: list[KeyRange] = []
    for txn in with_nested(request):
        ranges += (KeyRange.of_request(compare.key, compare.range_end) for compare in txn.compare)
        for branch in (txn.success, txn.failure):
            for operation in branch:
                match operation.WhichOneof("request"):
                    case "request_put":
                        ranges.append(KeyRange.of_request(operation.request_put.key, b""))
                    case "request_range":
                        asked = operation.request_range
                        ranges.append(KeyRange.of_request(asked.key, asked.range_end))
                    case "request_delete_range":
                        deleted = operation.request_delete_range
                        ranges.append(KeyRange.of_request(deleted.key, deleted.range_end))
    return ranges


def leases(request: rpc_pb2.TxnRequest) -> Iterator[int]:
    """The leases that its puts name, of both branches and of nested transactions."""
    for txn in with_nested(request):
        for branch in (txn.success, txn.failure):
            for operation in branch:
                if operation.WhichOneof("request") == "request_put" and operation.request_put.lease:
                    yield operation.request_put.lease


def is_read_only(request: rpc_pb2.TxnRequest) -> bool:
    """Whether etcd takes the transaction for a read: each operation of both branches is a Range.

    True for one without operations, and whatever it compares.
    """
    return all(
        operation.WhichOneof("request") == "request_range"
        for branch in (request.success, request.failure)
        for operation in branch
    )


def with_nested(request: rpc_pb2.TxnRequest) -> Iterator[rpc_pb2.TxnRequest]:
    """The transaction and all that are nested in it, in the order in which they are written."""
    waiting = [request]
    while waiting:
        txn = waiting.pop()
        yield txn
        nested = [
            operation.request_txn
            for branch in (txn.success, txn.failure)
            for operation in branch
            if operation.WhichOneof("request") == "request_txn"
        ]
        waiting += reversed(nested)


def _validate_operations(request: rpc_pb2.TxnRequest, max_ops: int) -> Status | None:
    longest = max(len(request.compare), len(request.success), len(request.failure))
    if longest > max_ops:
        return errors.TOO_MANY_OPS
    if not all(compare.key for compare in request.compare):
        return errors.KEY_NOT_PROVIDED
    for branch in (request.success, request.failure):
        for operation in branch:
            if wrong := _validate_operation(operation, max_ops - longest):
                return wrong
    return None


def _validate_operation(operation: rpc_pb2.RequestOp, max_ops: int) -> Status | None:
    match operation.WhichOneof("request"):
        case "request_put":
            return validate_put(operation.request_put)
        case "request_range":
            return validate_range(operation.request_range)
        case "request_delete_range":
            return validate_delete(operation.request_delete_range)
        case "request_txn":
            return _validate_operations(operation.request_txn, max_ops)
        case _:
            return errors.KEY_NOT_FOUND


class _Writes:
    """What a list of operations writes, nested transactions included.

    The deleted ranges are sorted and disjoint: from `starts[i]` to `ends[i]`.
    """

    __slots__ = ("ends", "puts", "starts")

    def __init__(self) -> None:
        self.puts: set[bytes] = set()
        self.starts: list[bytes] = []
        self.ends: list[bytes] = []

    def meets(self, puts: set[bytes]) -> bool:
        """Whether one of these keys is put or deleted already."""
        if not self.puts.isdisjoint(puts):
            return True
        return bool(self.starts) and any(self._deletes(key) for key in puts)

    def delete(self, ranges: Iterable[tuple[bytes, bytes]]) -> None:
        """Add these deleted ranges; an empty one adds nothing."""
        starts, ends = self.starts, self.ends
        for start, end in ranges:
            if end <= start:
                continue
            first, last = bisect_left(ends, start), bisect_right(starts, end)
            low, high = (min(start, starts[first]), max(end, ends[last - 1])) if first < last else (start, end)
            starts[first:last] = [low]
            ends[first:last] = [high]

    def add(self, other: _Writes) -> None:
        """Add all writes of `other`."""
        self.puts |= other.puts
        self.delete(zip(other.starts, other.ends, strict=True))

    def _deletes(self, key: bytes) -> bool:
        place = bisect_right(self.starts, key)
        return place > 0 and key < self.ends[place - 1]


def _writes(operations: Iterable[rpc_pb2.RequestOp]) -> _Writes | None:
    r"""What these operations write; None when two writes meet in a way that etcd refuses.

    etcd's rule (`checkIntervals`) is not quite "no key is written twice". It looks at this list's deletes first, then
    at its nested transactions in order, then at its puts, and refuses a put of a key that it has seen put or deleted.
    So a nested put before a nested delete of the key passes; and the two branches of one nested transaction never
    meet. A delete up to an open end ("\0") is seen by etcd as ending before it begins, and meets nothing.
    """
    puts: list[bytes] = []
    nested: list[rpc_pb2.TxnRequest] = []
    seen = _Writes()
    for operation in operations:
        match operation.WhichOneof("request"):
            case "request_put":
                puts.append(operation.request_put.key)
            case "request_delete_range":
                deleted = operation.request_delete_range
                seen.delete([(deleted.key, deleted.range_end or deleted.key + b"\0")])
            case "request_txn":
                nested.append(operation.request_txn)
    for txn in nested:
        success, failure = _writes(txn.success), _writes(txn.failure)
        if success is None or failure is None or seen.meets(success.puts) or seen.meets(failure.puts):
            return None
        seen.add(success)
        seen.add(failure)
    own = set(puts)
    if len(own) < len(puts) or seen.meets(own):
        return None
    seen.puts |= own
    return seen
