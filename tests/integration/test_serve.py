"""`esp serve` as a process: its start, its output, its end, and its answers to other protocols."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from esp import build
from esp.core import config
from esp.core.local import LocalEtcd
from esp.core.pb import rpc_pb2
from tests.harness import (
    EVERYTHING,
    EspProcess,
    Esps,
    Etcds,
    Server,
    connect,
    freeze,
    is_listening,
    wait_until,
    write_config,
)
from tests.stubs import rpc_pb2_grpc

Etcdctl = Callable[..., subprocess.CompletedProcess[str]]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
GOAWAY = 7


class TestStart:
    def test_it_says_once_that_it_is_ready_and_where(self, shards: list[LocalEtcd], start_esp: Esps) -> None:
        esp = start_esp(shards, ["i", "r"])
        ready = [line for line in esp.log().splitlines() if re.search(r"\bready\b", line)]
        assert len(ready) == 1
        assert esp.url in ready[0]

    def test_it_listens_on_every_url_given(self, shards: list[LocalEtcd], start_esp: Esps, etcdctl: Etcdctl) -> None:
        esp = start_esp(shards, ["i", "r"], "--listen", "http://127.0.0.1:0")
        ready = next(line for line in esp.log().splitlines() if re.search(r"\bready\b", line))
        addresses = re.findall(r"http://(127\.0\.0\.1:\d+)", ready)
        assert len(set(addresses)) == 2
        assert esp.address in addresses
        for address in addresses:
            etcdctl(address, "get", "a")

    def test_it_starts_while_no_shard_is_up(self, start_etcd: Etcds, start_esp: Esps, etcdctl: Etcdctl) -> None:
        shard = start_etcd()
        shard.kill()
        esp = start_esp([shard])
        shard.start()
        wait_until(lambda: etcdctl(esp, "put", "a", "1", check=False).returncode == 0)

    def test_a_port_in_use_is_told_in_one_line(self, esp: EspProcess, start_esp: Esps, tmp_path: Path) -> None:
        assert esp.config
        second = start_esp.launch("-c", esp.config, "--listen", esp.url)
        assert second.wait() == 1
        assert len(second.log().splitlines()) == 1
        assert esp.address in second.log()
        assert "in use" in second.log()
        assert esp.process.poll() is None

    @pytest.mark.parametrize(
        ("text", "line", "words"),
        [
            ("listen: [http://127.0.0.1:1]\nshards: []\n", 2, "shards"),
            ("shards:\n  - name: s\n    endpoint: [http://127.0.0.1:1]\n", 3, "endpoints"),
            ("shards: {a: [\n", 2, ""),
            (
                "shards:\n"
                "  - {start: '', end: i, address: '127.0.0.1:1'}\n"
                "  - {start: j, end: '', address: '127.0.0.1:2'}\n",
                2,
                'no shard owns ["i", "j")',
            ),
        ],
        ids=["no shards", "unknown field", "not yaml", "gap"],
    )
    def test_a_bad_config_is_told_in_one_line_with_its_place(
        self, start_esp: Esps, tmp_path: Path, text: str, line: int, words: str
    ) -> None:
        path = tmp_path / "bad.yaml"
        path.write_text(text)
        esp = start_esp.launch("-c", path)
        assert esp.wait() == 2
        (said,) = esp.log().splitlines()
        assert f"{path}:{line}:" in said
        assert words in said
        assert not is_listening(esp.address)

    def test_without_a_config_it_says_where_it_looked(self, start_esp: Esps, tmp_path: Path) -> None:
        esp = start_esp.launch()
        assert esp.wait() == 2
        (said,) = esp.log().splitlines()
        assert "esp.yaml" in said
        assert "--local" in said

    def test_an_unknown_option_is_wrong_usage(self, start_esp: Esps) -> None:
        assert start_esp.launch("--nonsense").wait() == 2


class TestEnd:
    @pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_ends_it_with_0_and_frees_the_port(
        self, shards: list[LocalEtcd], start_esp: Esps, etcdctl: Etcdctl, sig: signal.Signals
    ) -> None:
        esp = start_esp(shards, ["i", "r"])
        etcdctl(esp, "get", "a")
        assert esp.stop(sig) == 0
        assert not is_listening(esp.address)

    def test_a_request_in_flight_is_answered_before_it_ends(self, start_etcd: Etcds, start_esp: Esps) -> None:
        shards = start_etcd.several(2)
        esp = start_esp(shards, ["m"])
        slow = shards[1].process
        assert slow
        with connect(esp) as channel:
            kv = rpc_pb2_grpc.KVStub(channel)
            kv.Put(rpc_pb2.PutRequest(key=b"z"))
            freeze(slow)
            pending = kv.Put.future(rpc_pb2.PutRequest(key=b"z"), timeout=60)
            # It has reached esp when a later one on the same connection has been answered.
            kv.Put(rpc_pb2.PutRequest(key=b"a"), timeout=60)
            esp.process.send_signal(signal.SIGTERM)
            wait_until(lambda: not is_listening(esp.address))
            assert esp.process.poll() is None
            slow.send_signal(signal.SIGCONT)
            assert pending.result(timeout=60).header.revision > 0
        assert esp.wait() == 0

    def test_an_idle_connection_is_told_to_go_and_does_not_hold_it_up(
        self, shards: list[LocalEtcd], start_esp: Esps
    ) -> None:
        esp = start_esp(shards, ["i", "r"])
        with socket.create_connection(("127.0.0.1", esp.port), timeout=30) as client:
            client.sendall(PREFACE + frame(4))
            wait_for_frame(client, 4)
            assert esp.stop(signal.SIGTERM) == 0
            wait_for_frame(client, GOAWAY)


def frame(kind: int, payload: bytes = b"", flags: int = 0, stream: int = 0) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def wait_for_frame(client: socket.socket, kind: int) -> bytes:
    """The payload of the next HTTP/2 frame of this kind; the frames before it are dropped."""
    while True:
        head = receive(client, 9)
        payload = receive(client, int.from_bytes(head[:3], "big"))
        if head[3] == kind:
            return payload


def receive(client: socket.socket, size: int) -> bytes:
    got = b""
    while len(got) < size:
        part = client.recv(size - len(got))
        assert part, "the connection ended before the frame that was waited for"
        got += part
    return got


class TestLocal:
    def launch(self, start_esp: Esps, count: int = 3) -> EspProcess:
        esp = start_esp.launch("--local", str(count))
        esp.wait_ready()
        return esp

    def test_it_writes_a_config_serves_and_takes_its_etcds_along(
        self, start_esp: Esps, tmp_path: Path, etcdctl: Etcdctl
    ) -> None:
        esp = self.launch(start_esp)
        path = tmp_path / ".esp" / "esp.yaml"
        shards = config.load(path).shards
        assert [shard.name for shard in shards] == ["shard-1", "shard-2", "shard-3"]
        for key in "ajz":
            etcdctl(esp, "put", key, "here")
        for shard, key in zip(shards, "ajz", strict=True):
            assert etcdctl(str(shard.endpoints[0]), "get", "", "--from-key").stdout == f"{key}\nhere\n"
        said = esp.log()
        for words in ("shard-1", "shard-2", "shard-3", "etcdctl", "put a 1", "esp route", "esp check"):
            assert words in said
        assert esp.stop(signal.SIGINT) == 0
        assert not any(is_listening(f"{shard.endpoints[0].host}:{shard.endpoints[0].port}") for shard in shards)

    def test_the_next_run_has_the_keys_of_the_last(self, start_esp: Esps, etcdctl: Etcdctl) -> None:
        first = self.launch(start_esp, 2)
        etcdctl(first, "put", "z", "kept")
        assert first.stop() == 0
        second = self.launch(start_esp, 2)
        assert etcdctl(second, "get", "z").stdout == "z\nkept\n"

    def test_another_number_of_shards_is_refused_in_one_line(self, start_esp: Esps) -> None:
        assert self.launch(start_esp, 2).stop() == 0
        other = start_esp.launch("--local", "3")
        assert other.wait() == 1
        (said,) = other.log().splitlines()
        assert "--local 2" in said

    def test_a_missing_etcd_is_told_with_the_cure(
        self, start_esp: Esps, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        start_esp.binary = tmp_path / "absent"
        esp = start_esp.launch("--local", "3")
        assert esp.wait() == 1
        (said,) = esp.log().splitlines()
        assert "ESP_ETCD" in said

    @pytest.mark.skipif(os.uname().sysname != "Linux", reason="only Linux can tie a process to its parent")
    def test_kill_9_leaves_no_etcd_behind(self, start_esp: Esps, tmp_path: Path) -> None:
        esp = self.launch(start_esp)
        endpoints = [shard.endpoints[0] for shard in config.load(tmp_path / ".esp" / "esp.yaml").shards]
        addresses = [f"{endpoint.host}:{endpoint.port}" for endpoint in endpoints]
        assert all(is_listening(address) for address in addresses)
        assert esp.stop(signal.SIGKILL) == -signal.SIGKILL
        wait_until(lambda: not any(is_listening(address) for address in addresses))


def ask(server: Server, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(server.address, timeout=30)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


class TestPages:
    def test_version_is_that_of_the_shards(self, esp: EspProcess, shards: list[LocalEtcd]) -> None:
        status, body = ask(esp, "GET", "/version")
        told = json.loads(body)
        assert esp.config
        about = version("etcd-sharding-proxy"), build(), config.load(esp.config).shard_map.fingerprint, "1"
        assert (told.pop("esp"), told.pop("build"), told.pop("map"), told.pop("epoch")) == about
        assert (status, told) == (200, json.loads(ask(shards[0], "GET", "/version")[1]))

    def test_health_is_said_as_etcd_says_it(self, esp: EspProcess) -> None:
        status, body = ask(esp, "GET", "/health")
        assert status == 200
        assert json.loads(body)["health"] == "true"

    @pytest.mark.parametrize("path", ["/livez", "/readyz"])
    def test_probes_are_ok(self, esp: EspProcess, path: str) -> None:
        status, body = ask(esp, "GET", path)
        assert (status, body.strip()) == (200, b"ok")

    def test_not_ready_but_live_while_no_shard_can_be_reached(self, start_etcd: Etcds, start_esp: Esps) -> None:
        shard = start_etcd()
        esp = start_esp([shard])
        wait_until(lambda: ask(esp, "GET", "/readyz")[0] == 200)
        shard.kill()
        wait_until(lambda: ask(esp, "GET", "/readyz")[0] == 503)
        assert ask(esp, "GET", "/health")[0] == 503
        assert ask(esp, "GET", "/livez")[0] == 200

    @pytest.mark.parametrize("path", ["/nothing", "/", "/v3/kv/nothing"])
    def test_the_rest_is_not_found(self, esp: EspProcess, path: str) -> None:
        assert ask(esp, "GET", path)[0] == 404

    def test_a_grpc_call_over_http_1_gets_an_http_error(self, esp: EspProcess, etcd: LocalEtcd) -> None:
        question = ("POST", "/etcdserverpb.KV/Put", b"\0\0\0\0\x05\x0a\x01a\x12\0")
        assert ask(esp, *question)[0] == ask(etcd, *question)[0]

    def test_several_pages_come_over_one_connection(self, esp: EspProcess) -> None:
        connection = http.client.HTTPConnection(esp.address, timeout=30)
        for _ in range(3):
            connection.request("GET", "/livez")
            assert connection.getresponse().read().strip() == b"ok"
        connection.close()


class TestStrangers:
    """One client's nonsense ends its own connection; another client's connection notices nothing."""

    @pytest.mark.parametrize(
        "nonsense",
        [
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
            b"\0" * 4096,
            b"\xff" * 4096,
            b"GET\r\n\r\n",
            PREFACE + frame(4) + b"\xff" * 4096,
            PREFACE + frame(1, b"\x80", flags=4, stream=1),
            PREFACE + frame(0, b"x", stream=1),
            PREFACE + frame(4, b"abc"),
            PREFACE + frame(8, b"\0\0\0\0"),
        ],
        ids=["tls", "zeros", "ones", "half http", "frame too long", "bad hpack", "data on idle", "settings", "window"],
    )
    def test_garbage_ends_only_the_connection_it_came_on(
        self, start_esp: Esps, empty_shards: list[LocalEtcd], nonsense: bytes
    ) -> None:
        esp = start_esp(empty_shards, ["i", "r"])
        with connect(esp) as channel:
            kv = rpc_pb2_grpc.KVStub(channel)
            kv.Put(rpc_pb2.PutRequest(key=b"a", value=b"1"))
            with socket.create_connection(("127.0.0.1", esp.port), timeout=30) as stranger:
                name = stranger.getsockname()[1]
                stranger.sendall(nonsense)
                pending = kv.Put.future(rpc_pb2.PutRequest(key=b"j", value=b"2"))
                if nonsense.startswith(PREFACE):
                    wait_for_frame(stranger, GOAWAY)
                try:
                    while stranger.recv(65536):
                        pass
                except ConnectionResetError:
                    pass  # esp closed before it had read all of the nonsense
            assert pending.result(timeout=30).header.revision > 0
            assert kv.Range(rpc_pb2.RangeRequest(**EVERYTHING)).count == 2
        wait_until(lambda: str(name) in esp.log())

    def test_a_client_that_goes_away_in_the_middle_of_a_frame_is_forgotten(
        self, esp: EspProcess, kv: rpc_pb2_grpc.KVStub
    ) -> None:
        for cut in (1, 10, len(PREFACE), len(PREFACE) + 4):
            with socket.create_connection(("127.0.0.1", esp.port), timeout=30) as stranger:
                stranger.sendall((PREFACE + frame(4))[:cut])
        kv.Put(rpc_pb2.PutRequest(key=b"a"))


def test_the_originals_config_file_works_as_it_is(
    empty_shards: list[LocalEtcd], start_esp: Esps, tmp_path: Path, etcdctl: Etcdctl
) -> None:
    first, second, third = (shard.address for shard in empty_shards)
    path = tmp_path / "original.yaml"
    path.write_text(
        "shards:\n"
        f'  - {{start: "", end: i, address: {first}}}\n'
        f"  - {{start: i, end: r, address: {second}}}\n"
        f'  - {{start: r, end: "", address: {third}}}\n'
    )
    esp = start_esp.launch("-c", path)
    esp.wait_ready()
    for key in "ajz":
        etcdctl(esp, "put", key, "here")
    for shard, key in zip(empty_shards, "ajz", strict=True):
        assert etcdctl(shard, "get", "", "--from-key").stdout == f"{key}\nhere\n"


def test_boundaries_need_not_be_text(empty_shards: list[LocalEtcd], start_esp: Esps, tmp_path: Path) -> None:
    path = write_config(tmp_path / "binary.yaml", empty_shards, [b"\x01\xff", b"\xff\0"])
    esp = start_esp.launch("-c", path)
    esp.wait_ready()
    edges = [b"\x01\xfe", b"\x01\xff", b"\xff", b"\xff\0"]
    with connect(esp) as channel:
        kv = rpc_pb2_grpc.KVStub(channel)
        for key in edges:
            kv.Put(rpc_pb2.PutRequest(key=key))
        assert [row.key for row in kv.Range(rpc_pb2.RangeRequest(**EVERYTHING)).kvs] == edges
    counts = []
    for shard in empty_shards:
        with connect(shard) as channel:
            counts.append(rpc_pb2_grpc.KVStub(channel).Range(rpc_pb2.RangeRequest(**EVERYTHING)).count)
    assert counts == [1, 2, 1]
