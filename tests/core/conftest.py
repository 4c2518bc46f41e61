"""etcds that judge what esp makes of KV requests."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

from esp.core.local import LocalEtcd
from tests.harness import connect
from tests.stubs import rpc_pb2_grpc


@pytest.fixture(scope="session", params=["etcd", "etcd37"])
def judge_channel(request: pytest.FixtureRequest) -> Iterator[grpc.Channel]:
    """One etcd that holds all keys: of an old version, and of the newest."""
    with connect(request.getfixturevalue(request.param)) as channel:
        yield channel


@pytest.fixture(scope="session")
def judge(judge_channel: grpc.Channel) -> rpc_pb2_grpc.KVStub:
    return rpc_pb2_grpc.KVStub(judge_channel)


@pytest.fixture(scope="session")
def newest_judge(etcd37: LocalEtcd) -> Iterator[rpc_pb2_grpc.KVStub]:
    with connect(etcd37) as channel:
        yield rpc_pb2_grpc.KVStub(channel)
