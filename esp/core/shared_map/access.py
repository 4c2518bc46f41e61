"""The right of clients to have the guard compared, where auth is on.

etcd checks a comparison as a read of its key by the client's user. So each role needs the right to read the guard. A
user without a role may do nothing, and the role `root` may do everything.
"""

from __future__ import annotations

from esp.core.pb import auth_pb2, rpc_pb2
from esp.core.shard import (
    AUTH_STATUS,
    GUARD_KEY,
    GUARD_PERMISSION,
    ROLE_GET,
    ROLE_GRANT_PERMISSION,
    ROLE_LIST,
    Shard,
    ask_for_esp,
)
from esp.core.wire.status import Code, RpcError


async def is_auth_on(shard: Shard, seconds: float) -> bool:
    """Whether auth is on. An etcd 3.4 does not tell; there it is on if esp had to log in before.

    Raises:
        RpcError: the shard's, as it came.
    """
    try:
        return (await ask_for_esp(shard, AUTH_STATUS, rpc_pb2.AuthStatusRequest(), seconds=seconds)).enabled
    except RpcError as error:
        if error.status.code != Code.UNIMPLEMENTED:
            raise
        return shard.is_logged_in


async def roles_without(shard: Shard, seconds: float) -> list[str]:
    """The roles that may not read the guard.

    Raises:
        RpcError: the shard's, as it came.
    """
    found = []
    for role in (await ask_for_esp(shard, ROLE_LIST, rpc_pb2.AuthRoleListRequest(), seconds=seconds)).roles:
        if role == "root":
            continue
        told = await ask_for_esp(shard, ROLE_GET, rpc_pb2.AuthRoleGetRequest(role=role), seconds=seconds)
        if not any(_covers(permission) for permission in told.perm):
            found.append(role)
    return found


async def grant(shard: Shard, role: str, seconds: float) -> None:
    """Gives a role the right to read the guard.

    Raises:
        RpcError: the shard's, as it came.
    """
    request = rpc_pb2.AuthRoleGrantPermissionRequest(name=role, perm=GUARD_PERMISSION)
    await ask_for_esp(shard, ROLE_GRANT_PERMISSION, request, seconds=seconds)


def _covers(permission: auth_pb2.Permission) -> bool:
    key, end = permission.key, permission.range_end
    if permission.permType == auth_pb2.Permission.WRITE:
        return False
    return key == GUARD_KEY if not end else key <= GUARD_KEY and (end == b"\0" or end > GUARD_KEY)
