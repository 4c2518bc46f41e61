"""The fields of etcd's messages that hold keys, and those of bytes that hold something else.

Each field of bytes in a message of an RPC is in one of the two tables. A test goes over all RPCs by their descriptors
and finds any that is in neither, such as a field of a later etcd.
"""

from __future__ import annotations

from enum import Enum, auto
from functools import cache
from typing import Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor


class Kind(Enum):
    """The kind of a field that holds a key or a part of one."""

    KEY = auto()
    """A key. Empty in a request, it is no key, and etcd refuses it."""
    SPAN_KEY = auto()
    """The key of a watch: empty, it is the first key of all."""
    RANGE_END = auto()
    NAME = auto()
    """The name of a lock or an election, with which its keys begin; it may be empty."""
    ANY_KEY = auto()
    """Keys of an answer, some of which may be outside of the namespace: those are left out."""
    ROW = auto()
    """A KeyValue, whose key comes first."""


KEYS: Final = {
    "etcdserverpb.RangeRequest.key": Kind.KEY,
    "etcdserverpb.RangeRequest.range_end": Kind.RANGE_END,
    "etcdserverpb.PutRequest.key": Kind.KEY,
    "etcdserverpb.DeleteRangeRequest.key": Kind.KEY,
    "etcdserverpb.DeleteRangeRequest.range_end": Kind.RANGE_END,
    "etcdserverpb.Compare.key": Kind.KEY,
    "etcdserverpb.Compare.range_end": Kind.RANGE_END,
    "etcdserverpb.WatchCreateRequest.key": Kind.SPAN_KEY,
    "etcdserverpb.WatchCreateRequest.range_end": Kind.RANGE_END,
    "etcdserverpb.LeaseTimeToLiveResponse.keys": Kind.ANY_KEY,
    "mvccpb.KeyValue.key": Kind.KEY,
    "v3lockpb.LockRequest.name": Kind.NAME,
    "v3lockpb.LockResponse.key": Kind.KEY,
    "v3lockpb.UnlockRequest.key": Kind.KEY,
    "v3electionpb.CampaignRequest.name": Kind.NAME,
    "v3electionpb.LeaderKey.name": Kind.NAME,
    "v3electionpb.LeaderKey.key": Kind.KEY,
    "v3electionpb.LeaderRequest.name": Kind.NAME,
}
"""The fields that hold keys."""

NO_KEYS: Final = {
    "etcdserverpb.PutRequest.value": "a value",
    "etcdserverpb.Compare.value": "a value",
    "mvccpb.KeyValue.value": "a value",
    "v3electionpb.CampaignRequest.value": "a value",
    "v3electionpb.ProclaimRequest.value": "a value",
    "etcdserverpb.SnapshotResponse.blob": "a part of a file with all keys; the RPC is refused",
    "authpb.Permission.key": "permissions are on the keys of the shards, as with etcd's grpc-proxy",
    "authpb.Permission.range_end": "as Permission.key",
    "etcdserverpb.AuthRoleRevokePermissionRequest.key": "as Permission.key",
    "etcdserverpb.AuthRoleRevokePermissionRequest.range_end": "as Permission.key",
}
"""The fields of bytes that hold no keys of clients, and why."""

HOLDS_ALL: Final = frozenset((b"/etcdserverpb.Maintenance/Snapshot",))
"""RPCs whose answers hold keys of all namespaces in a form that cannot be divided."""

CONTAINED: Final = "mvccpb.KeyValue"
"""The message that is rewritten whole, because answers hold very many."""


def field_tag(field: FieldDescriptor, kind: int | None = None) -> int:
    """The tag of a field: its number, and how it is encoded; by default as protobuf writes a single value."""
    return field.number << 3 | (_ENCODINGS.get(field.type, 2) if kind is None else kind)


def message_in(field: FieldDescriptor) -> Descriptor | None:
    """The type of the message that the field holds; None for a field of another type."""
    return field.message_type if field.type == FieldDescriptor.TYPE_MESSAGE else None


@cache
def holds_keys(message: Descriptor) -> bool:
    """Whether the message, or one inside it, has a field of `KEYS`."""
    seen: set[str] = set()
    waiting = [message]
    while waiting:
        one = waiting.pop()
        if one.full_name not in seen:
            seen.add(one.full_name)
            if any(field.full_name in KEYS for field in one.fields):
                return True
            waiting += [inner for field in one.fields if (inner := message_in(field)) is not None]
    return False


_NUMBER, _EIGHT_BYTES, _FOUR_BYTES = 0, 1, 5
_ENCODINGS: Final = {
    FieldDescriptor.TYPE_DOUBLE: _EIGHT_BYTES,
    FieldDescriptor.TYPE_FIXED64: _EIGHT_BYTES,
    FieldDescriptor.TYPE_SFIXED64: _EIGHT_BYTES,
    FieldDescriptor.TYPE_FLOAT: _FOUR_BYTES,
    FieldDescriptor.TYPE_FIXED32: _FOUR_BYTES,
    FieldDescriptor.TYPE_SFIXED32: _FOUR_BYTES,
    FieldDescriptor.TYPE_INT64: _NUMBER,
    FieldDescriptor.TYPE_UINT64: _NUMBER,
    FieldDescriptor.TYPE_INT32: _NUMBER,
    FieldDescriptor.TYPE_UINT32: _NUMBER,
    FieldDescriptor.TYPE_BOOL: _NUMBER,
    FieldDescriptor.TYPE_ENUM: _NUMBER,
    FieldDescriptor.TYPE_SINT32: _NUMBER,
    FieldDescriptor.TYPE_SINT64: _NUMBER,
}
