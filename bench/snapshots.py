"""How often a reading Txn over three shards finds a snapshot while keys are written, and what it costs.

Run as `python -m bench.snapshots [--before FOLDER]`; prints a Markdown table. For each rate of writes, spread over the
keys that are read, one after the other in one run: the Txn on an etcd that holds all, through esp with each shard at
its own moment, through esp as a snapshot, and the same through the esp in FOLDER, a checkout of an earlier version.
Who writes and who reads are separate processes, as clients are. Each Txn reads six keys, two of each shard.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import grpc

from esp.core.local import LocalEtcd, free_port
from esp.core.pb import rpc_pb2

KEYS = (b"a0", b"a1", b"j0", b"j1", b"s0", b"s1")
RATES = (0, 100, 300, 1000)
"""Writes in a second."""
SECONDS = 4.0
TXN = rpc_pb2.TxnRequest(success=[rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=key)) for key in KEYS])


class Subject(NamedTuple):
    name: str
    address: str
    metadata: tuple[tuple[str, str], ...] = ()


class Result(NamedTuple):
    calls: int
    failed: int
    median_ms: float
    writes: int


async def write(address: str, rate: int) -> None:
    """Writes the keys in random order until it is ended, and prints how many it has written."""
    async with grpc.aio.insecure_channel(address) as channel:
        put = channel.unary_unary("/etcdserverpb.KV/Put", rpc_pb2.PutRequest.SerializeToString)
        start, written = time.monotonic(), 0
        while time.monotonic() < start + SECONDS:
            due = int((time.monotonic() - start) * rate)
            calls = [put(rpc_pb2.PutRequest(key=random.choice(KEYS), value=b"v")) for _ in range(due - written)]
            await asyncio.gather(*calls)
            written = max(written, due)
            await asyncio.sleep(0.001)
    print(written)


def measure(subject: Subject, rate: int) -> Result:
    with grpc.insecure_channel(subject.address) as channel:
        put = channel.unary_unary("/etcdserverpb.KV/Put", rpc_pb2.PutRequest.SerializeToString)
        for key in KEYS:
            put(rpc_pb2.PutRequest(key=key, value=b"v"), timeout=10)
        read = channel.unary_unary(
            "/etcdserverpb.KV/Txn", rpc_pb2.TxnRequest.SerializeToString, rpc_pb2.TxnResponse.FromString
        )
        command = [sys.executable, "-m", "bench.snapshots", "--write", subject.address, str(rate)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            time.sleep(0.7)
            times, failed = [], 0
            end = time.monotonic() + SECONDS - 1
            while time.monotonic() < end:
                begin = time.perf_counter()
                try:
                    assert len(read(TXN, metadata=subject.metadata, timeout=10).responses) == len(KEYS)
                except grpc.RpcError as error:
                    if "no snapshot" not in str(error.details()):
                        raise
                    failed += 1
                times.append(time.perf_counter() - begin)
            written, _ = writer.communicate()
    return Result(len(times), failed, statistics.median(times) * 1000, int(written))


@contextmanager
def esp(folder: Path, checkout: Path, shards: Sequence[LocalEtcd]) -> Iterator[str]:
    port = free_port()
    edges = ["", "i", "r", ""]
    lines = ["shards:"]
    for number, shard in enumerate(shards):
        start, end = edges[number : number + 2]
        lines.append(f'  - {{endpoints: [{shard.endpoint}], ranges: [{{start: "{start}", end: "{end}"}}]}}')
    config = folder / f"{port}.yaml"
    config.write_text("\n".join(lines))
    command = [sys.executable, "-m", "esp", "serve", "-c", str(config), "--listen", f"http://127.0.0.1:{port}"]
    with (folder / f"{port}.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=checkout, env=os.environ | {"PYTHONPATH": str(checkout)}
        )
        try:
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                grpc.channel_ready_future(channel).result(20)
            time.sleep(1)  # until the versions of the shards are known
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--write", nargs=2)
    arguments = parser.parse_args()
    if arguments.write:
        asyncio.run(write(arguments.write[0], int(arguments.write[1])))
        return
    here = Path(__file__).parent.parent
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        etcds = [LocalEtcd(f"e{number}", folder / f"e{number}", flags=()) for number in range(4)]
        try:
            for etcd in etcds:
                etcd.start()
            for etcd in etcds:
                asyncio.run(etcd.wait_ready(60))
            with esp(folder, here, etcds[1:]) as now, esp(folder, arguments.before or here, etcds[1:]) as before:
                subjects = [
                    Subject("one etcd", etcds[0].endpoint.removeprefix("http://")),
                    Subject("each", now, (("esp-read", "each"),)),
                    Subject("snapshot", now),
                ]
                if arguments.before:
                    subjects.append(Subject("snapshot before", before))
                print("| writes/s | | Txns | failed | median, ms | to one etcd |\n|---:|---|---:|---:|---:|---:|")
                for rate in RATES:
                    first = 0.0
                    for subject in subjects:
                        result = measure(subject, rate)
                        first = first or result.median_ms
                        print(
                            f"| {result.writes / SECONDS:.0f} | {subject.name} | {result.calls} | {result.failed} "
                            f"| {result.median_ms:.2f} | {result.median_ms / first:.1f}x |",
                            flush=True,
                        )
        finally:
            for etcd in etcds:
                etcd.kill()


if __name__ == "__main__":
    main()
