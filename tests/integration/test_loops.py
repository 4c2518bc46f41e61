"""A shard whose endpoint leads to an esp, the same over any way, or another: the endpoint gets no calls."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from esp.core.local import LocalEtcd, free_port
from esp.core.pb import rpc_pb2
from tests.harness import EspProcess, Esps, Etcds, connect, etcd34, grpc_proxy, outcome, peer, wait_until
from tests.stubs import rpc_pb2_grpc


class Forwarder:
    """Passes connections on to another port of this machine, as a load balancer does.

    Attributes:
        port: where it listens.
        target: where it leads to; 0 for nowhere.
    """

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self.target = 0
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                self._threads.append(threading.Thread(target=self._serve, args=(client,)))
                self._threads[-1].start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            if not self.target:
                return
            with socket.create_connection(("127.0.0.1", self.target)) as server:
                back = threading.Thread(target=self._pass, args=(server, client))
                back.start()
                self._pass(client, server)
                back.join()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                target.sendall(data)
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Takes no more connections, and returns when those that it has have ended."""
        self._server.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(20)
        self._server.close()


@pytest.fixture
def forwarder() -> Iterator[Forwarder]:
    forwarder = Forwarder()
    yield forwarder
    forwarder.close()


def config(path: Path, first: list[str], second: list[str]) -> Path:
    """Two shards, "a" with the keys below m, and "b"; or "a" alone."""
    shards = f"- {{name: a, endpoints: {first}, ranges: [{{start: '', end: {'m' if second else repr('')}}}]}}\n"
    if second:
        shards += f"- {{name: b, endpoints: {second}, ranges: [{{start: m, end: ''}}]}}\n"
    path.write_text(f"shards:\n{shards}")
    return path


def put(channel: grpc.Channel, key: bytes, seconds: float = 20) -> None:
    rpc_pb2_grpc.KVStub(channel).Put(rpc_pb2.PutRequest(key=key), timeout=seconds)


def wait_refused(esp: EspProcess, key: bytes) -> str:
    """What a Put says once esp knows where the shard leads to. Until then it waits a moment, and is sent nowhere."""
    with connect(esp) as channel:
        deadline = time.monotonic() + 30
        while True:
            code, text = outcome(lambda: put(channel, key))
            assert code == grpc.StatusCode.UNAVAILABLE
            if text != "there is no connection available":
                return text
            assert time.monotonic() < deadline


def page(esp: EspProcess, path: str) -> str:
    with urllib.request.urlopen(f"{esp.url}{path}", timeout=20) as answer:
        text: str = answer.read().decode()
        return text


def test_a_forwarder_that_leads_back(forwarder: Forwarder, start_esp: Esps, etcd: LocalEtcd, tmp_path: Path) -> None:
    endpoint = f"http://127.0.0.1:{forwarder.port}"
    path = config(tmp_path / "esp.yaml", [endpoint], [etcd.endpoint])
    esp = start_esp.launch("-c", path)
    forwarder.target = esp.port
    esp.wait_ready()
    said = f"esp: shard a leads to an esp, this one or another ({endpoint}); name its etcds as its endpoints"
    assert wait_refused(esp, b"a") == said

    with connect(esp) as channel:
        kv, maintenance = rpc_pb2_grpc.KVStub(channel), rpc_pb2_grpc.MaintenanceStub(channel)
        refused = (grpc.StatusCode.UNAVAILABLE, said)
        everything = {"key": b"\0", "range_end": b"\0"}
        assert outcome(lambda: kv.Range(rpc_pb2.RangeRequest(key=b"a"), timeout=20)) == refused
        assert outcome(lambda: kv.Range(rpc_pb2.RangeRequest(**everything), timeout=20)) == refused
        assert outcome(lambda: kv.DeleteRange(rpc_pb2.DeleteRangeRequest(**everything), timeout=20)) == refused
        put(channel, b"z")
        status = maintenance.Status(rpc_pb2.StatusRequest(), timeout=20)
        assert list(status.errors) == [f"shard a: {said}"]
        lease = rpc_pb2_grpc.LeaseStub(channel).LeaseGrant(rpc_pb2.LeaseGrantRequest(TTL=600), timeout=20)
        renewed = rpc_pb2_grpc.LeaseStub(channel).LeaseKeepAlive(
            iter([rpc_pb2.LeaseKeepAliveRequest(ID=lease.ID)]), timeout=20
        )
        assert next(renewed).TTL == 600, "as with any shard that is away"
    why = "it is an esp, this one or another, and no etcd; name the etcds themselves"
    away = f"[-]shard a failed: serializable_read: there is no connection available: {why}\n[+]shard b ok\nok\n"
    assert page(esp, "/readyz?verbose").endswith(away)
    told = f"shard a: {endpoint} cannot be used: it is an esp, this one or another, and no etcd; name the etcds"
    time.sleep(3)  # it is tried again and again
    assert esp.log().count(told) == 1
    assert esp.log().count("cannot") == 1

    done = subprocess.run(
        [sys.executable, "-m", "esp", "check", "-c", path], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert f'shard "a", {endpoint}: is an esp, this one or another, and no etcd' in " ".join(done.stdout.split())

    host, _, port = etcd.address.rpartition(":")
    assert host == "127.0.0.1"
    forwarder.target = int(port)
    wait_until(lambda: page(esp, "/readyz?verbose").endswith("[+]shard a ok\n[+]shard b ok\nok\n"))
    with connect(esp) as channel:
        put(channel, b"a")


def test_one_endpoint_of_two_that_leads_back_is_passed_over(
    forwarder: Forwarder, start_esp: Esps, etcd: LocalEtcd, tmp_path: Path
) -> None:
    esp = start_esp.launch("-c", config(tmp_path / "esp.yaml", [f"127.0.0.1:{forwarder.port}", etcd.endpoint], []))
    forwarder.target = esp.port
    esp.wait_ready()
    with connect(esp) as channel:
        put(channel, b"a")
        assert rpc_pb2_grpc.KVStub(channel).Range(rpc_pb2.RangeRequest(key=b"a"), timeout=20).count == 1


@pytest.mark.parametrize("host", ["127.0.0.2", "127.1.2.3"])
def test_another_name_of_this_machine(start_esp: Esps, tmp_path: Path, host: str) -> None:
    port = free_port()
    path = config(tmp_path / "esp.yaml", [f"{host}:{port}"], [])
    esp = start_esp.launch("-c", path, "--listen", f"http://0.0.0.0:{port}")
    esp.wait_ready()
    assert f"shard a leads to an esp, this one or another (http://{host}:{port})" in wait_refused(esp, b"a")


def test_two_that_lead_to_each_other(start_esp: Esps, tmp_path: Path) -> None:
    ports = [free_port(), free_port()]
    esps = []
    for number, name in enumerate("xy"):
        path = config(tmp_path / f"{name}.yaml", [f"127.0.0.1:{ports[1 - number]}"], [])
        esps.append(start_esp.launch("-c", path, "--listen", f"http://127.0.0.1:{ports[number]}"))
    for number, esp in enumerate(esps):
        esp.wait_ready()
        assert f"leads to an esp, this one or another (http://127.0.0.1:{ports[1 - number]})" in wait_refused(esp, b"a")


def test_another_esp_is_no_shard_though_it_is_no_circle(
    start_esp: Esps, esp: EspProcess, etcd: LocalEtcd, tmp_path: Path
) -> None:
    front = start_esp.launch("-c", config(tmp_path / "esp.yaml", [esp.url], [etcd.endpoint]))
    front.wait_ready()
    assert f"({esp.url})" in wait_refused(front, b"a")
    alone = start_esp([etcd])
    front = start_esp.launch("-c", config(tmp_path / "two.yaml", [alone.url], []))
    front.wait_ready()
    assert f"({alone.url})" in wait_refused(front, b"a")


@pytest.fixture(params=["etcd", "etcd37", "etcd34"])
def proxy_binary(request: pytest.FixtureRequest, etcd_binary: Path) -> Path:
    """An etcd whose grpc-proxy passes on no metadata, but messages as they are; that of 3.4 only what it knows."""
    return {"etcd": lambda: etcd_binary, "etcd37": lambda: peer("etcd"), "etcd34": etcd34}[request.param]()


def test_a_grpc_proxy_of_etcd_that_leads_back(
    start_esp: Esps, etcd: LocalEtcd, tmp_path: Path, proxy_binary: Path
) -> None:
    port = free_port()
    with grpc_proxy(proxy_binary, f"127.0.0.1:{port}") as address:
        path = config(tmp_path / "esp.yaml", [address], [etcd.endpoint])
        esp = start_esp.launch("-c", path, "--listen", f"http://127.0.0.1:{port}")
        esp.wait_ready()
        assert f"shard a leads to an esp, this one or another (http://{address})" in wait_refused(esp, b"a")
        with connect(esp) as channel:
            put(channel, b"z")


def test_a_grpc_proxy_of_etcd_that_leads_back_to_an_esp_of_one_shard(
    request: pytest.FixtureRequest, start_esp: Esps, tmp_path: Path, proxy_binary: Path
) -> None:
    port = free_port()
    with grpc_proxy(proxy_binary, f"127.0.0.1:{port}") as address:
        path = config(tmp_path / "esp.yaml", [address], [])
        esp = start_esp.launch("-c", path, "--listen", f"http://127.0.0.1:{port}")
        esp.wait_ready()
        if "etcd34" not in request.node.name:
            assert f"shard a leads to an esp, this one or another (http://{address})" in wait_refused(esp, b"a")
            return
        # The probe comes through as a client's Status, which waits for the shard that is probed.
        for _ in range(3):
            time.sleep(1)
            with pytest.raises(urllib.error.HTTPError, match="503"):
                page(esp, "/readyz")
            with connect(esp) as channel:
                refused = grpc.StatusCode.UNAVAILABLE, "there is no connection available"
                assert outcome(lambda: put(channel, b"a")) == refused


def test_a_grpc_proxy_of_etcd_in_front_of_a_shard_watches_under_ids_of_its_own(
    start_esp: Esps, etcd: LocalEtcd, start_etcd: Etcds, tmp_path: Path, proxy_binary: Path
) -> None:
    """Its events would go to nobody."""
    with grpc_proxy(proxy_binary, start_etcd().address) as address:
        esp = start_esp.launch("-c", config(tmp_path / "esp.yaml", [address], [etcd.endpoint]))
        esp.wait_ready()
        with connect(esp) as channel:
            put(channel, b"a")
            create = rpc_pb2.WatchRequest(create_request=rpc_pb2.WatchCreateRequest(key=b"a"))
            refused = grpc.StatusCode.INTERNAL, "esp: the answer of shard a gives a watch another id than was asked for"
            stub = rpc_pb2_grpc.WatchStub(channel)
            assert outcome(lambda: next(stub.Watch(iter([create]), timeout=20))) == refused
