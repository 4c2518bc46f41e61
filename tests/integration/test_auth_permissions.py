"""Random permissions and random calls: over three shards a user is permitted exactly what one etcd permits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from esp.core.pb import auth_pb2, rpc_pb2
from tests.harness import Etcds, running_esps
from tests.integration.test_auth import QUICK, Client, permission, set_up, told, watching

PROGRAMS = int(os.environ.get("ESP_TEST_PROGRAMS", "0")) or 25
BOUNDARIES = ["h", "m"]
EDGES = [b"a", b"c", b"h", b"h\0", b"k", b"m", b"m\0", b"p", b"z"]
"""Keys, and bounds of ranges and of permissions: at, behind and between the boundaries of the shards."""
RANGES = st.tuples(st.sampled_from(EDGES), st.sampled_from([b"", b"\0", *EDGES, b"\xff"]))
GRANTS = st.lists(st.tuples(RANGES, st.sampled_from(auth_pb2.Permission.Type.values())), max_size=4)


def ranges(key: bytes, end: bytes) -> rpc_pb2.RangeRequest:
    return rpc_pb2.RangeRequest(key=key, range_end=end)


def deletes(key: bytes, end: bytes, prev_kv: bool) -> rpc_pb2.DeleteRangeRequest:
    return rpc_pb2.DeleteRangeRequest(key=key, range_end=end, prev_kv=prev_kv)


CALLS = st.one_of(
    st.builds(lambda keys: ("KV/Range", ranges(*keys)), RANGES),
    st.builds(lambda keys, prev_kv: ("KV/DeleteRange", deletes(*keys, prev_kv)), RANGES, st.booleans()),
    st.builds(
        lambda key, prev_kv: ("KV/Put", rpc_pb2.PutRequest(key=key, value=b"v", prev_kv=prev_kv)),
        st.sampled_from(EDGES),
        st.booleans(),
    ),
    st.builds(
        lambda success, failure: (
            "KV/Txn",
            rpc_pb2.TxnRequest(
                success=[rpc_pb2.RequestOp(request_range=ranges(*keys)) for keys in success],
                failure=[rpc_pb2.RequestOp(request_range=ranges(*keys)) for keys in failure],
            ),
        ),
        st.lists(RANGES, max_size=2),
        st.lists(RANGES, max_size=2),
    ),
    st.builds(lambda keys: ("Watch", keys), RANGES),
)


@pytest.fixture(scope="module")
def both(module_etcds: Etcds, tmp_path_factory: pytest.TempPathFactory, etcd_binary: Path) -> Iterator[list[Client]]:
    """Clients of one etcd and of esp over three, with the users of `set_up`."""
    one, *shards = module_etcds.several(4, QUICK)
    with running_esps(tmp_path_factory.mktemp("permissions"), etcd_binary) as esps:
        clients = [Client(one), Client(esps(shards, BOUNDARIES))]
        for client in clients:
            set_up(client)
        yield clients


def begin(client: Client, grants: list[tuple[tuple[bytes, bytes], int]]) -> None:
    """Gives alice these permissions and no others, and writes all keys."""
    for held in client.auth("RoleGet", role="alice").perm:
        client.auth("RoleRevokePermission", role="alice", key=held.key, range_end=held.range_end)
    for (key, range_end), kind in grants:
        perm = auth_pb2.Permission(key=key, range_end=range_end, permType=kind)  # type: ignore[arg-type]
        client.auth("RoleGrantPermission", name="alice", perm=perm)
    assert isinstance(client.call("KV/DeleteRange", deletes(b"\0", b"\0", False), "root"), Message)
    for key in EDGES:
        client.call("KV/Put", rpc_pb2.PutRequest(key=key, value=key), "root")


def outcome(client: Client, path: str, request: Any) -> Any:
    """What came of a call of alice; of a watch, whether it was permitted; of a transaction, what it has read."""
    if path == "Watch":
        with watching(client, *request, "alice") as answers:
            answer = next(answers)
            return answer.created, answer.canceled, answer.cancel_reason
    answer = client.call(path, request, "alice")
    if isinstance(answer, rpc_pb2.TxnResponse):
        return [told(each.response_range) for each in answer.responses]
    return told(answer)


@settings(
    max_examples=PROGRAMS,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    derandomize="ESP_TEST_PROGRAMS" not in os.environ,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(grants=GRANTS, calls=st.lists(CALLS, min_size=6, max_size=12))
def test_a_user_is_permitted_what_one_etcd_permits(
    both: list[Client], grants: list[tuple[tuple[bytes, bytes], int]], calls: list[tuple[str, Any]]
) -> None:
    one, esp = both
    for client in both:
        begin(client, grants)
    for path, request in calls:
        assert outcome(esp, path, request) == outcome(one, path, request), (path, request)
    everything = ranges(b"\0", b"\0")
    assert told(esp.call("KV/Range", everything, "root")) == told(one.call("KV/Range", everything, "root"))


def test_the_permissions_of_the_program_are_granted(both: list[Client]) -> None:
    for client in both:
        begin(client, [((b"c", b"p"), 2)])
        assert client.auth("RoleGet", role="alice").perm == [permission("c", "p")]
