"""Locks of etcd3aio, which sorts the keys of a lock by create_revision itself: over a boundary it may have two holders.

tests/integration/test_across_shards.py shows the same step by step, with a lock of the test's own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from esp.core.local import LocalEtcd
from esp.core.pb import rpc_pb2
from tests.foreign.test_trials import run
from tests.harness import Esps, Etcds, Server, connect, foreign
from tests.stubs import rpc_pb2_grpc

ROUNDS = 10
LOCK = "__etcd3aio:lock/"


def trial(server: Server, rounds: int = ROUNDS) -> dict[str, Any]:
    python = foreign("python") / "venv" / "bin" / "python"
    return run(python, Path(__file__).parent / "locks.py", server.address.partition(":")[2], rounds)


@pytest.fixture
def three(start_etcd: Etcds) -> list[LocalEtcd]:
    return start_etcd.several(3)


def test_one_holder_on_etcd(empty_etcd: LocalEtcd) -> None:
    assert trial(empty_etcd) == {"both": 0, "refused": []}


def test_one_holder_where_no_boundary_lies_in_the_prefix(start_esp: Esps, three: list[LocalEtcd]) -> None:
    esp = start_esp(three, ["M", "l"], extra=f'whole: ["{LOCK}"]')
    assert trial(esp) == {"both": 0, "refused": []}


def test_two_holders_over_a_boundary(start_esp: Esps, three: list[LocalEtcd]) -> None:
    """So the trial finds what it is for: the shard of half the keys has counted further than that of the others."""
    with connect(three[0]) as channel:
        for _ in range(200):
            rpc_pb2_grpc.KVStub(channel).Put(rpc_pb2.PutRequest(key=b"a"))
    esp = start_esp(three, [f"{LOCK}it/4", "l"])
    assert trial(esp, 40)["both"] > 0


def test_refused_over_a_boundary_where_that_is_said(start_esp: Esps, three: list[LocalEtcd]) -> None:
    esp = start_esp(three, [f"{LOCK}it/4", "l"], extra=f'across_shards: {{refuse: ["{LOCK}"]}}')
    told = trial(esp)
    assert told["both"] == 0
    [text] = told["refused"]
    assert "spans the shards s0, s1" in text
