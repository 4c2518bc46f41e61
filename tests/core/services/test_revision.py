from __future__ import annotations

from esp.core.identity import Identity
from esp.core.pb import rpc_pb2
from esp.core.services.revision import merged_header

Header = rpc_pb2.ResponseHeader


def test_the_lowest_revision_and_the_highest_term_stand_for_all() -> None:
    headers = [
        Header(cluster_id=1, member_id=2, revision=9, raft_term=3),
        Header(cluster_id=3, member_id=4, revision=7, raft_term=5),
        Header(cluster_id=5, member_id=6, revision=8, raft_term=4),
    ]
    expected = Header(cluster_id=2**64 - 1, member_id=11, revision=7, raft_term=5)
    assert merged_header(headers, Identity(2**64 - 1, 11)) == expected
