"""Memory of idle connections, with and without a watch, of watchers and of leases: of esp, and of its peers.

    python -m bench.sizing [--connections 1000 --connections 10000] [--others 10000]
    python -m bench.sizing --peers esp,haproxy-h2,grpc-proxy,direct --connections 1000

docs/operations.md has the figures of esp, docs/benchmarks.md those beside the peers. Each row has processes of its own,
with three etcds behind. RSS is VmRSS two seconds after the last one was made; that of `direct` is the etcd's.
"""

from __future__ import annotations

import argparse
import resource
import socket
import ssl
import struct
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import hpack

from bench.etcd import call
from bench.measure import running_backends
from bench.peers import Backends, Direct, Esp, EspTls, GrpcProxy, Haproxy, HaproxyTls, Peer
from bench.processes import BenchError, Process
from bench.watch import expect, load
from bench.workloads import KEY, WORKLOADS
from esp.core.pb import rpc_pb2

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, ACK = b"\0\0\0\4\0\0\0\0\0", b"\0\0\0\4\1\0\0\0\0"
SETTLE = 2.0


def frame(kind: int, flags: int, payload: bytes) -> bytes:
    """A frame of stream 1."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + struct.pack(">L", 1) + payload


def request(address: str, path: str, message: bytes, *, ends: bool) -> bytes:
    """A connection's first bytes, with one call."""
    fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", address),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        ("user-agent", "grpc-go/1.76.0"),
    ]
    body = struct.pack(">BL", 0, len(message)) + message
    return PREFACE + SETTINGS + ACK + frame(1, 4, hpack.Encoder().encode(fields)) + frame(0, int(ends), body)


def _trusting() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context


def connect(
    address: str, number: int, opening: bytes, *, trailers: bool, tls: ssl.SSLContext | None
) -> list[socket.socket]:
    """So many connections whose call has been answered, a hundred at a time."""
    host, _, port = address.rpartition(":")
    open_ones: list[socket.socket] = []
    while len(open_ones) < number:
        # No address may have all connections (common_share).
        ours = (f"127.0.0.{2 + len(open_ones) // 100 % 8}", 0)
        wanted = min(100, number - len(open_ones))
        new = []
        for _ in range(wanted):
            sock = socket.create_connection((host, int(port)), 10, ours)
            new.append(sock if tls is None else tls.wrap_socket(sock))
            new[-1].sendall(opening)  # at once: esp waits neither for a handshake nor for a first request for long
        for sock in new:
            _wait_for_answer(sock, trailers)
        open_ones += new
    return open_ones


def _wait_for_answer(sock: socket.socket, trailers: bool) -> None:
    """Until a DATA frame has come, or the frame that ends the call."""
    buffer = b""
    while True:
        while len(buffer) >= 9 and len(buffer) >= (size := 9 + int.from_bytes(buffer[:3], "big")):
            kind, flags = buffer[3], buffer[4]
            buffer = buffer[size:]
            if (kind == 0 and not trailers) or (kind in (0, 1) and flags & 1):
                return
        more = sock.recv(65536)
        if not more:
            raise BenchError("esp closed a connection")
        buffer += more


def watch_of(key: bytes) -> bytes:
    """The message that creates a watcher."""
    return rpc_pb2.WatchRequest(create_request=rpc_pb2.WatchCreateRequest(key=key)).SerializeToString()


class Roomy(Esp):
    """esp that ends no idle connection to make room."""

    def config(self, backends: Backends, folder: Path) -> str:
        return f"{super().config(backends, folder)}limits: {{max_connections: 18000}}\n"


class RoomyTls(Roomy, EspTls):
    """The same with TLS for clients."""


class RoomyHaproxy(Haproxy):
    """haproxy for as many connections."""

    most_connections = 9_900  # two descriptors each; most systems give a process 20,000


class RoomyHaproxyTls(HaproxyTls):
    """The same with TLS for clients."""

    most_connections = 9_900


KINDS: dict[str, type[Peer]] = {
    "esp": Roomy,
    "esp-tls": RoomyTls,
    "haproxy-h2": RoomyHaproxy,
    "haproxy-h2-tls": RoomyHaproxyTls,
    "grpc-proxy": GrpcProxy,
    "direct": Direct,
}
ONLY_CONNECTIONS = ("esp-tls", "haproxy-h2", "haproxy-h2-tls")
"""Peers that only have rows of idle connections: haproxy keeps nothing about watches and leases."""


@contextmanager
def running(name: str, folder: Path) -> Iterator[tuple[str, Process]]:
    """A peer that has had one call, with fresh etcds behind it: its address, and the process that is measured."""
    with tempfile.TemporaryDirectory(dir=folder) as its_own, ExitStack() as stack:
        place = Path(its_own)
        backends = stack.enter_context(running_backends(WORKLOADS["put-1x1"], place))
        peer = KINDS[name]()
        stack.callback(peer.stop)
        (place / "peer").mkdir()
        peer.start(backends, place / "peer")
        call(peer.address, "Range", rpc_pb2.RangeRequest(key=KEY))
        time.sleep(SETTLE)
        yield peer.address, peer.process or backends.sole.process


def _print(name: str, what: str, number: int, before: float, after: float, *rest: str) -> None:
    each = (after - before) * 1000 / number
    cells = [name, f"{number:,} {what}", f"{before:.0f}", f"{after:.0f}", f"{each:.1f}", *(rest or ("", ""))]
    print(f"| {' | '.join(cells)} |", flush=True)


def connections(name: str, folder: Path, what: str, number: int, path: str, message: bytes, *, ends: bool) -> None:
    """A row: connections with one call each, which is over or goes on."""
    with running(name, folder) as (address, process):
        tls = _trusting() if address.startswith("https://") else None
        address = address.removeprefix("https://")
        before = process.memory_mb("VmRSS")
        open_ones = connect(address, number, request(address, path, message, ends=ends), trailers=ends, tls=tls)
        time.sleep(SETTLE)
        after = process.memory_mb("VmRSS")
        cpu = process.cpu().total
        time.sleep(5)
        idle = (process.cpu().total - cpu) / 5
        for sock in open_ones:
            sock.close()
        time.sleep(SETTLE)
        _print(name, what, number, before, after, f"{idle * 100:.1f} %", f"{process.memory_mb('VmRSS'):.0f}")


def watchers(name: str, folder: Path, number: int) -> None:
    """A row: watchers of a key each, on 50 connections."""
    with running(name, folder) as (address, process):
        before = process.memory_mb("VmRSS")
        flags = [f"--watchers={number}", "--keys=different", "--rate=1", "--puts=1", "--warm-up=1"]
        with load([sys.executable, "-m", "bench.watch_load", address, address, *flags]) as watching:
            expect(watching, name, "ready")
            time.sleep(SETTLE)
            _print(name, "watchers of a key each", number, before, process.memory_mb("VmRSS"))


def leases(name: str, folder: Path, number: int) -> None:
    """A row: leases that were granted."""
    with running(name, folder) as (address, process):
        before = process.memory_mb("VmRSS")
        with grpc.insecure_channel(address) as channel:
            grant = channel.unary_unary(
                "/etcdserverpb.Lease/LeaseGrant",
                request_serializer=rpc_pb2.LeaseGrantRequest.SerializeToString,
                response_deserializer=rpc_pb2.LeaseGrantResponse.FromString,
            )
            for _ in range(number // 100):
                for pending in [grant.future(rpc_pb2.LeaseGrantRequest(TTL=3600)) for _ in range(100)]:
                    pending.result(timeout=30)
        time.sleep(SETTLE)
        _print(name, "leases", number, before, process.memory_mb("VmRSS"))


def run(names: Sequence[str], numbers: Sequence[int], others: int) -> None:
    """Measures and prints; `others` is the number of watchers, and of leases."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    key = rpc_pb2.RangeRequest(key=KEY).SerializeToString()
    watch = watch_of(b"bench/sizing")
    print("| peer | what | RSS before, MB | RSS, MB | kB each | CPU of a core while idle | RSS after, MB |")
    print("|---|---|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory(prefix="esp-sizing-", dir="/dev/shm") as place:
        folder = Path(place)
        for number in numbers:
            for name in names:
                connections(name, folder, "idle connections", number, "/etcdserverpb.KV/Range", key, ends=True)
        holding = [name for name in names if name not in ONLY_CONNECTIONS]
        for number in numbers:
            for name in holding:
                what = "connections with a watch of one key"
                connections(name, folder, what, number, "/etcdserverpb.Watch/Watch", watch, ends=False)
        for row in (watchers, leases):
            for name in holding:
                row(name, folder, others)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, action="append", help="default: 1000 and 10000")
    parser.add_argument("--others", type=int, default=10_000, help="watchers, and leases")
    parser.add_argument("--peers", default="esp,esp-tls", help=f"of {', '.join(KINDS)}; default: esp,esp-tls")
    arguments = parser.parse_args()
    run(arguments.peers.split(","), arguments.connections or [1000, 10_000], arguments.others)


if __name__ == "__main__":
    main()
