"""Watches through esp and through `etcd grpc-proxy`, beside an etcd without a proxy: `python -m bench.watch`.

For each number of watchers, all on one prefix or each on a key of its own: events delivered per second, CPU of the
proxy per delivered event, latency from the put to the event, memory per watcher that is idle. Rounds are interleaved.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

from bench.etcd import Etcd
from bench.peers import PEERS, Backends
from bench.processes import BenchError

SIZES = (1, 100, 1_000, 10_000)
MOST_EVENTS_PER_SECOND = 40_000.0
MOST_PUTS_PER_SECOND = 2_000.0
NAMES = ("direct", "esp", "grpc-proxy")


@dataclass(frozen=True)
class Workload:
    watchers: int
    keys: str

    @property
    def name(self) -> str:
        return f"{self.watchers:,} watchers, {self.keys} key{'s' if self.keys == 'different' else ''}"

    @property
    def watchers_of_a_key(self) -> int:
        return self.watchers if self.keys == "same" else 1

    def flags(self, quick: bool) -> list[str]:
        rate = min(MOST_PUTS_PER_SECOND, MOST_EVENTS_PER_SECOND / self.watchers_of_a_key)
        seconds = 2 if quick else 6
        puts = max(3, int(rate * seconds))
        flags = [f"--watchers={self.watchers}", f"--keys={self.keys}", f"--rate={rate}", f"--puts={puts}"]
        return [*flags, f"--warm-up={max(2, int(rate))}"]


@dataclass(frozen=True)
class Sample:
    per_second: float
    cpu_us: float | None
    p50_us: float
    p99_us: float
    rss_kb: float | None
    create_seconds: float
    create_cpu_us: float | None  # of the proxy, for each watcher
    shard_cpu_us: float  # of the shard whose keys change, for each put
    upstream: float | None  # watchers that esp has at that shard


@contextmanager
def load(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A process of `watch_load`, which ends with the block."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as loading:
        try:
            yield loading
        finally:
            if loading.poll() is None:
                loading.kill()


def expect(loading: subprocess.Popen[str], name: str, state: str) -> None:
    """Waits until the load has got so far."""
    assert loading.stdout is not None
    if loading.stdout.readline() != f"{state}\n":
        raise BenchError(f"{name}: the load did not get {state}")


def measure(name: str, workload: Workload, backends: Backends, folder: Path, *, quick: bool) -> Sample:
    peer = PEERS[name]()
    folder.mkdir()
    peer.start(backends, folder)
    try:
        empty = peer.process.memory_mb("VmRSS") if peer.process else 0.0
        started = peer.process.cpu() if peer.process else None
        command = [sys.executable, "-m", "bench.watch_load", peer.address, backends.sole.address]
        with load([*command, *workload.flags(quick)]) as loading:
            assert loading.stdin is not None
            assert loading.stdout is not None
            expect(loading, name, "ready")
            idle = peer.process.memory_mb("VmRSS") if peer.process else 0.0
            creating = (peer.process.cpu() - started).total if peer.process and started else None
            loading.stdin.write("go\n")
            loading.stdin.flush()
            expect(loading, name, "warm")
            before = peer.process.cpu() if peer.process else None
            upstream = _upstream(peer.address) if name.startswith("esp") else None
            shard_before = backends.sole.process.cpu()
            loading.stdin.write("go\n")
            loading.stdin.flush()
            told: dict[str, Any] = json.loads(loading.stdout.readline() or "{}")
            if not told:
                raise BenchError(f"{name}: the load broke off")
            used = (peer.process.cpu() - before).total if peer.process and before else None
            shard_used = (backends.sole.process.cpu() - shard_before).total
    finally:
        peer.stop()
    return Sample(
        told["per_second"],
        used / told["events"] * 1e6 if used is not None else None,
        told["p50_us"],
        told["p99_us"],
        (idle - empty) * 1000 / workload.watchers if peer.process else None,
        told["create_seconds"],
        creating / workload.watchers * 1e6 if creating is not None else None,
        shard_used * workload.watchers_of_a_key / told["events"] * 1e6,
        upstream,
    )


def _upstream(address: str) -> float | None:
    """The watchers that all processes of an esp have at their shards; None if that is an esp before /metrics."""
    try:
        with urlopen(f"http://{address}/metrics", timeout=20) as answer:
            lines = answer.read().decode().splitlines()
    except HTTPError:
        return None
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("esp_shard_watchers{"))


def _cell(values: list[float | None], digits: int = 0) -> str:
    known = [value for value in values if value is not None]
    return f"{median(known):,.{digits}f} ({min(known):,.{digits}f}-{max(known):,.{digits}f})" if known else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--watchers", type=int, action="append", help="default: 1, 100, 1000 and 10000")
    parser.add_argument("--keys", choices=("same", "different"), action="append", help="default: both")
    parser.add_argument("--peers", default=",".join(NAMES))
    options = parser.parse_args()
    names = options.peers.split(",")
    for keys in options.keys or ("same", "different"):
        for size in options.watchers or SIZES:
            workload = Workload(size, keys)
            samples: dict[str, list[Sample]] = {name: [] for name in names}
            with ExitStack() as stack:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
                shards = []
                for letter in "abc":
                    shards.append(Etcd(letter, folder))
                    stack.callback(shards[-1].stop)
                backends = Backends(shards, None)
                for number in range(options.rounds):
                    for name in names[number % len(names) :] + names[: number % len(names)]:
                        place = folder / f"{name}-{number}"
                        samples[name].append(measure(name, workload, backends, place, quick=options.quick))
            print(f"### {workload.name}\n")
            head = "| | events/s | CPU us/event | p50 us | p99 us | RSS kB/idle watcher | created in s "
            print(f"{head}| CPU us/watcher created | shard's CPU us/put | watchers at the shard |")
            print("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
            for name, its in samples.items():
                columns = [
                    _cell([each.per_second for each in its]),
                    _cell([each.cpu_us for each in its], 2),
                    _cell([each.p50_us for each in its]),
                    _cell([each.p99_us for each in its]),
                    _cell([each.rss_kb for each in its], 2),
                    _cell([each.create_seconds for each in its], 2),
                    _cell([each.create_cpu_us for each in its], 1),
                    _cell([each.shard_cpu_us for each in its]),
                    _cell([each.upstream for each in its]),
                ]
                print(f"| {name} | {' | '.join(columns)} |")
            print(flush=True)


if __name__ == "__main__":
    main()
