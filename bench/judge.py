"""etcd's own benchmark tool as a judge from outside: `python -m bench.judge`, after `scripts/peers benchmark`.

The tool is built from etcd's sources and calls with etcd's Go client, so each call is as a Go program makes it. Rounds
are interleaved; ratios are formed inside a round.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import NamedTuple

from bench.etcd import Etcd
from bench.peers import PEERS, Backends
from bench.processes import BenchError
from bench.workloads import KEY, VALUE

TOOL = Path(".cache/peers/benchmark")
NAMES = ("direct", "esp", "grpc-proxy")
COMMANDS = {
    "put, 8x16": ["put", "--conns=8", "--clients=128", f"--val-size={len(VALUE)}"],
    "put, 1x1": ["put", "--conns=1", "--clients=1", f"--val-size={len(VALUE)}"],
    "range of one key, 8x16": ["range", KEY.decode(), "--conns=8", "--clients=128"],
    "txn of one put, 8x16": ["txn-put", "--conns=8", "--clients=128", f"--val-size={len(VALUE)}"],
}
FIRST = 2000
"""Requests of the first run of a peer, which warms it up and shows its pace."""


class Seen(NamedTuple):
    """What the tool printed."""

    per_second: float
    p99_ms: float


def read(told: str) -> Seen:
    """The figures in the tool's report.

    Raises:
        BenchError: there are none, or calls have failed.
    """
    rate = re.search(r"Requests/sec:\s+([0-9.]+)", told)
    p99 = re.search(r"99% in ([0-9.]+) secs", told)
    if rate is None or p99 is None or "Error distribution" in told:
        raise BenchError(f"etcd's benchmark tool said:\n{told[-2000:]}")
    return Seen(float(rate[1]), float(p99[1]) * 1000)


def run(command: list[str], address: str, total: int) -> Seen:
    """Runs the tool once."""
    whole = [str(TOOL), f"--endpoints={address}", *command, f"--total={total}"]
    done = subprocess.run(whole, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise BenchError(f"{' '.join(whole)}: {done.stderr[-2000:]}")
    return read(done.stdout)


def judge(names: list[str], rounds: int, seconds: float, folder: Path) -> None:
    """Measures all commands, and prints a table."""
    print("| etcd's tool | peer | requests/s | beside direct | p99 ms | CPU µs |\n|---|---|---:|---:|---:|---:|")
    with ExitStack() as stack:
        shards = []
        for letter in "abc":
            shards.append(Etcd(letter, folder))
            stack.callback(shards[-1].stop)
        shards[0].load([(KEY, VALUE)])
        backends = Backends(shards, None)
        peers = {name: PEERS[name]() for name in names}
        for name, peer in peers.items():
            (folder / name).mkdir()
            stack.callback(peer.stop)
            peer.start(backends, folder / name)
        for title, command in COMMANDS.items():
            totals = {name: int(run(command, peers[name].address, FIRST).per_second * seconds) + 1 for name in names}
            rates: dict[str, list[Seen]] = {name: [] for name in names}
            costs: dict[str, list[float]] = {name: [] for name in names}
            for number in range(rounds):
                for name in names[number % len(names) :] + names[: number % len(names)]:
                    process = peers[name].process
                    before = process.cpu().total if process else 0.0
                    rates[name].append(run(command, peers[name].address, totals[name]))
                    if process:
                        costs[name].append((process.cpu().total - before) / totals[name] * 1e6)
                shards[0].forget_history()
            for name in names:
                pairs = zip(rates[name], rates[names[0]], strict=True)
                cells = [
                    f"{median(one.per_second for one in rates[name]):,.0f}",
                    f"{median(ours.per_second / theirs.per_second for ours, theirs in pairs):.2f}",
                    f"{median(one.p99_ms for one in rates[name]):.1f}",
                    f"{median(costs[name]):.1f}" if costs[name] else "-",
                ]
                print(f"| {title} | {name} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="about so long for each measurement (2)")
    parser.add_argument("--peers", default=",".join(NAMES), help="the first is what the others stand beside")
    options = parser.parse_args()
    if not TOOL.exists():
        raise SystemExit("bench.judge: no etcd benchmark tool here; `scripts/peers benchmark` builds it")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        judge(options.peers.split(","), options.rounds, options.seconds, Path(folder))


if __name__ == "__main__":
    main()
