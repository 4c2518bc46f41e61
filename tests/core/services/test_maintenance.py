from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from esp.core import errors
from esp.core.identity import Identity
from esp.core.pb import rpc_pb2
from esp.core.services import maintenance
from esp.core.services.maintenance import merge_status, version_key
from esp.core.shard import Method
from esp.core.tokens import Tokens, Vector
from esp.core.wire.context import WireContext
from esp.core.wire.limits import Limits
from esp.core.wire.status import RpcError

Status = rpc_pb2.StatusResponse
Header = rpc_pb2.ResponseHeader


@pytest.fixture
def routing() -> Any:
    """As much of a Routing as a merge looks at."""
    layout = SimpleNamespace(vector=lambda found: Vector(("a", "b"), (found.get("a", 0), found.get("b", 0))))
    tokens = Tokens(WireContext(Limits()), instance=1)
    return SimpleNamespace(layout=layout, identity=Identity(7, 8), tokens=tokens)


ONE = Status(
    header=Header(cluster_id=1, member_id=2, revision=30, raft_term=2),
    version="3.5.9",
    dbSize=100,
    dbSizeInUse=60,
    dbSizeQuota=1000,
    leader=2,
    raftIndex=50,
    raftTerm=2,
    raftAppliedIndex=49,
)
OTHER = Status(
    header=Header(cluster_id=3, member_id=4, revision=5, raft_term=9),
    version="3.5.21",
    storageVersion="3.6.0",
    dbSize=11,
    dbSizeInUse=10,
    leader=4,
    raftIndex=7,
    raftTerm=9,
    raftAppliedIndex=7,
    errors=["memberID:4 alarm:NOSPACE"],
)


def outcomes(a: Any, b: Any) -> dict[str, Any]:
    return {"a": a, "b": b}


def test_sizes_add_up_and_the_lowest_version_counts(routing: Any) -> None:
    merged = merge_status(routing, outcomes(ONE, OTHER))
    token = merged.header.revision
    assert routing.tokens.position(token).vector.revisions == (30, 5)
    assert merged == Status(
        header=Header(cluster_id=7, member_id=8, revision=token, raft_term=9),
        version="3.5.9",
        storageVersion="",
        dbSize=111,
        dbSizeInUse=70,
        dbSizeQuota=0,
        leader=8,
        raftIndex=50,
        raftTerm=9,
        raftAppliedIndex=49,
        errors=["shard b: memberID:4 alarm:NOSPACE"],
    )


def test_quotas_add_up_where_all_tell_them(routing: Any) -> None:
    other = Status()
    other.CopyFrom(OTHER)
    other.dbSizeQuota = 7
    assert merge_status(routing, outcomes(ONE, other)).dbSizeQuota == 1007


def test_a_shard_that_does_not_answer_is_an_error_and_no_failure(routing: Any) -> None:
    merged = merge_status(routing, outcomes(ONE, errors.NO_CONNECTION))
    assert merged.leader == 0
    assert list(merged.errors) == ["shard b: there is no connection available"]
    assert routing.tokens.position(merged.header.revision).vector.revisions == (30, 0)


def test_a_shard_without_a_leader_leaves_the_whole_without_one(routing: Any) -> None:
    headless = Status()
    headless.CopyFrom(OTHER)
    headless.leader = 0
    assert merge_status(routing, outcomes(ONE, headless)).leader == 0


def test_when_no_shard_answers_the_call_fails_as_the_first(routing: Any) -> None:
    with pytest.raises(RpcError) as caught:
        merge_status(routing, outcomes(errors.NO_LEADER, errors.NO_CONNECTION))
    assert caught.value.status == errors.NO_LEADER


def test_a_downgrade_anywhere_is_told(routing: Any) -> None:
    going = Status()
    going.CopyFrom(OTHER)
    going.downgradeInfo.enabled = True
    going.downgradeInfo.targetVersion = "3.5.0"
    assert cast("Status", merge_status(routing, outcomes(ONE, going))).downgradeInfo == going.downgradeInfo


def test_that_there_is_no_downgrade_is_told_if_all_shards_know_downgrades(routing: Any) -> None:
    assert not merge_status(routing, outcomes(ONE, OTHER)).HasField("downgradeInfo")
    newer, going = Status(), Status()
    newer.downgradeInfo.SetInParent()
    going.downgradeInfo.enabled = True
    assert not merge_status(routing, outcomes(ONE, newer)).HasField("downgradeInfo")  # as of the lowest version
    assert merge_status(routing, outcomes(newer, newer)).HasField("downgradeInfo")
    assert merge_status(routing, outcomes(newer, going)).downgradeInfo.enabled
    assert merge_status(routing, outcomes(going, newer)).downgradeInfo.enabled


def test_versions_are_ordered_by_their_numbers() -> None:
    ordered = ["", "3.4.31", "3.5.9", "3.5.21", "3.6.0-rc.1", "3.10.0"]
    shuffled = [ordered[place] for place in (3, 0, 5, 2, 4, 1)]
    assert sorted(shuffled, key=version_key) == ordered


@pytest.mark.parametrize("idempotent", [True, False])
def test_each_rpc_has_a_time_out_of_its_own_and_reads_are_counted(
    routing: Any, monkeypatch: pytest.MonkeyPatch, idempotent: bool
) -> None:
    asked: dict[str, Any] = {}

    async def ask_all(*_: object, **how: Any) -> dict[str, Any]:
        asked.update(how)
        return {}

    monkeypatch.setattr(maintenance, "ask_all", ask_all)
    method = Method(b"/some.Service/Call", Status, idempotent=idempotent)
    merged = maintenance.Merged(method, rpc_pb2.StatusRequest, lambda *_: ONE, 7.5)
    call = SimpleNamespace(metadata=b"m", stream=object(), seconds=lambda most: most)
    routing.shards = {}
    assert asyncio.run(maintenance.ask_for(routing, merged, cast("Any", call), rpc_pb2.StatusRequest())) == ONE
    assert asked["seconds"] == 7.5
    assert asked["down"] is (call.stream if idempotent else None)
    assert asked["caller"] is call
