"""MemberList, answered by esp itself."""

from __future__ import annotations

import pytest

from esp.core.identity import Identity
from esp.core.pb import rpc_pb2
from esp.core.services import cluster
from esp.core.services.cluster import MEMBER_LIST, NOT_ADVERTISED
from tests.core.wire.conversation import body, call, data, headers, meet, message, refusal


class World:
    """A client of a proxy with these URLs."""

    def __init__(self, *urls: str) -> None:
        handlers = cluster.handlers(Identity(7, 8), lambda: urls)
        self.client, self.server = meet(find=lambda head: handlers[head.path])

    def asks(self, request: bytes) -> None:
        self.client.sends(headers(1, call(MEMBER_LIST)), data(1, message(request), end=True))


@pytest.mark.parametrize("linearizable", [False, True])
def test_one_member_has_all_urls(linearizable: bool) -> None:
    world = World("http://a:1", "http://b:1")
    world.asks(rpc_pb2.MemberListRequest(linearizable=linearizable).SerializeToString())
    assert rpc_pb2.MemberListResponse.FromString(body(world.server.frames(), 1)[5:]) == rpc_pb2.MemberListResponse(
        header=rpc_pb2.ResponseHeader(cluster_id=7, member_id=8),
        members=[rpc_pb2.Member(ID=8, name="esp", clientURLs=["http://a:1", "http://b:1"])],
    )


def test_without_a_url_there_is_no_list_that_would_leave_a_client_without_endpoints() -> None:
    world = World()
    world.asks(b"")
    world.server.answers(refusal(1, NOT_ADVERTISED.code, NOT_ADVERTISED.message))


def test_bytes_that_are_no_request_are_refused() -> None:
    world = World("http://a:1")
    world.asks(b"\xff")
    said = world.server.says()
    assert b"grpc-status\x0213" in said
    assert b"grpc: error unmarshalling request: " in said
