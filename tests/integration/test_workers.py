"""`esp serve --workers`: several processes that serve as one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic

import grpc
import pytest

from esp.core.local import LocalEtcd
from esp.core.pb import rpc_pb2
from tests.harness import EspProcess, Esps, Etcds, connect, free_port, is_listening, wait_until, write_config
from tests.stubs import rpc_pb2_grpc

PUTS = 'grpc_server_handled_total{grpc_type="unary",grpc_service="etcdserverpb.KV",grpc_method="Put",grpc_code="OK"}'


def workers_of(esp: EspProcess) -> list[int]:
    """The processes of the workers, the oldest first."""
    told = subprocess.run(["pgrep", "-P", str(esp.process.pid)], capture_output=True, text=True, check=False).stdout
    return [int(line) for line in told.split()]


def clients_of(process: int, port: int) -> int:
    """The connections that a process has accepted on a port."""
    inodes = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, *rest = line.split()
        if state == "01" and int(local.rpartition(":")[2], 16) == port:
            inodes.add(rest[5])
    links = [os.readlink(link) for link in Path(f"/proc/{process}/fd").iterdir()]
    return sum(link.removeprefix("socket:[").removesuffix("]") in inodes for link in links)


def put(channel: grpc.Channel, key: bytes) -> rpc_pb2.PutResponse:
    return rpc_pb2_grpc.KVStub(channel).Put(rpc_pb2.PutRequest(key=key, value=b"v"), timeout=60)


def test_clients_are_shared_evenly_and_a_worker_that_dies_takes_only_its_own_along(
    shards: list[LocalEtcd], start_esp: Esps
) -> None:
    esp = start_esp(shards, ["i", "r"], "--workers", "2")
    assert "; 2 workers" in esp.log()
    first, second = workers_of(esp)
    channels = [connect(esp) for _ in range(8)]
    for number, channel in enumerate(channels):
        put(channel, b"k%d" % number)
    assert Counter([clients_of(first, esp.port), clients_of(second, esp.port)]) == Counter([4, 4])

    os.kill(first, signal.SIGKILL)
    wait_until(lambda: len(workers_of(esp)) == 2 and first not in workers_of(esp))
    assert f"worker 0 (process {first}) was killed by SIGKILL" in esp.log()
    assert "another begins in 0.1 s, and the others go on" in esp.log()
    assert second in workers_of(esp)
    for number, channel in enumerate(channels):  # those of the dead one connect anew
        with connect(esp) as other:
            put(other, b"new")
        rpc_pb2_grpc.KVStub(channel).Range(rpc_pb2.RangeRequest(key=b"k%d" % number), timeout=60, wait_for_ready=True)
    third = next(process for process in workers_of(esp) if process != second)
    wait_until(lambda: clients_of(third, esp.port) > 0)
    for channel in channels:
        channel.close()


def test_a_token_of_one_worker_is_exact_at_another_also_when_the_first_is_dead(
    shards: list[LocalEtcd], start_esp: Esps
) -> None:
    esp = start_esp(shards, ["i", "r"], "--workers", "2")
    first, second = [connect(esp) for _ in range(2)]  # one for each worker
    for key in (b"ta", b"ka", b"za"):
        put(first, key)
    everything = rpc_pb2.RangeRequest(key=b"\0", range_end=b"\0")
    listed = rpc_pb2_grpc.KVStub(first).Range(everything, timeout=60)
    put(second, b"ka")  # the list at the token does not show this
    assert [clients_of(process, esp.port) for process in workers_of(esp)] == [1, 1]

    everything.revision = listed.header.revision
    again = rpc_pb2_grpc.KVStub(second).Range(everything, timeout=60)
    assert (again.kvs, again.header.revision) == (listed.kvs, listed.header.revision)
    everything.revision = 0
    assert rpc_pb2_grpc.KVStub(second).Range(everything, timeout=60).header.revision > listed.header.revision

    everything.revision = listed.header.revision
    one = next(process for process in workers_of(esp) if clients_of(process, esp.port))
    os.kill(one, signal.SIGKILL)
    wait_until(lambda: one not in workers_of(esp) and len(workers_of(esp)) == 2)
    for channel in (first, second):
        again = rpc_pb2_grpc.KVStub(channel).Range(everything, timeout=60, wait_for_ready=True)
        assert (again.kvs, again.header.revision) == (listed.kvs, listed.header.revision)
        channel.close()


def test_a_worker_that_begins_anew_knows_what_has_moved(start_etcd: Etcds, start_esp: Esps) -> None:
    etcds = [start_etcd(), start_etcd()]
    esp = start_esp(etcds, ["r"], "--workers", "2")
    with connect(esp) as channel:
        for key in (b"a", b"ra", b"z"):
            put(channel, key)
        everything = rpc_pb2.RangeRequest(key=b"\0", range_end=b"\0")
        everything.revision = rpc_pb2_grpc.KVStub(channel).Range(everything, timeout=60).header.revision
    with connect(etcds[0]) as channel:
        put(channel, b"ra")
    assert esp.config is not None
    write_config(esp.config, etcds, ["s"])
    esp.process.send_signal(signal.SIGHUP)
    wait_until(lambda: esp.log().count("layout 2 is in force") == 2 and "reload (SIGHUP)" in esp.log())
    for process in workers_of(esp):
        wait_until(lambda: len(workers_of(esp)) == 2)
        os.kill(process, signal.SIGKILL)
        wait_until(lambda gone=process: gone not in workers_of(esp))
    wait_until(lambda: len(workers_of(esp)) == 2)
    with connect(esp) as channel:
        kv = rpc_pb2_grpc.KVStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            kv.Range(everything, timeout=60, wait_for_ready=True)
        assert caught.value.details() == "etcdserver: mvcc: required revision has been compacted"
        everything.revision = 0
        listed = kv.Range(everything, timeout=60)
        assert [found.key for found in listed.kvs] == [b"a", b"ra", b"z"]
        everything.revision = listed.header.revision
        assert kv.Range(everything, timeout=60).kvs == listed.kvs


def test_no_call_of_a_worker_runs_by_the_former_map_once_one_of_another_has_run_by_the_next(
    start_etcd: Etcds, start_esp: Esps
) -> None:
    etcds = [start_etcd(), start_etcd()]
    for etcd in etcds:  # both have the key that moves, so that each may own it
        with connect(etcd) as channel:
            put(channel, b"k")
    esp = start_esp(etcds, ["r"], "--workers", "2")
    assert esp.config is not None
    channels = [connect(esp) for _ in range(4)]
    for channel in channels:
        put(channel, b"k")
    assert [clients_of(process, esp.port) for process in workers_of(esp)] == [2, 2]
    is_over = threading.Event()
    calls: list[tuple[float, float, int]] = []

    def writes(channel: grpc.Channel) -> None:
        while not is_over.is_set():
            began = monotonic()
            cluster = put(channel, b"k").header.cluster_id
            calls.append((began, monotonic(), cluster))

    with ThreadPoolExecutor(len(channels)) as pool:
        writers = [pool.submit(writes, channel) for channel in channels]
        for number, boundary in enumerate(["a", "r"] * 4, 2):
            calls.clear()
            write_config(esp.config, etcds, [boundary])
            esp.process.send_signal(signal.SIGHUP)
            wait_until(lambda number=number: esp.log().count(f"layout {number} is in force") == 2)
            there = len(calls)
            wait_until(lambda there=there: len(calls) > there + 8 or any(writer.done() for writer in writers))
            seen = sorted(calls)
            next_map = seen[-1][2]
            first = min(ended for _, ended, cluster in seen if cluster == next_map)
            assert [began for began, _, cluster in seen if cluster != next_map and began > first] == []
        is_over.set()
        for writer in writers:
            writer.result()
    assert len({cluster for _, _, cluster in calls}) <= 2
    for channel in channels:
        channel.close()


def test_a_reload_that_is_asked_for_before_all_workers_serve_comes_once_they_do(
    etcd: LocalEtcd, tmp_path: Path
) -> None:
    """One worker may say that it is ready a while before the other is."""
    with socket.create_server(("127.0.0.1", 0)) as silent:  # so it takes seconds until a worker gives up a shard
        port = silent.getsockname()[1]
        config = tmp_path / "esp.yaml"
        text = (
            f"shards:\n  - {{name: s0, endpoints: ['{etcd.address}'], ranges: [{{start: '', end: m}}]}}\n"
            f"  - {{name: silent, endpoints: ['127.0.0.1:{port}'], ranges: [{{start: m, end: ''}}]}}\n"
        )
        config.write_text(text)
        esp = EspProcess(tmp_path, ["-c", config, "--workers", "2"], config=config, env={})
        try:
            wait_until(lambda: len(workers_of(esp)) == 2)
            config.write_text(text + "log: {level: debug}\n")
            esp.process.send_signal(signal.SIGHUP)
            esp.wait_ready()
            wait_until(lambda: "reload (SIGHUP): log.level: info -> debug" in esp.log())
        finally:
            esp.stop()


def test_all_drain_together_and_a_second_signal_cuts(start_etcd: Etcds, start_esp: Esps) -> None:
    etcd = start_etcd()
    esp = start_esp([etcd], [], "--workers", "2")
    channels = [connect(esp) for _ in range(2)]  # one for each worker
    for channel in channels:
        put(channel, b"a")
    assert etcd.process
    etcd.process.send_signal(signal.SIGSTOP)
    try:
        calls = [
            rpc_pb2_grpc.KVStub(channel).Put.future(rpc_pb2.PutRequest(key=b"a"), timeout=60) for channel in channels
        ]
        wait_until(lambda: all(clients_of(process, esp.port) == 1 for process in workers_of(esp)))
        esp.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not is_listening(esp.address))
        assert esp.process.poll() is None
        esp.process.send_signal(signal.SIGTERM)
        assert esp.wait() == 0
        assert {call.code() for call in calls} == {grpc.StatusCode.UNAVAILABLE}
    finally:
        etcd.process.send_signal(signal.SIGCONT)
    assert "stopped" in esp.log()
    for channel in channels:
        channel.close()


def test_workers_end_with_their_supervisor(shards: list[LocalEtcd], start_esp: Esps) -> None:
    esp = start_esp(shards, ["i", "r"], "--workers", "2")
    workers = workers_of(esp)
    esp.process.kill()
    esp.process.wait()
    wait_until(lambda: not any(Path(f"/proc/{process}").exists() for process in workers))
    assert "the supervisor of the workers is gone" in esp.log()
    assert not is_listening(esp.address)


def test_a_start_that_fails_fails_once_and_with_the_reason(tmp_path: Path, start_esp: Esps) -> None:
    config = tmp_path / "esp.yaml"
    config.write_text(
        "shards: [{name: a, endpoints: ['http://127.0.0.1:1'], ranges: [{start: '', end: ''}]}]\nworkers: 2\n"
    )
    esp = start_esp.launch("-c", config)
    wait_until(lambda: len(workers_of(esp)) == 2)
    esp.process.send_signal(signal.SIGINT)
    assert esp.wait() == 130
    assert esp.log().count("interrupted before it was ready") == 1

    port = free_port()
    one = start_esp.launch("-c", config, "--listen", f"http://127.0.0.1:{port}")
    one.wait_ready()
    other = start_esp.launch("-c", config, "--listen", f"http://127.0.0.1:{port}")
    assert other.wait() == 1
    assert "the port is in use" in other.log()


def test_metrics_and_health_of_any_worker_are_those_of_all(shards: list[LocalEtcd], start_esp: Esps) -> None:
    esp = start_esp(shards, ["i", "r"], "--workers", "2")
    channels = [connect(esp) for _ in range(2)]  # one for each worker
    for number, channel in enumerate(channels):
        for _ in range(3 + number):
            put(channel, b"k")
    assert [clients_of(process, esp.port) for process in workers_of(esp)] == [1, 1]
    puts = PUTS + " 7"
    for _ in range(3):  # the pages are of one worker, then of the other
        text = page(esp, "/metrics")
        assert puts in text.splitlines()
        assert "esp_workers 2" in text.splitlines()
        assert "esp_worker_restarts_total 0" in text.splitlines()
        assert page(esp, "/readyz?verbose").splitlines()[-2:] == ["[+]workers ok", "ok"]

    process = workers_of(esp)[0]
    os.kill(process, signal.SIGSTOP)
    try:
        wait_until(lambda: "[-]worker 0 failed: it is stuck, or begins anew" in page(esp, "/readyz?verbose"))
        text = page(esp, "/metrics")  # within its time, with what the silent one told last
        assert "esp_workers 2" in text.splitlines()
        assert puts in text.splitlines()
    finally:
        os.kill(process, signal.SIGCONT)
    os.kill(process, signal.SIGKILL)
    wait_until(lambda: len(workers_of(esp)) == 2 and process not in workers_of(esp))
    wait_until(lambda: "esp_workers 2" in page(esp, "/metrics").splitlines())
    assert puts in page(esp, "/metrics").splitlines()  # no counter goes back
    for channel in channels:
        channel.close()


def test_a_worker_that_stands_still_is_killed_and_another_begins(
    etcd: LocalEtcd, start_esp: Esps, tmp_path: Path
) -> None:
    config = write_config(tmp_path / "esp.yaml", [etcd], [], "workers: 2\nlimits: {worker_timeout: 5}")
    esp = start_esp.launch("-c", config)
    esp.wait_ready()
    stuck, other = workers_of(esp)
    os.kill(stuck, signal.SIGSTOP)
    wait_until(lambda: f"worker 0 (process {stuck}) stands still: its loop has not run for 5 s" in esp.log())
    wait_until(lambda: f"worker 0 (process {stuck}) was killed by SIGKILL" in esp.log())
    wait_until(lambda: len(workers_of(esp)) == 2)
    assert other in workers_of(esp)
    wait_until(lambda: 'esp_limit_reached_total{limit="worker_timeout"} 1' in page(esp, "/metrics").splitlines())


def page(esp: EspProcess, path: str) -> str:
    with urllib.request.urlopen(esp.url + path, timeout=60) as answer:
        return str(answer.read().decode())
