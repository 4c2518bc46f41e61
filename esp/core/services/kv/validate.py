"""etcd's checks on a single KV request before it is run, with etcd's errors.

As in `api/v3rpc/key.go` of etcd 3.7. etcd 3.5 does not check sort options, and a member of 3.5 crashes on an unknown
sort target. So esp checks them for shards of any version. Transactions: txn.py.
"""

from __future__ import annotations

from esp.core import errors
from esp.core.pb import rpc_pb2
from esp.core.wire.status import Status

_SORT_ORDERS = frozenset(rpc_pb2.RangeRequest.SortOrder.values())
_SORT_TARGETS = frozenset(rpc_pb2.RangeRequest.SortTarget.values())


def validate_range(request: rpc_pb2.RangeRequest) -> Status | None:
    """The fault of a Range, with etcd's text; None without one."""
    if not request.key:
        return errors.KEY_NOT_PROVIDED
    return None if has_known_sort(request) else errors.INVALID_SORT_OPTION


def validate_range_stream(request: rpc_pb2.RangeRequest) -> Status | None:
    """The fault of a RangeStream, with etcd's text; None without one."""
    if wrong := validate_range(request):
        return wrong
    if not has_default_order(request):
        return errors.STREAM_SORT
    if has_revision_filter(request):
        return errors.STREAM_FILTER
    return None


def validate_put(request: rpc_pb2.PutRequest) -> Status | None:
    """The fault of a Put, with etcd's text; None without one."""
    if not request.key:
        return errors.KEY_NOT_PROVIDED
    if request.ignore_value and request.value:
        return errors.VALUE_PROVIDED
    if request.ignore_lease and request.lease:
        return errors.LEASE_PROVIDED
    return None


def validate_delete(request: rpc_pb2.DeleteRangeRequest) -> Status | None:
    """The fault of a DeleteRange, with etcd's text; None without one."""
    return None if request.key else errors.KEY_NOT_PROVIDED


def has_known_sort(request: rpc_pb2.RangeRequest) -> bool:
    """Whether etcd knows the sort options."""
    return request.sort_order in _SORT_ORDERS and request.sort_target in _SORT_TARGETS


def has_default_order(request: rpc_pb2.RangeRequest) -> bool:
    """Whether etcd reads the rows in key order and stops at the limit, instead of reading and sorting all.

    True without an order, for any target; merge.py says how etcd treats a target without an order.
    """
    return request.sort_order == rpc_pb2.RangeRequest.NONE or (
        request.sort_order == rpc_pb2.RangeRequest.ASCEND and request.sort_target == rpc_pb2.RangeRequest.KEY
    )


def has_revision_filter(request: rpc_pb2.RangeRequest) -> bool:
    """Whether the Range asks only for keys that were created or modified within certain revisions."""
    return bool(
        request.min_mod_revision
        or request.max_mod_revision
        or request.min_create_revision
        or request.max_create_revision
    )
