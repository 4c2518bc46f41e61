"""Stock clients over TLS and unix sockets, through an esp that asks for certificates and listens in the plain too."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from esp.core.local import free_port
from esp.core.local_tls import Authority
from esp.core.pb import rpc_pb2
from tests.harness import EspProcess, etcd_of, etcdctl_of, run_etcdctl, running_esps, running_etcds, wait_until
from tests.stubs import rpc_pb2_grpc


@dataclass
class Secured:
    """A running esp, and files for its clients."""

    esp: EspProcess
    url: str
    sock: Path
    folder: Path
    etcdctl: Path

    @property
    def flags(self) -> list[str]:
        """For etcdctl and curl alike."""
        files = {"--cacert": "ca.crt", "--cert": "client.crt", "--key": "client.key"}
        return [word for flag, name in files.items() for word in (flag, str(self.folder / name))]

    @property
    def context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.folder / "ca.crt")
        context.load_cert_chain(self.folder / "client.crt", self.folder / "client.key")
        return context


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("tls")
    ca = Authority()
    (folder / "ca.crt").write_bytes(ca.cert)
    ca.issue(["localhost", "127.0.0.1"]).write(folder, "server")
    ca.issue(common_name="root").write(folder, "client")
    binary = etcd_of("3.7")
    url, sock = f"https://127.0.0.1:{free_port()}", folder / "esp.sock"
    with running_etcds(folder, binary) as etcds, running_esps(folder, binary) as esps:
        listen = ["--listen", url, "--listen", f"unix:{sock}"]
        tls = "tls: {cert: server.crt, key: server.key, client_ca: ca.crt}"
        esp = esps([etcds(), etcds()], ["m"], *listen, extra=tls)
        yield Secured(esp, url, sock, folder, etcdctl_of("3.7"))


def test_etcdctl_with_its_certificate(secured: Secured) -> None:
    def etcdctl(*arguments: str) -> str:
        return run_etcdctl(secured.etcdctl, secured.url, *secured.flags, *arguments).stdout

    assert etcdctl("put", "a", "1") == etcdctl("put", "z", "2") == "OK\n"
    assert etcdctl("get", "", "--from-key") == "a\n1\nz\n2\n"
    assert "is healthy" in etcdctl("endpoint", "health")
    [member] = json.loads(etcdctl("member", "list", "-w", "json"))["members"]
    assert sorted(member["clientURLs"]) == sorted([secured.url, secured.esp.url])
    plain = run_etcdctl(secured.etcdctl, secured.esp, "get", "a").stdout
    assert plain == run_etcdctl(secured.etcdctl, f"unix://{secured.sock}", "get", "a").stdout == "a\n1\n"


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_curl_gets_the_gateway_and_the_health(secured: Secured) -> None:
    def curl(*arguments: str) -> str:
        command = ["curl", "--silent", "--show-error", "--fail", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout

    body = '{"key": "Y3VybA==", "value": "MQ=="}'
    for options in ([], ["--http1.1"], ["--http2"]):
        told = curl(*options, *secured.flags, "--write-out", " %{http_version}", "-d", body, f"{secured.url}/v3/kv/put")
        assert '"revision":' in told
        assert told.endswith(" 1.1")  # of all that curl offers
    assert json.loads(curl("--http2-prior-knowledge", *secured.flags, f"{secured.url}/health"))["health"] == "true"
    assert "true" in curl("--unix-socket", str(secured.sock), "http://localhost/health")


def test_grpcio_with_its_certificate_and_over_a_unix_socket(secured: Secured) -> None:
    ca, cert, key = ((secured.folder / name).read_bytes() for name in ("ca.crt", "client.crt", "client.key"))
    credentials = grpc.ssl_channel_credentials(ca, key, cert)
    value = bytes(1_000_000)
    with grpc.secure_channel(secured.url.removeprefix("https://"), credentials) as channel:
        rpc_pb2_grpc.KVStub(channel).Put(rpc_pb2.PutRequest(key=b"large", value=value))
    with grpc.insecure_channel(f"unix:{secured.sock}") as channel:
        [row] = rpc_pb2_grpc.KVStub(channel).Range(rpc_pb2.RangeRequest(key=b"large")).kvs
        assert row.value == value


def test_clients_that_do_not_fit_are_told_in_the_log(secured: Secured) -> None:
    etcdctl = secured.etcdctl
    flags = ["--dial-timeout=1s", "--command-timeout=1s"]
    without = run_etcdctl(etcdctl, secured.url, *secured.flags[:2], *flags, "get", "a", check=False)
    untrusting = run_etcdctl(etcdctl, secured.url, *flags, "get", "a", check=False)
    plain = run_etcdctl(etcdctl, secured.url.replace("https", "http"), *flags, "get", "a", check=False)
    tls = run_etcdctl(etcdctl, secured.esp.url.replace("http", "https"), *flags, "get", "a", check=False)
    for done, told in (
        (without, "the client shows no certificate, and client_ca asks for one: give the client a certificate"),
        (untrusting, "the client does not trust esp's certificate ("),
        (plain, "HTTP/2 without TLS at a TLS port: let the client use https://"),
        (tls, "a TLS ClientHello at a plain port: let the client use http://, or give esp a listen URL with https://"),
    ):
        assert done.returncode != 0
        wait_until(lambda told=told: told in secured.esp.log())
    assert "the frame header looked like an HTTP/1.1 header" in plain.stderr
    assert "first record does not look like a TLS handshake" in tls.stderr


def test_a_new_certificate_is_shown_to_new_clients_and_connections_stay(secured: Secured) -> None:
    other = Authority("another CA")
    old = grpc.secure_channel(
        secured.url.removeprefix("https://"),
        grpc.ssl_channel_credentials(
            *((secured.folder / name).read_bytes() for name in ("ca.crt", "client.key", "client.crt"))
        ),
    )
    kv = rpc_pb2_grpc.KVStub(old)
    kv.Put(rpc_pb2.PutRequest(key=b"before", value=b"1"))
    other.issue(["127.0.0.1"]).write(secured.folder, "server")
    wait_until(lambda: "new certificates are in use" in secured.esp.log())
    with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
        urllib.request.urlopen(f"{secured.url}/health", context=secured.context, timeout=10)
    (secured.folder / "ca.crt").write_bytes(other.cert + (secured.folder / "ca.crt").read_bytes())
    with urllib.request.urlopen(f"{secured.url}/health", context=secured.context, timeout=10) as answer:
        assert answer.status == 200
    assert kv.Range(rpc_pb2.RangeRequest(key=b"before")).count == 1
    old.close()
