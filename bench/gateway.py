"""The JSON gateway: Put and Range as JSON and as gRPC, at an etcd and through esp.

    python -m bench.gateway [--seconds 2] [--rounds 7] [--only put|range]

Prints a Markdown table: CPU per request of etcd and of esp, and requests per second, 8 connections that stay open, one
request at a time on each. What etcd's own gateway costs is told by no counter, for it is a part of the etcd process:
taken is the CPU of that process with JSON less its CPU with gRPC for as many of the same requests, in the same round.
esp's own process is to cost at most 1.5 times that, and to answer as many requests per second. Exit code 1 otherwise.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from bench.load import h2load_json, missing_generators
from bench.measure import Amount, Subject, message_file, running_backends
from bench.peers import Backends, Direct, Esp, EspOneShard, Peer
from bench.processes import BenchError
from bench.workloads import WORKLOADS, Workload

CONNECTIONS = 8
BOUND = 1.5
"""The CPU of esp's process per JSON request, as a ratio to what etcd's own gateway costs."""
GRPC = {
    name: replace(WORKLOADS[f"{name}-64x1"], name=f"{name}-{CONNECTIONS}x1", connections=CONNECTIONS)
    for name in ("put", "range")
}
JSON = {
    f"json-{name}": replace(workload, name=f"json-{workload.name}", generator=h2load_json)
    for name, workload in GRPC.items()
}
"""The workloads of JSON, which only etcd and esp can serve; `bench/profile` knows them too."""


@dataclass(frozen=True)
class Seen:
    """One round of one way.

    Attributes:
        etcd_us, esp_us: CPU per request.
        throughput: requests per second.
    """

    etcd_us: float
    esp_us: float
    throughput: float


class Way:
    """A peer under a workload."""

    def __init__(self, peer: Peer, workload: Workload, backends: Backends, folder: Path) -> None:
        self.name = f"{peer.name}, {'JSON' if workload.generator is h2load_json else 'gRPC'}"
        self._subject = Subject(peer, workload, backends, message_file(workload, folder))
        self._etcd = backends.sole.process

    def calibrate(self, amount: Amount) -> None:
        """As `Subject.calibrate`."""
        self._subject.calibrate(amount)

    def measure(self) -> Seen:
        """One round; the few calls that check it count too, alike in every way."""
        before = self._etcd.cpu()
        sample = self._subject.measure()
        used = self._etcd.cpu() - before
        return Seen(used.total / sample.requests * 1e6, sample.cpu_us or 0.0, sample.throughput)


def measure(name: str, rounds: int, amount: Amount, folder: Path) -> dict[str, list[Seen]]:
    """What each way took, a figure for each round, in which each way has its turn."""
    seen: dict[str, list[Seen]] = {}
    with running_backends(GRPC[name], folder) as backends, ExitStack() as stack:
        ways = []
        for peer in (Direct(), Esp(), EspOneShard()):
            own = folder / peer.name
            own.mkdir()
            stack.callback(peer.stop)
            peer.start(backends, own)
            ways += [Way(peer, workload, backends, folder) for workload in (JSON[f"json-{name}"], GRPC[name])]
        for way in ways:
            way.calibrate(amount)
        for number in range(rounds):
            turn = number % len(ways)
            for way in ways[turn:] + ways[:turn]:
                seen.setdefault(way.name, []).append(way.measure())
            backends.sole.forget_history()
    return seen


def rows(name: str, seen: dict[str, list[Seen]]) -> Iterator[str]:
    """The table's rows of one request."""
    for way, rounds in seen.items():
        figures = [median(getattr(one, field) for one in rounds) for field in ("etcd_us", "esp_us", "throughput")]
        yield f"| {name} | {way} | {figures[0]:.1f} | {figures[1]:.1f} | {figures[2]:.0f} |"


def verdicts(name: str, seen: dict[str, list[Seen]]) -> Iterator[tuple[str, bool | None]]:
    """Each bar, and whether it is reached, behind what they are measured by.

    Ratios are formed inside a round, and their median is taken.
    """
    etcd, grpc = seen["direct, JSON"], seen["direct, gRPC"]
    own = [json.etcd_us - plain.etcd_us for json, plain in zip(etcd, grpc, strict=True)]
    yield f"{name}: etcd's own gateway costs {_told(own)} µs", None
    for peer in ("esp", "esp-1"):
        esp = seen[f"{peer}, JSON"]
        cost = [one.esp_us / gateway for one, gateway in zip(esp, own, strict=True)]
        pace = [one.throughput / direct.throughput for one, direct in zip(esp, etcd, strict=True)]
        yield f"{name}: {peer}'s CPU is {_told(cost, 2)} of it, at most {BOUND}", median(cost) <= BOUND
        yield f"{name}: {peer} answers {_told(pace, 2)} of etcd's requests per second, at least 1", median(pace) >= 1


def _told(figures: list[float], digits: int = 1) -> str:
    low, middle, high = min(figures), median(figures), max(figures)
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gateway", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement (2)")
    parser.add_argument("--rounds", type=int, default=7, help="(7)")
    parser.add_argument("--only", choices=list(GRPC))
    options = parser.parse_args()
    told: list[tuple[str, bool | None]] = []
    print("| request | way | etcd's CPU, µs per request | esp's CPU, µs per request | requests/s |")
    print("|---|---|---:|---:|---:|", flush=True)
    for name in [options.only] if options.only else GRPC:
        folder = Path(tempfile.mkdtemp(prefix="esp-bench-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        try:
            if reason := missing_generators():
                raise BenchError(reason)
            seen = measure(name, options.rounds, Amount(options.seconds, None), folder)
        except BenchError as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 1
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        print("\n".join(rows(name, seen)), flush=True)
        told += verdicts(name, seen)
    print()
    for text, reached in told:
        print(f"- {text}{ {True: ': reached', False: ': MISSED', None: ''}[reached] }")
    return int(any(reached is False for _, reached in told))


if __name__ == "__main__":
    sys.exit(main())
