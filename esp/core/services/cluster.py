"""The Cluster service over several shards: its members are proxies, never a shard's.

A client that took a shard's members for its endpoints would read and write past the proxy, on the wrong shard.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from esp.core.identity import Identity
from esp.core.pb import rpc_pb2
from esp.core.services.handlers import Local
from esp.core.wire.server_stream import Handler
from esp.core.wire.status import Code, Status

MEMBER_LIST: Final = b"/etcdserverpb.Cluster/MemberList"
NAME: Final = "esp"
"""The member's name. Clients leave out a member without a name, as one that has not started."""
NOT_ADVERTISED: Final = Status(
    Code.FAILED_PRECONDITION,
    "esp: this proxy does not know under which URL clients reach it, since it listens on a wildcard address; "
    "write advertise: [http://HOST:PORT] in its config",
)


def handlers(identity: Identity, advertised: Callable[[], Sequence[str]]) -> Mapping[bytes, Handler]:
    """The handler of MemberList, by path.

    All proxies in front of the same shards answer under one member id. So they are one member here, with the advertised
    URLs as its client URLs. Each call is answered from the config, with or without `linearizable`.

    Args:
        identity: the ids under which esp answers.
        advertised: gives the URLs under which clients reach this proxy; none if they are not known.
    """

    def answer(_: rpc_pb2.MemberListRequest) -> rpc_pb2.MemberListResponse:
        urls = advertised()
        if not urls:
            raise NOT_ADVERTISED.error()
        header = rpc_pb2.ResponseHeader(cluster_id=identity.cluster_id, member_id=identity.member_id)
        member = rpc_pb2.Member(ID=identity.member_id, name=NAME, clientURLs=urls)
        return rpc_pb2.MemberListResponse(header=header, members=[member])

    return {MEMBER_LIST: Local(rpc_pb2.MemberListRequest, answer)}
