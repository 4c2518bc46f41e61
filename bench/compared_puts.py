"""What a comparison costs etcd itself, without esp: Puts, and the same Puts as transactions that compare a guard.

Run as `python -m bench.compared_puts [--rounds N]`; prints a Markdown table. Also the same Put as a transaction that
compares nothing, to see which part is the comparison's. All are sent by h2load to one etcd, in turns.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from bench.etcd import Etcd
from bench.load import Call, h2load
from esp.core.pb import rpc_pb2
from esp.core.shard.compared import GUARD_KEY, Guard, Kind
from esp.core.wire.message import prefix

REQUESTS = 8_000
CONCURRENCY = ((8, 16), (64, 1))
_VALUE = b"1-" + b"5" * 32
_PUT = rpc_pb2.PutRequest(key=b"bench/key-000000001", value=b"x" * 256)


def requests() -> dict[str, tuple[str, bytes]]:
    """The method and the message of each kind of Put, by what it is called in the table."""
    put = prefix(_PUT.SerializeToString())
    bare = rpc_pb2.TxnRequest(success=[rpc_pb2.RequestOp(request_put=_PUT)])
    return {
        "Put": ("Put", put),
        "as a transaction": ("Txn", prefix(bare.SerializeToString())),
        "with the comparison": ("Txn", Guard(GUARD_KEY, _VALUE).compared(Kind.PUT, put)),
    }


def rows(rounds: int) -> list[str]:
    """The rows of the table."""
    told = []
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        etcd = Etcd("guarded", Path(folder))
        try:
            etcd.load([(GUARD_KEY, _VALUE)])
            for connections, streams in CONCURRENCY:
                seen: dict[str, list[tuple[float, float]]] = {name: [] for name in requests()}
                for _ in range(rounds):
                    for name, (method, message) in requests().items():
                        file = Path(folder, f"{method}-{len(message)}")
                        file.write_bytes(message)
                        before = etcd.process.cpu()
                        load = h2load(etcd.address, Call(method, file, connections, streams), REQUESTS)
                        cpu = (etcd.process.cpu() - before).total / REQUESTS * 1e6
                        seen[name].append((load.throughput, cpu))
                for name, found in seen.items():
                    ratio = statistics.median(own / put for (own, _), (put, _) in zip(found, seen["Put"], strict=True))
                    rate, cpu = (statistics.median(column) for column in zip(*found, strict=True))
                    told.append(f"| {connections}x{streams} | {name} | {rate:,.0f} | {ratio:.2f}x | {cpu:.1f} |")
        finally:
            etcd.stop()
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    table = rows(parser.parse_args().rounds)
    head = ["| | etcd without esp | calls/s | to Put | CPU of etcd, µs |", "|---|---|---:|---:|---:|"]
    sys.stdout.write("\n".join([*head, *table]) + "\n")


if __name__ == "__main__":
    main()
