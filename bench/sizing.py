"""What docs/operations.md says of sizes: memory of idle connections, with and without a watch, and of leases.

    python -m bench.sizing [--connections 1000 --connections 10000] [--leases 10000]

Each row has an esp of its own over three etcds. RSS is VmRSS two seconds after the last connection was made.
"""

from __future__ import annotations

import argparse
import resource
import socket
import ssl
import struct
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import grpc
import hpack

from bench.etcd import call
from bench.measure import running_backends
from bench.peers import Backends, Esp, EspTls
from bench.processes import BenchError
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
        new = [socket.create_connection((host, int(port)), 10, ours) for _ in range(wanted)]
        if tls is not None:
            new = [tls.wrap_socket(sock) for sock in new]
        for sock in new:
            sock.sendall(opening)
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


class Sizing:
    """Rows of a table, each measured on an esp of its own."""

    def __init__(self, folder: Path, backends: Backends) -> None:
        self._folder = folder
        self._backends = backends

    def _esp(self, *, tls: bool = False) -> Esp:
        esp = RoomyTls() if tls else Roomy()
        esp.start(self._backends, self._folder)
        call(esp.address, "Range", rpc_pb2.RangeRequest(key=KEY))
        time.sleep(SETTLE)
        return esp

    def row(self, what: str, number: int, path: str, message: bytes, *, ends: bool, tls: bool = False) -> None:
        """Connections with one call each, which is over or goes on."""
        esp = self._esp(tls=tls)
        assert esp.process
        address = esp.address.removeprefix("https://")
        try:
            before = esp.process.memory_mb("VmRSS")
            opening = request(address, path, message, ends=ends)
            open_ones = connect(address, number, opening, trailers=ends, tls=_trusting() if tls else None)
            time.sleep(SETTLE)
            after = esp.process.memory_mb("VmRSS")
            cpu = esp.process.cpu().total
            time.sleep(5)
            idle = (esp.process.cpu().total - cpu) / 5
            for sock in open_ones:
                sock.close()
            time.sleep(SETTLE)
            left = esp.process.memory_mb("VmRSS")
        finally:
            esp.stop()
        each = (after - before) * 1000 / number
        print(
            f"| {number:,} {what} | {before:.0f} | {after:.0f} | {each:.1f} | {idle * 100:.1f} % | {left:.0f} |",
            flush=True,
        )

    def leases(self, number: int) -> None:
        """Leases granted through esp."""
        esp = self._esp()
        assert esp.process
        try:
            before = esp.process.memory_mb("VmRSS")
            with grpc.insecure_channel(esp.address) as channel:
                grant = channel.unary_unary(
                    "/etcdserverpb.Lease/LeaseGrant",
                    request_serializer=rpc_pb2.LeaseGrantRequest.SerializeToString,
                    response_deserializer=rpc_pb2.LeaseGrantResponse.FromString,
                )
                for _ in range(number // 100):
                    for pending in [grant.future(rpc_pb2.LeaseGrantRequest(TTL=3600)) for _ in range(100)]:
                        pending.result(timeout=30)
            time.sleep(SETTLE)
            after = esp.process.memory_mb("VmRSS")
        finally:
            esp.stop()
        print(
            f"| {number:,} leases | {before:.0f} | {after:.0f} | {(after - before) * 1000 / number:.1f} | | |",
            flush=True,
        )


def run(connections: Iterable[int], leases: int) -> None:
    """Measures and prints."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    key = rpc_pb2.RangeRequest(key=KEY).SerializeToString()
    print("| what | RSS before, MB | RSS, MB | kB each | CPU of a core while idle | RSS after, MB |")
    print("|---|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory(prefix="esp-sizing-", dir="/dev/shm") as name:
        folder = Path(name)
        with running_backends(WORKLOADS["put-1x1"], folder) as backends:
            sizing = Sizing(folder, backends)
            for number in connections:
                sizing.row("idle connections", number, "/etcdserverpb.KV/Range", key, ends=True)
            for number in connections:
                what = "idle connections with TLS"
                sizing.row(what, number, "/etcdserverpb.KV/Range", key, ends=True, tls=True)
            for number in connections:
                watch = watch_of(b"bench/sizing")
                sizing.row(
                    "connections with a watch of one shard", number, "/etcdserverpb.Watch/Watch", watch, ends=False
                )
            sizing.leases(leases)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, action="append", help="default: 1000 and 10000")
    parser.add_argument("--leases", type=int, default=10_000)
    arguments = parser.parse_args()
    run(arguments.connections or [1000, 10_000], arguments.leases)


if __name__ == "__main__":
    main()
