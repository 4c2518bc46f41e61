"""`esp move` under load: how fast keys move, how long clients of these keys wait, and what others notice.

Run as `python -m bench.moves [--keys 100000] [--moves 2]`; prints Markdown. Two etcds as they are by default, with
every fsync, one esp, and two processes that put through it: on keys of the range that moves, and on others. Each key of
the range has a revision of its own, as after years of use. The range moves there and back. Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.etcd import etcd_binary
from esp.core.connected_shards import connected
from esp.core.export import Etcd, config_of
from esp.core.lease_sync import each
from esp.core.load import Target, TargetError
from esp.core.local import LocalEtcd, tied_to_this_process
from esp.core.pb import rpc_pb2
from esp.core.shard import PUT, Shard, ask_for_esp

VALUE = b"x" * 256
AT_ONCE = 64
REST_SECONDS = 3.0
"""Seconds of the load before a move: what it is compared with."""


async def on(url: str, work: Callable[[Shard], Coroutine[Any, Any, None]]) -> None:
    """Does work on a server."""
    async with connected(config_of(Etcd([url]))) as shards:
        await work(shards["etcd"])


async def fill(shard: Shard, count: int) -> None:
    """Puts the keys of the range, each in a transaction of its own."""

    async def put(number: int) -> None:
        request = rpc_pb2.PutRequest(key=b"m/%09d" % (number * 7919 % count), value=VALUE)
        await ask_for_esp(shard, PUT, request, seconds=30)

    await each(range(count), put, AT_ONCE)


async def load(url: str, prefix: str, keys: int, rate: float) -> None:
    """Puts at a rate, until it is ended; prints each second's latencies in milliseconds as a line of JSON."""
    target = Target(config_of(Etcd([url])))
    await target.connect(1)
    number = 0
    second: list[float] = []
    failed = 0
    begun = time.monotonic()

    async def puts() -> None:
        nonlocal number, failed
        while True:
            number += 1
            due = begun + number / rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            key = f"{prefix}{number * 7919 % keys:09d}".encode()
            asked = time.monotonic()
            try:
                await target.ask(PUT, rpc_pb2.PutRequest(key=key, value=VALUE))
            except TargetError:
                failed += 1
            second.append((time.monotonic() - asked) * 1000)

    async def tells() -> None:
        nonlocal failed
        while True:
            await asyncio.sleep(1)
            print(
                json.dumps({"at": time.time(), "ms": [round(one, 2) for one in second], "failed": failed}), flush=True
            )
            second.clear()
            failed = 0

    async with asyncio.TaskGroup() as group:
        group.create_task(tells())
        for _ in range(32):
            group.create_task(puts())


@contextmanager
def loaded(url: str, prefix: str, keys: int, rate: float, path: Path) -> Iterator[None]:
    """The load, in a process of its own, for as long as the block runs; its lines go into a file."""
    words = [sys.executable, "-m", "bench.moves", "--load", url, prefix, str(keys), str(rate)]
    with path.open("wb") as file:
        process = subprocess.Popen(tied_to_this_process(words), stdout=file)
        try:
            yield
        finally:
            process.terminate()
            process.wait()


def seconds_of(path: Path, begun: float, ended: float) -> tuple[list[float], int]:
    """All latencies that were told between two times, sorted, and how many puts failed."""
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    rows = [row for row in rows if begun <= row["at"] <= ended + 1]
    return sorted(one for row in rows for one in row["ms"]), sum(row["failed"] for row in rows)


def at(ordered: Sequence[float], share: float) -> float:
    """The latency below which a share of them is."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def esp(*words: str | Path, config: Path) -> list[dict[str, Any]]:
    """An esp command to its end; what it printed as JSON, by lines."""
    command = [sys.executable, "-m", "esp", *map(str, words), "-c", str(config), "-o", "json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{") and line.endswith("}")]


def main() -> None:
    """Measures, and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--moves", type=int, default=2)
    parser.add_argument(
        "--rate", type=float, default=1000, help="puts a second on the range, and half as many on others"
    )
    parser.add_argument("--margin", type=int, default=None)
    parser.add_argument("--load", nargs=4, metavar=("URL", "PREFIX", "KEYS", "RATE"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.load:
        url, prefix, keys, rate = chosen.load
        asyncio.run(load(url, prefix, int(keys), float(rate)))
        return
    with tempfile.TemporaryDirectory(prefix="esp-moves-") as folder, ExitStack() as stack:
        measure(Path(folder), stack, chosen)


def measure(folder: Path, stack: ExitStack, chosen: argparse.Namespace) -> None:
    """Starts all, moves, and prints."""
    etcds = [LocalEtcd(name, folder / name, binary=etcd_binary()) for name in "ab"]
    for etcd in etcds:
        etcd.start()
        stack.callback(etcd.kill)
    asyncio.run(_wait(etcds))
    config = folder / "esp.yaml"
    port = 20000 + (time.time_ns() // 1000) % 10000
    url = f"http://127.0.0.1:{port}"
    shards = "\n".join(
        f'- {{name: {etcd.name}, endpoints: ["http://{etcd.address}"], ranges: [{range_}]}}'
        for etcd, range_ in zip(etcds, ('{start: "", end: z}', '{start: z, end: ""}'), strict=True)
    )
    config.write_text(f"map: shards\nlisten: [{url}]\nshards:\n{shards}\n")
    esp("map", "init", "--yes", config=config)
    begun = time.monotonic()
    asyncio.run(on(f"http://{etcds[0].address}", lambda shard: fill(shard, chosen.keys)))
    print(f"{chosen.keys:,} keys put in {time.monotonic() - begun:.1f} s", flush=True)
    proxy = subprocess.Popen(tied_to_this_process([sys.executable, "-m", "esp", "-q", "serve", "-c", str(config)]))
    stack.callback(proxy.wait)
    stack.callback(proxy.terminate)
    time.sleep(3)
    mine, others = folder / "mine", folder / "others"
    stack.enter_context(loaded(url, "m/", chosen.keys, chosen.rate, mine))
    stack.enter_context(loaded(url, "a/", 1000, chosen.rate / 2, others))
    print("\n| move | keys/s | MB/s | pause ms | longest call ms | failed | others p99 ms before | during | puts/s |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for number in range(chosen.moves):
        row(number, config, chosen, mine, others)


async def _wait(etcds: Sequence[LocalEtcd]) -> None:
    for etcd in etcds:
        await etcd.wait_ready()


def row(number: int, config: Path, chosen: argparse.Namespace, mine: Path, others: Path) -> None:
    """One move, and its row."""
    target = "ba"[number % 2]
    rested = time.time()
    time.sleep(REST_SECONDS)
    begun = time.time()
    words = ["move", "--prefix", "m/", "--to", target, "--yes", "--experimental", "--purge-rate", "20000"]
    if chosen.margin is not None:
        words += ["--margin", str(chosen.margin)]
    started: dict[str | None, float] = {}
    command = [sys.executable, "-m", "esp", *words, "-c", str(config), "-o", "json"]
    process = subprocess.Popen(tied_to_this_process(command), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    done: dict[str, Any] = {}
    for line in process.stdout:
        told = json.loads(line)
        started.setdefault(told.get("stage"), time.time())
        if "moved" in told:
            done = told
            moved_at = time.time()
    process.wait()
    if not done:
        print(f"| {number + 1} | it did not move |")
        return
    time.sleep(1.2)
    stages = list(started.items())
    print(
        "stages: " + ", ".join(f"{name} {after - at_:.1f} s" for (name, at_), (_, after) in pairwise(stages)),
        file=sys.stderr,
    )
    copying = started["following"] - started["listing"]
    before, _ = seconds_of(others, rested, begun)
    during, _ = seconds_of(others, begun, moved_at)
    called, failed = seconds_of(mine, begun, moved_at)
    print(
        f"| {number + 1} | {chosen.keys / copying:,.0f} | {done['bytes'] / copying / 1e6:.1f} "
        f"| {(done['pause'] or 0) * 1000:.0f} | {at(called, 1):.0f} | {failed} | {at(before, 0.99):.1f} "
        f"| {at(during, 0.99):.1f} | {len(called) / (moved_at - begun):,.0f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
