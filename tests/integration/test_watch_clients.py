"""Stock clients, watching through esp: etcdctl, and those for Python from PyPI."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from esp.core.pb import rpc_pb2
from tests.harness import (
    EspProcess,
    Esps,
    Etcds,
    Server,
    connect,
    program,
    running_esps,
    running_etcds,
    wait_until,
)
from tests.integration.watch_talk import watchers_in
from tests.stubs import rpc_pb2_grpc

Etcdctl = Callable[..., subprocess.CompletedProcess[str]]

PROGRAM = Path(__file__).parent / "python_clients.py"


@dataclass
class IdleWatch:
    """etcdctl, watching all keys through an esp that nobody else talks to; it has been told of one event.

    Attributes:
        idle_since: when that was, by `time.monotonic`.
    """

    esp: EspProcess
    process: subprocess.Popen[str]
    idle_since: float


@pytest.fixture(scope="module")
def idle_watch(
    tmp_path_factory: pytest.TempPathFactory, etcd_binary: Path, etcdctl: Callable[..., object]
) -> Iterator[IdleWatch]:
    folder = tmp_path_factory.mktemp("idle")
    with running_etcds(folder / "etcds", etcd_binary) as etcds, running_esps(folder, etcd_binary) as esps:
        shards = etcds.several(3)
        esp = esps(shards, ["i", "r"])
        command = [program("etcdctl", "ESP_ETCDCTL"), "--endpoints", esp.address, "watch", "--prefix", ""]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watch:
            try:
                wait_until(lambda: all(watchers_in(shard) for shard in shards))
                etcdctl(esp, "put", "a", "1")
                assert watch.stdout is not None
                assert [watch.stdout.readline() for _ in range(3)] == ["PUT\n", "a\n", "1\n"]
                yield IdleWatch(esp, watch, time.monotonic())
            finally:
                watch.kill()


@pytest.fixture(scope="module", autouse=True)
def idle_watch_from_the_start(request: pytest.FixtureRequest) -> None:
    """Lets the minute go by while other tests run, when the test that needs it is among them."""
    if any("idle_watch" in getattr(item, "fixturenames", ()) for item in request.session.items):
        request.getfixturevalue("idle_watch")


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


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGKILL])
def test_etcdctl_goes_on_when_the_proxy_was_away(
    start_etcd: Etcds, start_esp: Esps, etcdctl: Etcdctl, sig: signal.Signals
) -> None:
    shards = start_etcd.several(2)
    esp = start_esp(shards, ["m"])
    command = [program("etcdctl", "ESP_ETCDCTL"), "--endpoints", esp.address, "watch", "--prefix", "a"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watch:
        try:
            assert watch.stdout is not None
            wait_until(lambda: watchers_in(shards[0]) == 1)
            etcdctl(esp, "put", "a1", "1")
            assert [watch.stdout.readline() for _ in range(3)] == ["PUT\n", "a1\n", "1\n"]
            esp.stop(sig)
            etcdctl(shards[0], "put", "a2", "2")
            start_esp(shards, ["m"], "--listen", esp.url)
            etcdctl(esp, "put", "a3", "3")
            assert [watch.stdout.readline() for _ in range(6)] == ["PUT\n", "a2\n", "2\n", "PUT\n", "a3\n", "3\n"]
        finally:
            watch.kill()


def test_etcdctl_watches_all_keys_and_stays_idle_for_a_minute(idle_watch: IdleWatch, etcdctl: Etcdctl) -> None:
    """With its keepalive, which a server that is too strict ends with "too many pings"."""
    watch = idle_watch.process
    time.sleep(max(0, idle_watch.idle_since + 61 - time.monotonic()))
    for key in ("j", "z"):
        etcdctl(idle_watch.esp, "put", key, "2")
        assert watch.stdout is not None
        assert [watch.stdout.readline() for _ in range(3)] == ["PUT\n", f"{key}\n", "2\n"]
    watch.kill()
    assert watch.stderr is not None
    assert watch.stderr.read() == ""
