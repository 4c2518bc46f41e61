"""The errors of etcd's API that esp itself answers with, and esp's own refusals.

The table mirrors etcd's `api/v3rpc/rpctypes/error.go`. etcd's clients recognise an error by its exact text, and then
use their own code for this text. So text and code must be etcd's. Errors of shards are passed on unchanged and need no
entry here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from esp.core.keys import format_key
from esp.core.wire.status import Code, Status
from esp.core.wording import shard_called, shards_called

# KV
KEY_NOT_PROVIDED = Status(Code.INVALID_ARGUMENT, "etcdserver: key is not provided")
KEY_NOT_FOUND = Status(Code.INVALID_ARGUMENT, "etcdserver: key not found")
VALUE_PROVIDED = Status(Code.INVALID_ARGUMENT, "etcdserver: value is provided")
LEASE_PROVIDED = Status(Code.INVALID_ARGUMENT, "etcdserver: lease is provided")
TOO_MANY_OPS = Status(Code.INVALID_ARGUMENT, "etcdserver: too many operations in txn request")
DUPLICATE_KEY = Status(Code.INVALID_ARGUMENT, "etcdserver: duplicate key given in txn request")
INVALID_SORT_OPTION = Status(Code.INVALID_ARGUMENT, "etcdserver: invalid sort option")
COMPACTED = Status(Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted")
FUTURE_REV = Status(Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision")
NO_SPACE = Status(Code.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded")
LEASE_NOT_FOUND = Status(Code.NOT_FOUND, "etcdserver: requested lease not found")
LEASE_EXISTS = Status(Code.FAILED_PRECONDITION, "etcdserver: lease already exists")
# A member's answer to a keepalive if it stops being the leader meanwhile; this text is not in etcd's table.
NOT_PRIMARY = Status(Code.UNKNOWN, "not a primary lessor")
STREAM_SORT = Status(Code.UNIMPLEMENTED, "RangeStream does not support custom sort orders")
STREAM_FILTER = Status(Code.UNIMPLEMENTED, "RangeStream does not support revision filters")

# Any RPC
INVALID_API_VERSION = Status(Code.INVALID_ARGUMENT, "etcdserver: invalid client api version")
REQUEST_TOO_LARGE = Status(Code.INVALID_ARGUMENT, "etcdserver: request is too large")
# The code of etcd's table. An etcd sends this one text as UNKNOWN, because its server maps it to the wrong side
# of that table; clients look at the text.
TOO_MANY_REQUESTS = Status(Code.RESOURCE_EXHAUSTED, "etcdserver: too many requests")
PERMISSION_DENIED = Status(Code.PERMISSION_DENIED, "etcdserver: permission denied")
INVALID_AUTH_TOKEN = Status(Code.UNAUTHENTICATED, "etcdserver: invalid auth token")
AUTH_OLD_REVISION = Status(Code.INVALID_ARGUMENT, "etcdserver: revision of auth store is old")
USER_EMPTY = Status(Code.INVALID_ARGUMENT, "etcdserver: user name is empty")
AUTH_NOT_ENABLED = Status(Code.FAILED_PRECONDITION, "etcdserver: authentication is not enabled")
ROOT_USER_NOT_EXIST = Status(Code.FAILED_PRECONDITION, "etcdserver: root user does not exist")
ROOT_ROLE_NOT_EXIST = Status(Code.FAILED_PRECONDITION, "etcdserver: root user does not have root role")
PERMISSION_NOT_GIVEN = Status(Code.INVALID_ARGUMENT, "etcdserver: permission not given")
USER_NOT_FOUND = Status(Code.FAILED_PRECONDITION, "etcdserver: user name not found")
ROLE_NOT_FOUND = Status(Code.FAILED_PRECONDITION, "etcdserver: role name not found")
NO_LEADER = Status(Code.UNAVAILABLE, "etcdserver: no leader")
LEADER_CHANGED = Status(Code.UNAVAILABLE, "etcdserver: leader changed")
SERVER_STOPPED = Status(Code.UNAVAILABLE, "etcdserver: server stopped")
REQUEST_TIMED_OUT = Status(Code.UNAVAILABLE, "etcdserver: request timed out")
TIMED_OUT_LEADER_FAILED = Status(
    Code.UNAVAILABLE, "etcdserver: request timed out, possibly due to previous leader failure"
)
TIMED_OUT_CONNECTION_LOST = Status(Code.UNAVAILABLE, "etcdserver: request timed out, possibly due to connection lost")
UNHEALTHY = Status(Code.UNAVAILABLE, "etcdserver: unhealthy cluster")
CANCELED = Status(Code.CANCELLED, "etcdserver: request canceled")

# A text of etcd's client, not of its server. This is the only text after which the client sends a write again, so it is
# only for requests that surely never left esp.
NO_CONNECTION = Status(Code.UNAVAILABLE, "there is no connection available")

# A shard has refused the comparison of its guard: nothing was done. Clients hear of it only if no newer map is found.
MAP_CHANGED = Status(Code.UNAVAILABLE, "esp: the map of the shards has changed; nothing was done, send the call again")

MAP_CHANGED_MEANWHILE = "the map of the shards has changed meanwhile"

# The answer of gRPC's health service about a service other than "".
UNKNOWN_SERVICE = Status(Code.NOT_FOUND, "unknown service")

# The answer of an esp to another esp that takes it for an etcd.
IS_ESP = Status(Code.FAILED_PRECONDITION, "esp: this is an esp, and no etcd that could be a shard")

# After these, etcd's client authenticates anew and sends the call once more, writes included. So esp may use them only
# if the call has changed nothing on any shard.
STALE_TOKEN = frozenset((INVALID_AUTH_TOKEN, AUTH_OLD_REVISION, USER_EMPTY))

_NAMES_SHOWN = 8
_ANSWER_OF = "esp: the answer of "


def garbled(shard: str, fault: str) -> Status:
    """The status of a call to which a shard gave an answer that no etcd would give."""
    return Status(Code.INTERNAL, f"{_ANSWER_OF}{shard_called(shard)} {fault}")


def is_unreachable(status: Status) -> bool:
    """Whether `status` leaves open what the shard has done: it is unreachable, has no leader, or answers garbage."""
    if status.code == Code.INTERNAL:
        return status.message.startswith(_ANSWER_OF)
    return status.code == Code.UNAVAILABLE or status == NOT_PRIMARY


def is_esp(status: Status) -> bool:
    """Whether the answer to a Status call is that of an esp, perhaps of a later version with a longer text."""
    return status.code == Code.FAILED_PRECONDITION and status.message.startswith("esp: ")


def leads_to_esp(shard: str, endpoints: str) -> Status:
    """The refusal of calls to a shard whose endpoints are all esps; Unavailable, because nothing was sent."""
    text = f"esp: {shard_called(shard)} leads to an esp, this one or another ({endpoints}); "
    text += "name its etcds as its endpoints"
    return Status(Code.UNAVAILABLE, text)


def not_in_config(shard: str) -> Status:
    """The refusal of calls to a shard that the map in the shards names and the config does not."""
    text = f"esp: the map in the shards names {shard_called(shard)}, and this proxy's config does not"
    return Status(Code.UNAVAILABLE, f"{text}; add it to the config")


OWN_KEYS = Status(
    Code.INVALID_ARGUMENT, "esp: keys that begin with a zero byte are esp's own where the shards hold the map"
)


_KEY_SHOWN = 64


def before_move(key: bytes, last: int) -> Status:
    """The refusal of a comparison by order, or a filter, with a revision of before a range came to its shard."""
    text = (
        f"esp: {_named(key)} has come from another shard, and revisions up to {last} are of before: none can be "
        "ordered with those of now; read the keys anew, and go by their present revisions"
    )
    return Status(Code.FAILED_PRECONDITION, text)


def version_before_move(key: bytes) -> Status:
    """The refusal of a comparison of versions in a range that has come from another shard."""
    text = (
        f"esp: {_named(key)} has come from another shard, where versions count anew; compare its mod_revision, or its "
        "version with 0, to know whether it is there"
    )
    return Status(Code.FAILED_PRECONDITION, text)


def _named(key: bytes) -> str:
    shown = format_key(key[:_KEY_SHOWN])
    return f'the key "{shown}..."' if len(key) > _KEY_SHOWN else f'the key "{shown}"'


def lease_unsettled(what: str) -> Status:
    """The answer to a write if its shard lacks the lease, and the lease may live; Unavailable: nothing was written."""
    return Status(Code.UNAVAILABLE, f"esp: {what}; nothing was written, send the call again")


def undecided(status: Status) -> Status:
    """A shard's status, with "request timed out" in place of DeadlineExceeded.

    For a deadline that esp has set, not the client. On DeadlineExceeded etcd's clients send any request again, writes
    included.
    """
    return REQUEST_TIMED_OUT if status.code == Code.DEADLINE_EXCEEDED else status


def spans(what: str, shard_names: Sequence[str], boundary: bytes, cure: str = "") -> Status:
    """The refusal of a request over several shards that esp cannot answer exactly.

    Args:
        what: The kind of request, such as "a transaction"; the text begins with it.
        shard_names: The shards that own the request's keys, in key order.
        boundary: A boundary between these shards, where the request would have to be cut.
        cure: A clause that says what the client can do instead; empty when nothing helps.

    The code is FailedPrecondition, because after that no client of etcd repeats the request.
    """
    names = list(dict.fromkeys(shard_names))
    shown = shards_called(names, _NAMES_SHOWN, "the shards")
    text = f'esp: {what} spans {shown} (boundary "{format_key(boundary)}")'
    return Status(Code.FAILED_PRECONDITION, f"{text}; {cure}" if cure else text)


def leaves_out(what: str, shard_names: Sequence[str]) -> Status:
    """The refusal of a request for all shards at a token that has no revision for some of them."""
    shown = shards_called(shard_names, _NAMES_SHOWN, "the shards")
    text = (
        f"esp: {what} at this revision leaves out {shown}; take the revision of an answer over all shards, "
        "such as a count of all keys"
    )
    return Status(Code.FAILED_PRECONDITION, text)


def differ(what: str, groups: Iterable[Sequence[str]]) -> Status:
    """The refusal of a question to which the shards give different answers; the shards of a group agree."""
    shown = " | ".join(", ".join(names[:_NAMES_SHOWN]) for names in groups)
    cure = "esp check tells how they differ, mend it at the shards themselves (esp exec SHARD -- etcdctl ...)"
    return Status(Code.FAILED_PRECONDITION, f"esp: {what} on all shards ({shown}); {cure}")
