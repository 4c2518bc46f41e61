"""`esp bench` on real servers: all loads, what it leaves behind, and servers that fail."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from esp.cli.whole import app
from esp.core.local import LocalEtcd
from esp.core.pb import rpc_pb2
from esp.core.wording import cured
from tests.harness import EVERYTHING, EspProcess, Etcds, Server, connect, wait_until, write_config
from tests.stubs import rpc_pb2_grpc

LOADS = ["put", "range", "txn", "watch", "keepalive"]
SHORT = ["--seconds", "0.1", "--warm-up", "0", "--connections", "2", "--streams", "2", "--keys", "30"]


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["bench", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def count(server: Server) -> tuple[int, int, int]:
    """The keys, the leases and the revision of a server."""
    with connect(server) as channel:
        kvs = rpc_pb2_grpc.KVStub(channel).Range(rpc_pb2.RangeRequest(**EVERYTHING, count_only=True))
        leases = rpc_pb2_grpc.LeaseStub(channel).LeaseLeases(rpc_pb2.LeaseLeasesRequest()).leases
        return kvs.count, len(leases), kvs.header.revision


@pytest.fixture
def config(tmp_path: Path, empty_shards: list[LocalEtcd]) -> Path:
    return write_config(tmp_path / "esp.yaml", empty_shards, ["i", "r"])


def test_all_loads_on_esp_and_an_etcd_in_turns(
    esp: EspProcess, empty_shards: list[LocalEtcd], empty_etcd: LocalEtcd, config: Path, tmp_path: Path
) -> None:
    before = [count(shard)[2] for shard in empty_shards]
    loads = [word for load in LOADS for word in ("--load", load)]
    plot = tmp_path / "bench.svg"
    code, out, err = run(
        esp.url, empty_etcd.endpoint, "-c", config, *loads, *SHORT, "--rounds", "2", "-o", "json", "--plot", plot
    )
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert told["plan"]["shards"] == ["s0", "s1", "s2"]
    assert [(one["load"], one["target"]) for one in told["measured"]] == [
        (load, target) for load in LOADS for target in (esp.url, empty_etcd.endpoint)
    ]
    for one in told["measured"]:
        assert one["requests"] > 0
        assert len(one["rates"]) == 2
        assert one["errors"] == {}
        latencies = one["latency_seconds"]
        assert 0 < latencies["p50"] <= latencies["p99"] <= latencies["p99.9"] < 60
    assert [ratio["load"] for ratio in told["ratios"]] == LOADS
    assert all(
        after > revision + 30
        for after, revision in zip([count(shard)[2] for shard in empty_shards], before, strict=True)
    )
    assert [count(server)[:2] for server in (*empty_shards, empty_etcd)] == [(0, 0)] * 4  # nothing is left
    assert plot.read_text().startswith("<svg")


def test_the_table_says_what_was_measured(empty_etcd: LocalEtcd) -> None:
    code, out, _ = run(empty_etcd.endpoint, "--load", "range", *SHORT, "--rounds", "1")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split() == [
        "LOAD",
        "TARGET",
        "REQ/S",
        "P50",
        "MS",
        "P99",
        "MS",
        "P99.9",
        "MS",
        "ERRORS",
        "CLIENT",
        "CPU",
    ]
    assert lines[1].split()[:2] == ["range", empty_etcd.endpoint]
    assert "Closed loop: 2 connections, 2 requests open on each" in out
    assert "Not measured: an open loop" in out
    assert max(map(len, lines[2:])) <= 80


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "name a target"),
        (["http://a", "http://b", "http://c"], "there may be two targets"),
        (["http://127.0.0.1:1", "--shard", "a"], "--shard needs the config"),
        (["http://127.0.0.1:1", "--plot", "x.png"], "--plot draws .html or .svg"),
        (["x"], 'esp: target "x" has no port; write http://x:2379\n'),
        (["a:b:c"], 'esp: target "a:b:c" '),
        (
            ["http://a:1", "--cacert", "ca.pem"],
            "--cacert, --cert and --key are for TLS, and target http://a:1 is plain",
        ),
        (["https://a:1", "--cert", "c.pem"], "--cert and --key go together"),
        (["https://a:1", "--cacert", "/no.pem"], "--cacert: /no.pem"),
        (["http://a:1", "--user", "u"], "--user and --password-file go together"),
        (["http://a:1", "--user", "u", "--password-file", "/no"], "--password-file: /no cannot be read"),
    ],
)
def test_wrong_usage(arguments: list[str], text: str) -> None:
    code, _, err = run(*arguments)
    assert code == 2
    assert text in err


def test_an_unknown_shard(config: Path) -> None:
    code, _, err = run("-c", config, "--shard", "x")
    assert (code, err) == (2, 'esp: no shard is called "x"; there are s0, s1, s2\n')


def test_targets_that_are_none() -> None:
    code, _, err = run("http://127.0.0.1:1", *SHORT)
    assert (code, err) == (1, f"esp: http://127.0.0.1:1: {cured('connection refused')}\n")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def hang_up() -> None:
            listener.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        code, _, err = run(f"http://127.0.0.1:{port}", *SHORT)
        thread.join()
    assert code == 1
    assert err.startswith(f"esp: http://127.0.0.1:{port}: ")


def test_a_server_that_refuses(start_etcd: Etcds) -> None:
    etcd = start_etcd("--quota-backend-bytes=1000000")
    few = ["--rounds", "1", "--seconds", "1", "--keys", "1", "--value-bytes", "50000"]
    code, out, err = run(etcd.endpoint, "--load", "put", *SHORT, *few)
    assert code == 1
    assert "times: etcdserver: mvcc: database space exceeded" in out
    assert "requests failed; the figures are of the others" in err
    assert count(etcd)[:2] == (0, 0)


def test_a_server_that_dies(start_etcd: Etcds) -> None:
    etcd = start_etcd()
    command = [sys.executable, "-m", "esp", "bench", etcd.endpoint, "--load", "put", "--streams", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: count(etcd)[2] > 1100)
        etcd.kill()
        _, err = process.communicate()
    assert process.returncode == 1
    assert f"may be left in {etcd.endpoint}" in err
    assert f"esp: {etcd.endpoint}: connection refused" in err


def test_ctrl_c_deletes_the_keys(empty_etcd: LocalEtcd) -> None:
    before = count(empty_etcd)[2]
    command = [sys.executable, "-m", "esp", "bench", empty_etcd.endpoint, "--load", "put", "--streams", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: count(empty_etcd)[2] > before + 1100)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert (process.returncode, out, err) == (130, "", "esp: interrupted; no figures\n")
    assert count(empty_etcd)[:2] == (0, 0)
