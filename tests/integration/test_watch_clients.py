"""Clients as they come from PyPI, watching through esp: they are told what an etcd tells them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from esp.core.pb import rpc_pb2
from tests.harness import Esps, Etcds, Server, connect
from tests.stubs import rpc_pb2_grpc

PROGRAM = Path(__file__).parent / "python_clients.py"


def compact(etcd: Server) -> None:
    """Leaves nothing of the history up to now."""
    with connect(etcd) as channel:
        kv = rpc_pb2_grpc.KVStub(channel)
        for _ in range(3):
            last = kv.Put(rpc_pb2.PutRequest(key=b"a0")).header.revision
        kv.Compact(rpc_pb2.CompactionRequest(revision=last))


def watch_with(client: str, server: Server) -> Any:
    environment = os.environ | {"PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python"} if client == "etcd3" else None
    port = server.address.rpartition(":")[2]
    done = subprocess.run(
        [sys.executable, PROGRAM, client, port],
        capture_output=True,
        text=True,
        timeout=100,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("client", ["etcd3", "aetcd"])
def test_a_client_in_python_is_told_what_an_etcd_tells_it(client: str, start_etcd: Etcds, start_esp: Esps) -> None:
    judge, *shards = start_etcd.several(4)
    esp = start_esp(shards, ["i", "r"])
    for etcd in (judge, shards[0]):
        compact(etcd)
    expected = watch_with(client, judge)
    assert expected["complete"]
    assert expected["errors"] == []
    assert expected["compacted"] == "RevisionCompactedError"
    assert watch_with(client, esp) == expected
