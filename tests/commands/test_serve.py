"""The messages of `esp serve` at its start, and its handling of signals; tests/integration tests the serving."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import grpc
import pytest

from esp import build
from esp.commands import serve
from esp.core import config
from esp.core.local import LocalEtcd
from esp.core.pb import rpc_pb2
from tests.core.scripted_etcd import ScriptedEtcd
from tests.harness import (
    PATIENCE,
    EspProcess,
    Esps,
    Etcds,
    connect,
    free_port,
    freeze,
    is_listening,
    unknown,
    wait_until,
)
from tests.stubs import rpc_pb2_grpc

TIME = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z ", re.MULTILINE)


def said(esp: EspProcess) -> str:
    """Its log without the time of day."""
    text, times = TIME.subn("", esp.log())
    assert times == len(text.splitlines())
    return text


def stop_while_a_call_hangs(esp: EspProcess, slow: LocalEtcd) -> None:
    """Leaves esp draining, with a call open to a shard that is frozen."""
    assert slow.process
    freeze(slow.process)
    with connect(esp) as channel, ThreadPoolExecutor(1) as pool:
        kv = rpc_pb2_grpc.KVStub(channel)
        pending = kv.Put.future(rpc_pb2.PutRequest(key=b"z"), timeout=60)
        # It has reached esp when a later one on the same connection has been answered.
        kv.Put(rpc_pb2.PutRequest(key=b"a"), timeout=60)
        esp.process.send_signal(signal.SIGINT)
        wait_until(lambda: not is_listening(esp.address))
        assert esp.process.poll() is None
        ended = pool.submit(esp.wait)
        esp.process.send_signal(signal.SIGINT)
        assert pending.code() is grpc.StatusCode.UNAVAILABLE
        assert ended.result() == 0


def about(esp: EspProcess) -> str:
    assert esp.config
    fingerprint = config.load(esp.config).shard_map.fingerprint
    return f"esp {version('etcd-sharding-proxy')} ({build()}), config {esp.config}, map {fingerprint}"


class TestLines:
    def test_a_usual_run_is_three_lines(self, shards: list[LocalEtcd], start_esp: Esps) -> None:
        esp = start_esp(shards, ["i", "r"])
        assert esp.stop() == 0
        assert said(esp) == (
            f"INFO ready on {esp.url}; shards s0, s1, s2; {about(esp)}\n"
            "INFO stopping; calls in flight have 10 s, a second signal cuts them\n"
            "INFO stopped\n"
        )

    def test_a_shard_that_is_down_is_named(self, etcd: LocalEtcd, start_etcd: Etcds, start_esp: Esps) -> None:
        dead = start_etcd()
        dead.kill()
        esp = start_esp([etcd, dead], ["m"])
        assert said(esp) == (
            f"WARNING shard s1: no endpoint can be used: {dead.endpoint}: connection refused\n"
            f"WARNING ready on {esp.url}; shards s0, s1; {about(esp)}; not reachable yet: s1\n"
        )
        dead.start()
        back = re.compile(rf"INFO shard s1: back after [0-9.]+ m?s: connected to {dead.endpoint}\n\Z")
        wait_until(lambda: back.search(said(esp)) is not None)

    def test_on_a_terminal_the_time_is_short(self, etcd: LocalEtcd, tmp_path: Path) -> None:
        path = tmp_path / "esp.yaml"
        path.write_text(f"shards: [{{endpoints: [{etcd.endpoint}], ranges: [{{start: '', end: ''}}]}}]\n")
        ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "esp", "serve", "-c", path, "--listen", f"http://127.0.0.1:{free_port()}"]
        with subprocess.Popen(command, stderr=theirs) as process:
            try:
                line = os.read(ours, 4096).decode()
            finally:
                process.send_signal(signal.SIGTERM)
                os.close(theirs)
        os.close(ours)
        assert re.match(
            r"\d\d:\d\d:\d\d ready on http://127\.0\.0\.1:\d+; shard-0; esp .*, config .*, map [0-9a-f]{12}\r\n",
            line,
        )

    def test_an_unknown_host_is_told_with_its_line_and_the_others_are_served(
        self, etcd: LocalEtcd, start_esp: Esps, tmp_path: Path
    ) -> None:
        path = tmp_path / "bad.yaml"
        path.write_text(
            "shards:\n"
            f"- {{name: a, endpoints: [no-such-host.invalid:1, {etcd.endpoint}], ranges: [{{start: '', end: m}}]}}\n"
            "- {name: b, endpoints: [nor-this.invalid:1], ranges: [{start: m, end: ''}]}\n"
        )
        esp = start_esp.launch("-c", path)
        esp.wait_ready()
        other = f'{path}:3: shard "b": {unknown("nor-this.invalid")}; esp goes on trying\n'
        wait_until(lambda: re.search(other, esp.log()) is not None)
        assert re.search(f'{path}:2: shard "a": {unknown("no-such-host.invalid")}; esp goes on trying\n', esp.log())
        assert "not reachable yet: b\n" in esp.log()

    def test_a_config_without_any_host_name_that_exists_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "bad.yaml"
        path.write_text("shards:\n- {name: a, endpoints: [no.such.host:1], ranges: [{start: '', end: ''}]}\n")
        code = (
            "import runpy, socket, sys\n"
            "def nobody(*_, **__): raise socket.gaierror(socket.EAI_NONAME, 'no such name')\n"
            f"sys.argv = ['esp', 'serve', '-c', {str(path)!r}]\n"
            "socket.getaddrinfo = nobody\n"
            "runpy.run_module('esp', run_name='__main__')\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
        told = 'the host name "no.such.host" is not known; correct it or use an address\n'
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == (
            f'esp: {path}:2: no endpoint of any shard can be used, the first is of shard "a": {told}'
        )

    @pytest.mark.parametrize("listen", ["127.0.0.1", "0.0.0.0", "localhost"])
    def test_an_endpoint_that_is_esp_itself_is_refused(self, start_esp: Esps, tmp_path: Path, listen: str) -> None:
        path = tmp_path / "loop.yaml"
        port = free_port()
        path.write_text(
            f"listen: [http://{listen}:{port}]\n"
            f"shards:\n- endpoints: [127.0.0.1:{port}]\n  ranges: [{{start: '', end: ''}}]\n"
        )
        command = [sys.executable, "-m", "esp", "serve", "-c", path]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 2
        said = f'esp: {path}:3: "shard-0": endpoint http://127.0.0.1:{port} is where esp itself listens'
        assert done.stderr.startswith(said)

    @pytest.mark.parametrize(
        ("url", "reason"),
        [
            ("http://no-such-host.invalid:1", "the host name is not known; use an address of this machine"),
            ("http://192.0.2.1:1", "this machine does not have that address"),
        ],
    )
    def test_an_address_that_is_not_here_cannot_be_listened_on(
        self, etcd: LocalEtcd, start_esp: Esps, tmp_path: Path, url: str, reason: str
    ) -> None:
        path = tmp_path / "esp.yaml"
        path.write_text(f"shards: [{{endpoints: [{etcd.endpoint}], ranges: [{{start: '', end: ''}}]}}]\n")
        esp = start_esp.launch("-c", path, "--listen", url)
        assert esp.wait() == 1
        assert esp.log() == f"esp: cannot listen on {url}: {reason}\n"

    def test_a_shard_whose_revisions_could_be_taken_for_tokens_is_not_served(
        self, start_esp: Esps, tmp_path: Path
    ) -> None:
        async def run() -> EspProcess:
            async with ScriptedEtcd() as etcd:
                etcd.revision = 1 << 60
                path = tmp_path / "esp.yaml"
                address = f"{etcd.endpoint.host}:{etcd.endpoint.port}"
                path.write_text(f"shards: [{{name: a, endpoints: ['{address}'], ranges: [{{start: '', end: ''}}]}}]\n")
                esp = start_esp.launch("-c", path)
                assert await asyncio.to_thread(esp.wait) == 1
                return esp

        assert 'esp: shard "a" cannot be served: it is at revision 1152921504606846976, and' in asyncio.run(run()).log()


class TestLocal:
    def test_a_port_in_use_is_told_before_anything_is_written(
        self, esp: EspProcess, start_esp: Esps, tmp_path: Path
    ) -> None:
        other = start_esp.launch("--local", "2", "--listen", esp.url)
        assert other.wait() == 1
        assert other.log() == (
            f"esp: cannot listen on {esp.url}: the port is in use; stop what listens there or name another with "
            "--listen\n"
        )
        assert not (tmp_path / ".esp").exists()

    @pytest.mark.parametrize("first", ["localhost", "0.0.0.0", "127.0.0.1"])
    @pytest.mark.parametrize("local", [True, False])
    def test_two_names_of_one_address_are_told(self, first: str, local: bool, start_esp: Esps, tmp_path: Path) -> None:
        port = free_port()
        second = "127.0.0.1" if first != "127.0.0.1" else "localhost"
        (tmp_path / "esp.yaml").write_text("shards: [{endpoints: [127.0.0.1:1], ranges: [{start: '', end: ''}]}]\n")
        listen = ["--listen", f"http://{first}:{port}", "--listen", f"http://{second}:{port}"]
        esp = start_esp.launch(*(["--local", "2"] if local else ["-c", tmp_path / "esp.yaml"]), *listen)
        assert esp.wait() == 1
        assert esp.log() == (
            f"esp: cannot listen on http://{second}:{port}: it is the address of http://{first}:{port}, "
            "which is listed too; remove one\n"
        )
        assert not (tmp_path / ".esp").exists()

    def test_a_port_in_use_is_told_before_etcds_start_again(
        self, esp: EspProcess, start_esp: Esps, tmp_path: Path
    ) -> None:
        first = start_esp.launch("--local", "1")
        first.wait_ready()
        assert first.stop() == 0
        path = tmp_path / ".esp" / "esp.yaml"
        path.write_text(path.read_text().replace(first.url, esp.url))
        log = path.with_name("shard-1.log")
        before = log.read_bytes()
        command = [sys.executable, "-m", "esp", "serve", "--local", "1"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 1
        assert f"cannot listen on {esp.url}" in done.stderr
        assert log.read_bytes() == before

    def test_a_listen_url_that_is_none_is_told_before_anything_is_written(
        self, start_esp: Esps, tmp_path: Path
    ) -> None:
        other = start_esp.launch("--local", "2", "--listen", "nonsense")
        assert other.wait() == 2
        assert not (tmp_path / ".esp").exists()


class TestSignals:
    def test_a_second_one_cuts_what_the_drain_waits_for(self, start_etcd: Etcds, start_esp: Esps) -> None:
        shards = start_etcd.several(2)
        esp = start_esp(shards, ["m"], extra="drain_seconds: 600")
        stop_while_a_call_hangs(esp, shards[1])
        assert said(esp).endswith("INFO stopped\n")

    def test_a_second_one_leaves_no_local_etcd_behind(self, start_esp: Esps, tmp_path: Path) -> None:
        esp = start_esp.launch("--local", "2")
        esp.wait_ready()
        endpoints = [shard.endpoints[0] for shard in config.load(tmp_path / ".esp" / "esp.yaml").shards]
        with connect(esp) as channel:
            rpc_pb2_grpc.KVStub(channel).Put(rpc_pb2.PutRequest(key=b"a"))
            esp.process.send_signal(signal.SIGINT)
            esp.process.send_signal(signal.SIGINT)
            esp.process.send_signal(signal.SIGTERM)
            assert esp.wait() == 0
        assert not any(is_listening(f"{endpoint.host}:{endpoint.port}") for endpoint in endpoints)

    def test_one_while_local_etcds_start_stops_them(self, start_esp: Esps, tmp_path: Path) -> None:
        esp = start_esp.launch("--local", "3")
        path = tmp_path / ".esp" / "esp.yaml"
        logs = [tmp_path / ".esp" / f"shard-{number}.log" for number in (1, 2, 3)]
        wait_until(lambda: all(log.exists() for log in logs))
        esp.process.send_signal(signal.SIGTERM)
        assert esp.wait() == 0
        endpoints = [shard.endpoints[0] for shard in config.load(path).shards]
        wait_until(lambda: not any(is_listening(f"{endpoint.host}:{endpoint.port}") for endpoint in endpoints))


class TestFlooded:
    """A log that others write to."""

    def test_what_comes_again_and_again_is_counted(self, etcd: LocalEtcd, start_esp: Esps) -> None:
        esp = start_esp([etcd])
        before = len(esp.log().splitlines())
        for _ in range(300):
            with socket.create_connection(("127.0.0.1", esp.port)) as client:
                client.sendall(bytes.fromhex("160301020001fc0303"))
                with contextlib.suppress(ConnectionError):
                    client.recv(1)
        assert esp.stop() == 0
        lines = esp.log().splitlines()[before:]
        assert "a TLS ClientHello at a plain port: let the client use http://" in lines[0]
        (told,) = [line for line in lines if "more like this" in line]
        assert re.search(r"WARNING \d+ more like this in the last \d+ s from 1 address, the last: 127", told)
        assert len(lines) < 10


class TestFormats:
    def test_in_json_every_line_of_a_run_is_an_object(
        self, etcd: LocalEtcd, start_etcd: Etcds, start_esp: Esps
    ) -> None:
        dead = start_etcd()
        dead.kill()
        esp = start_esp([etcd, dead], ["m"], extra="log: {format: json}")
        assert esp.stop() == 0
        lines = [json.loads(line) for line in esp.log().splitlines()]
        assert [line["level"] for line in lines] == ["warning", "warning", "info", "info"]
        assert lines[0]["shard"] == "s1"
        names = ("version", "build", "config", "map", "epoch", "shards", "unreachable", "listen")
        ready = {name: lines[1][name] for name in names}
        assert esp.config
        assert ready == {
            "version": version("etcd-sharding-proxy"),
            "build": build(),
            "config": str(esp.config),
            "map": config.load(esp.config).shard_map.fingerprint,
            "epoch": 1,
            "shards": 2,
            "unreachable": 1,
            "listen": [esp.url],
        }
        assert [line["msg"].partition(";")[0] for line in lines[2:]] == ["stopping", "stopped"]

    def test_in_json_the_reason_of_a_refused_start_is_an_object_too(
        self, esp: EspProcess, start_esp: Esps, tmp_path: Path
    ) -> None:
        assert esp.config
        second = start_esp.launch("-c", esp.config, "--listen", esp.url, "--log-format", "json")
        assert second.wait() == 1
        (line,) = map(json.loads, second.log().splitlines())
        assert line["level"] == "error"
        assert line["msg"].startswith(f"cannot listen on {esp.url}: the port is in use")
        path = tmp_path / "bad.yaml"
        path.write_text("shards: []\n")
        third = start_esp.launch("-c", path, "--log-format", "json")
        assert third.wait() == 2
        assert json.loads(third.log())["msg"].startswith(f"{path}:1: ")

    def test_the_command_line_goes_before_the_file(self, etcd: LocalEtcd, start_esp: Esps, tmp_path: Path) -> None:
        path = tmp_path / "esp.yaml"
        shards = f"shards: [{{endpoints: [{etcd.endpoint}], ranges: [{{start: '', end: ''}}]}}]\n"
        path.write_text(shards + "log: {format: json, level: error}\n")
        esp = start_esp.launch("-c", path, "--log-format", "text", "--log-level", "debug")
        esp.wait_ready()
        assert "INFO shard-0: connected to" in said(esp), "which the ready line says as well, but this is debug"
        quiet = start_esp.launch("-c", path)
        wait_until(lambda: is_listening(quiet.address))
        assert quiet.stop() == 0
        assert quiet.log() == ""


class TestStuck:
    def test_a_log_that_nobody_reads_stops_no_call(self, etcd: LocalEtcd, tmp_path: Path) -> None:
        """As with `esp serve 2>&1 | less`, when less is asked for no more."""
        path = tmp_path / "esp.yaml"
        path.write_text(f"shards: [{{endpoints: [{etcd.endpoint}], ranges: [{{start: '', end: ''}}]}}]\n")
        port = free_port()
        command = [sys.executable, "-m", "esp", "serve", "-c", path, "--listen", f"http://127.0.0.1:{port}"]
        read, write = os.pipe()
        os.set_blocking(write, False)
        with contextlib.suppress(BlockingIOError):
            while os.write(write, b"\n" * 65536):
                pass
        os.set_blocking(write, True)
        with subprocess.Popen(command, stderr=write) as process:
            os.close(write)
            try:
                wait_until(lambda: is_listening(f"127.0.0.1:{port}"))
                for _ in range(3):
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/livez", timeout=PATIENCE) as page:
                        assert page.read() == b"ok\n"
            finally:
                process.send_signal(signal.SIGTERM)
                text = b""
                while part := os.read(read, 65536):
                    text += part
                os.close(read)
            assert process.wait(PATIENCE) == 0
        lines = text.decode().strip("\n").splitlines()
        assert [line.split()[2].rstrip(";") for line in lines[-2:]] == ["stopping", "stopped"]


def test_a_thousand_shards_are_not_a_thousand_names(caplog: pytest.LogCaptureFixture) -> None:
    ranges = "".join(
        f"- {{endpoints: ['127.0.0.1:{port}'], ranges: [{{start: '{port if port > 10_000 else ''}', "
        f"end: '{port + 1 if port < 10_999 else ''}'}}]}}\n"
        for port in range(10_000, 11_000)
    )
    found = config.parse(f"shards:\n{ranges}", Path("esp.yaml"))
    caplog.set_level(logging.INFO, "esp")
    serve._tell_ready(found, [config.Listen("127.0.0.1", 2379)], [shard.name for shard in found.shards[3:]])
    assert caplog.messages == [
        "ready on http://127.0.0.1:2379; shard-0, shard-1, shard-2, shard-3, shard-4 and 995 more; "
        f"esp {version('etcd-sharding-proxy')} ({build()}), config esp.yaml, map {found.shard_map.fingerprint}; "
        "not reachable yet: shard-3, shard-4, shard-5, shard-6, shard-7 and 992 more"
    ]
