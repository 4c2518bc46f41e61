"""The paths of etcd's JSON gateway, and the RPC behind each.

The pages of etcd's API have them as `google.api.http` options; esp's protos are without options, so they stand here.
"""

from __future__ import annotations

from typing import Final

from google.protobuf.descriptor import MethodDescriptor

from esp.core.services.router import METHODS, WAITING

_OF: Final = {
    "etcdserverpb.KV": {
        "kv/range": "Range",
        "kv/put": "Put",
        "kv/deleterange": "DeleteRange",
        "kv/txn": "Txn",
        "kv/compaction": "Compact",
    },
    "etcdserverpb.Watch": {"watch": "Watch"},
    "etcdserverpb.Lease": {
        "lease/grant": "LeaseGrant",
        "lease/revoke": "LeaseRevoke",
        "kv/lease/revoke": "LeaseRevoke",
        "lease/keepalive": "LeaseKeepAlive",
        "lease/timetolive": "LeaseTimeToLive",
        "kv/lease/timetolive": "LeaseTimeToLive",
        "lease/leases": "LeaseLeases",
        "kv/lease/leases": "LeaseLeases",
    },
    "etcdserverpb.Cluster": {
        "cluster/member/add": "MemberAdd",
        "cluster/member/remove": "MemberRemove",
        "cluster/member/update": "MemberUpdate",
        "cluster/member/list": "MemberList",
        "cluster/member/promote": "MemberPromote",
    },
    "etcdserverpb.Maintenance": {
        "maintenance/alarm": "Alarm",
        "maintenance/status": "Status",
        "maintenance/defragment": "Defragment",
        "maintenance/hash": "Hash",
        "maintenance/hashkv": "HashKV",
        "maintenance/snapshot": "Snapshot",
        "maintenance/transfer-leadership": "MoveLeader",
        "maintenance/downgrade": "Downgrade",
    },
    "etcdserverpb.Auth": {
        "auth/enable": "AuthEnable",
        "auth/disable": "AuthDisable",
        "auth/status": "AuthStatus",
        "auth/authenticate": "Authenticate",
        "auth/user/add": "UserAdd",
        "auth/user/get": "UserGet",
        "auth/user/list": "UserList",
        "auth/user/delete": "UserDelete",
        "auth/user/changepw": "UserChangePassword",
        "auth/user/grant": "UserGrantRole",
        "auth/user/revoke": "UserRevokeRole",
        "auth/role/add": "RoleAdd",
        "auth/role/get": "RoleGet",
        "auth/role/list": "RoleList",
        "auth/role/delete": "RoleDelete",
        "auth/role/grant": "RoleGrantPermission",
        "auth/role/revoke": "RoleRevokePermission",
    },
    "v3lockpb.Lock": {"lock/lock": "Lock", "lock/unlock": "Unlock"},
    "v3electionpb.Election": {
        "election/campaign": "Campaign",
        "election/proclaim": "Proclaim",
        "election/leader": "Leader",
        "election/observe": "Observe",
        "election/resign": "Resign",
    },
}

PATHS: Final = {
    f"/v3/{path}": f"/{service}/{method}".encode() for service, paths in _OF.items() for path, method in paths.items()
}
"""The path of each RPC in gRPC, by the path in the gateway."""

WATCH: Final = PATHS["/v3/watch"]


class Rpc:
    """An RPC as the gateway calls it.

    Attributes:
        path: the path in gRPC.
        method: the descriptor.
        takes_stream, gives_stream: whether the client sends several requests, and gets several answers.
        lasts: a call may stay open for hours, so it ends when its client sends no more.
    """

    __slots__ = ("gives_stream", "lasts", "method", "path", "takes_stream")

    def __init__(self, path: bytes) -> None:
        self.path = path
        self.method: MethodDescriptor = METHODS[path]
        self.takes_stream: bool = self.method.client_streaming
        self.gives_stream: bool = self.method.server_streaming
        self.lasts = self.takes_stream or self.gives_stream or path in WAITING


RPCS: Final = {path: Rpc(name) for path, name in PATHS.items()}
"""The RPC of each path in the gateway."""
