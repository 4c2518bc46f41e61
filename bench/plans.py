"""`esp plan` of an etcd with many keys: how fast, and how much memory.

Run as `python -m bench.plans [--keys 1000000] [--folder DIR]`; prints Markdown. A folder keeps the etcd's files, so
that a second run need not write the keys again. The keys are of several shapes: objects of Kubernetes, hashes without a
separator, paths of another program; values of 10 to 1500 bytes, and twenty of 500 kB. A plan may take no more than
`MOST_MB`, however many keys there are.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc

from bench.etcd import call, etcd_binary
from bench.exports import Run, told
from esp.core.local import LocalEtcd
from esp.core.pb import rpc_pb2

RESOURCES = {
    "pods": (0.2, 1500),
    "events": (0.15, 300),
    "configmaps": (0.05, 700),
    "secrets": (0.04, 900),
    "leases": (0.02, 200),
    "example.com/widgets": (0.04, 300),
}
AT_ONCE = 120
UNDER_WAY = 16


def keys_of(count: int) -> Iterator[tuple[str, int]]:
    """Keys, with the sizes of their values."""
    for name, (share, size) in RESOURCES.items():
        for number in range(int(count * share)):
            yield f"/registry/{name}/ns{number % 50}/object-{number:07d}", size
    for number in range(int(count * 0.3)):
        yield hashlib.sha256(b"%d" % number).hexdigest()[:40], 40
    for number in range(20):
        yield f"/blobs/big/{number}", 500_000
    for number in range(count - 20 - int(count * 0.3) - sum(int(count * share) for share, _ in RESOURCES.values())):
        yield f"/app/users/{number % 1000}/{number}", 10


def fill(etcd: LocalEtcd, count: int) -> None:
    """Writes the keys."""
    method = "/etcdserverpb.KV/Txn"
    with grpc.insecure_channel(etcd.address) as channel:
        txn = channel.unary_unary(method, rpc_pb2.TxnRequest.SerializeToString, rpc_pb2.TxnResponse.FromString)
        under_way: list[grpc.Future] = []
        request, size = rpc_pb2.TxnRequest(), 0

        def send() -> None:
            if len(under_way) >= UNDER_WAY:
                under_way.pop(0).result()
            under_way.append(txn.future(request))

        for key, bytes_ in keys_of(count):
            request.success.add().request_put.CopyFrom(rpc_pb2.PutRequest(key=key.encode(), value=b"v" * bytes_))
            size += bytes_
            if len(request.success) == AT_ONCE or size > 900_000:
                send()
                request, size = rpc_pb2.TxnRequest(), 0
        send()
        for one in under_way:
            one.result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        flags = ("--quota-backend-bytes", str(8 << 30))
        etcd = LocalEtcd("plans", folder / "etcd", binary=etcd_binary(), flags=flags)
        etcd.start()
        try:
            asyncio.run(etcd.wait_ready(60))
            everything = rpc_pb2.RangeRequest(key=b"\0", range_end=b"\0", count_only=True)
            if not call(etcd.address, "Range", everything).count:
                fill(etcd, options.keys)
            count = call(etcd.address, "Range", everything).count
            print("| | keys | time | keys a second | most memory |\n|---|---:|---:|---:|---:|")
            for what, arguments in (("esp plan --watch 0", ()), ("esp plan --watch 0 --by bytes", ("--by", "bytes"))):
                run = Run(["plan", "--from", etcd.endpoint, "--watch", "0", "-o", "json", *arguments, "-q"], stdout=-3)
                told(what, count, run.finish(), run.memory)
        finally:
            etcd.kill()


if __name__ == "__main__":
    main()
