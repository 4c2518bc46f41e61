"""What a shard's answers to Status leave behind."""

from __future__ import annotations

from esp.core.pb import rpc_pb2
from esp.core.shard.cluster import Cluster


def status(version: str) -> bytes:
    header = rpc_pb2.ResponseHeader(cluster_id=1, member_id=2, revision=3, raft_term=1)
    return rpc_pb2.StatusResponse(header=header, version=version, leader=2).SerializeToString()


def test_the_version_is_another_object_only_for_another_member() -> None:
    """Joined reads begin anew with another object; a member is asked for its status every two seconds."""
    cluster = Cluster("a")
    cluster.take_status(status("3.5.7"))
    first = cluster.version_in_use
    assert cluster.take_status(status("3.5.7")) == "3.5.7"
    assert cluster.version_in_use is first
    cluster.forget_member()
    cluster.take_status(status("3.5.7"))
    assert cluster.version_in_use == cluster.version == "3.5.7"
    assert cluster.version_in_use is not first
    cluster.take_status(status("3.6.0"))
    assert cluster.version_in_use == "3.6.0"
