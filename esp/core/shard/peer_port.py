"""Recognises the port that etcd keeps for its members.

Until 3.5 this port answers calls of clients as well, up to a point: it has no Lock and no Election, and etcd 3.6 has
closed it. So a shard on such a port would work, until an upgrade. Other servers with etcd's API may have no Lock
either, so the page `/members` of the port decides (`strangers`).
"""

from __future__ import annotations

import re
from typing import Final

from esp.core.shard.member import ask_once
from esp.core.wire.call import BrokenCall
from esp.core.wire.client import ClientConnection
from esp.core.wire.status import Code, RpcError

_LAST_VERSION: Final = (3, 5)
"""The last version of etcd whose peer port answers calls of clients."""
_NO_METHOD: Final = b"/v3lockpb.Lock/Esp", b""
"""A call of a method that does not exist, which changes nothing; the answer tells whether the service does."""


def may_be_peer_port(version: str) -> bool:
    """Whether a server that has told its status, and this version, may be at a peer port."""
    match = re.match(r"(\d{1,9})\.(\d{1,9})", version)
    return match is not None and (int(match[1]), int(match[2])) <= _LAST_VERSION


async def has_no_lock(connection: ClientConnection, seconds: float) -> bool:
    """Whether the server has no service Lock, as is so at a peer port; False if it does not answer in time."""
    try:
        await ask_once(connection, _NO_METHOD, b"", seconds)
    except RpcError as error:
        return error.status.code == Code.UNIMPLEMENTED and "unknown service" in error.status.message
    except (BrokenCall, TimeoutError):
        pass
    return False
