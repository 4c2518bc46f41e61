"""Puts handlers behind a look at requests, where the shards hold the map: none is for keys or with leases of esp's own.

Every handler that the router finds goes through `around`, also those that a client's `esp-shard` names. KV's clip
ranges (`kv.clipping`), the Watch service does so itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from esp.core import errors
from esp.core.keys import OPEN_END
from esp.core.own_keys import FIRST, is_own, is_own_lease, may_name_lease
from esp.core.pb import rpc_pb2, v3election_pb2, v3lock_pb2
from esp.core.services.handlers import Around, PassStream, parse
from esp.core.services.kv import without_own_keys
from esp.core.services.watch import PATH as WATCH
from esp.core.wire.message import PREFIX_SIZE
from esp.core.wire.server_stream import Handler, Refuse, ServerCall
from esp.core.wire.status import Code, RpcError, Status

RANGE_STREAM: Final = b"/etcdserverpb.KV/RangeStream"
OBSERVE: Final = b"/v3electionpb.Election/Observe"
ROLE_ADD: Final = b"/etcdserverpb.Auth/RoleAdd"
ROLE_GET: Final = b"/etcdserverpb.Auth/RoleGet"
AUTH_ENABLE: Final = b"/etcdserverpb.Auth/AuthEnable"
NEVER_PASSED: Final = frozenset((WATCH, RANGE_STREAM, OBSERVE, ROLE_ADD, ROLE_GET, AUTH_ENABLE))
"""RPCs that esp serves with one shard, too: it must look into them."""
_STREAMS: Final = frozenset((WATCH, RANGE_STREAM, OBSERVE))

Touches = Callable[[Any], bool]
"""Whether a request is for keys of esp's own."""


def _name(request: Any) -> bool:
    return is_own(request.name)


def _key(request: Any) -> bool:
    return is_own(request.key)


def _leader(request: Any) -> bool:
    return is_own(request.leader.key) or is_own(request.leader.name)


def _nothing(_: Any) -> bool:
    return False


def _lease(request: Any) -> int:
    """The lease that a request names; 0 for none."""
    if isinstance(request, (rpc_pb2.LeaseGrantRequest, rpc_pb2.LeaseRevokeRequest)):
        return request.ID
    holder = request.leader if hasattr(request, "leader") else request
    lease: int = getattr(holder, "lease", 0)
    return lease


def _granted(request: Any) -> bool:
    return _permission(request.perm)


def _permission(permission: Any) -> bool:
    """Whether a permission is for keys of esp's own in particular; one for all keys is not."""
    key, range_end = permission.key, permission.range_end
    return is_own(key) and (key != b"\0" or not (range_end == OPEN_END or range_end > FIRST))


_LOOKED_INTO: Final[Mapping[bytes, tuple[type[Message], Touches]]] = {
    b"/v3lockpb.Lock/Lock": (v3lock_pb2.LockRequest, _name),
    b"/v3lockpb.Lock/Unlock": (v3lock_pb2.UnlockRequest, _key),
    b"/v3electionpb.Election/Campaign": (v3election_pb2.CampaignRequest, _name),
    b"/v3electionpb.Election/Proclaim": (v3election_pb2.ProclaimRequest, _leader),
    b"/v3electionpb.Election/Leader": (v3election_pb2.LeaderRequest, _name),
    OBSERVE: (v3election_pb2.LeaderRequest, _name),
    b"/v3electionpb.Election/Resign": (v3election_pb2.ResignRequest, _leader),
    b"/etcdserverpb.Lease/LeaseGrant": (rpc_pb2.LeaseGrantRequest, _nothing),
    b"/etcdserverpb.Lease/LeaseRevoke": (rpc_pb2.LeaseRevokeRequest, _nothing),
    b"/etcdserverpb.Auth/RoleGrantPermission": (rpc_pb2.AuthRoleGrantPermissionRequest, _granted),
    b"/etcdserverpb.Auth/RoleRevokePermission": (rpc_pb2.AuthRoleRevokePermissionRequest, _permission),
}


def around(path: bytes, method: MethodDescriptor | None, handler: Handler) -> Handler:
    """The handler of calls to `path` around `handler`: `handler` itself if the RPC names no keys, or a refusal."""
    if isinstance(handler, Refuse) or handler.is_page:
        return handler
    if isinstance(handler, PassStream) and (method is None or path in _STREAMS):
        text = "cannot be passed on to a shard, since the shards hold the map: esp could not look at its keys"
        return Refuse(Status(Code.UNIMPLEMENTED, f"esp: {path[1:].decode('utf-8', 'replace')} {text}; ask the shard"))
    looked_into = _LOOKED_INTO.get(path)
    if looked_into is not None:
        return _LookedInto(handler, *looked_into)
    return without_own_keys(path, handler)


class _LookedInto(Around):
    """Refuses requests for keys of esp's own."""

    def __init__(self, inner: Handler, request: type[Message], touches: Touches) -> None:
        super().__init__(inner)
        self._request = request
        self._touches = touches

    def on_message(self, stream: ServerCall, message: bytes) -> None:
        """Gives the request on, or refuses it."""
        if may_name_lease(message) or message.find(b"\0", PREFIX_SIZE) >= 0:
            try:
                request = parse(self._request, message)
            except RpcError as error:
                stream.finish(error.status)
                return
            if self._touches(request):
                stream.finish(errors.OWN_KEYS)
                return
            if is_own_lease(_lease(request)):
                is_grant = self._request is rpc_pb2.LeaseGrantRequest
                stream.finish(errors.LEASE_EXISTS if is_grant else errors.LEASE_NOT_FOUND)
                return
        self.inner.on_message(stream, message)
