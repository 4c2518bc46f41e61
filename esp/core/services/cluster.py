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


Members = Callable[[], Mapping[str, Sequence[str]]]
"""Gives the URLs of each registered proxy, by its id; nothing where proxies do not register."""


def handlers(
    identity: Identity, advertised: Callable[[], Sequence[str]], members: Members = dict
) -> Mapping[bytes, Handler]:
    """The handler of MemberList, by path.

    All proxies in front of the same shards answer under one member id. Where they do not know each other they are one
    member here, with the advertised URLs as its client URLs; else each is a member. Each call is answered from what is
    known here, with or without `linearizable`.

    Args:
        identity: the ids under which esp answers.
        advertised: gives the URLs under which clients reach this proxy; none if they are not known.
        members: the proxies that know each other, this one among them.
    """

    def answer(_: rpc_pb2.MemberListRequest) -> rpc_pb2.MemberListResponse:
        urls, registered = advertised(), members()
        if not urls and not registered:
            raise NOT_ADVERTISED.error()
        header = rpc_pb2.ResponseHeader(cluster_id=identity.cluster_id, member_id=identity.member_id)
        if not registered:
            member = rpc_pb2.Member(ID=identity.member_id, name=NAME, clientURLs=urls)
            return rpc_pb2.MemberListResponse(header=header, members=[member])
        every = [
            rpc_pb2.Member(ID=int(proxy, 16) >> 1 or 1, name=f"{NAME}-{proxy[:8]}", clientURLs=some)
            for proxy, some in sorted(registered.items())
        ]
        return rpc_pb2.MemberListResponse(header=header, members=every)

    return {MEMBER_LIST: Local(rpc_pb2.MemberListRequest, answer)}
