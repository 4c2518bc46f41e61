"""What esp costs before it serves anything: how long a command takes, how much memory an idle worker holds."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.etcd import call
from bench.measure import running_backends
from bench.peers import Esp, esp_config
from bench.processes import BenchError
from bench.workloads import KEY, WORKLOADS
from esp.core.pb import rpc_pb2

RUNS = 20
_SETTLE = 2.0  # seconds after the first request


@dataclass(frozen=True, slots=True)
class Startup:
    route_ms: float  # median wall-clock time of `esp route KEY`, process start to exit
    route_min_ms: float
    route_max_ms: float
    python_ms: float  # the same for `python -c pass`: what no program in Python can go below
    idle_mb: float  # VmRSS of an idle worker (and its supervisor, if it has one) after one request


def measure_startup(folder: Path) -> Startup:
    """Needs no load generator; raises BenchError if the command fails."""
    config = folder / "esp.yaml"
    config.write_text(esp_config("127.0.0.1:2379", ["127.0.0.1:12379", "127.0.0.1:22379", "127.0.0.1:32379"]))
    route = _times([sys.executable, "-m", "esp", "route", KEY.decode(), "-c", str(config)])
    python = _times([sys.executable, "-c", "pass"])
    return Startup(median(route), min(route), max(route), median(python), _idle_mb(folder))


def _times(command: list[str]) -> list[float]:
    """Milliseconds of each of RUNS runs, after one that fills the caches."""
    taken = []
    for _ in range(RUNS + 1):
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        taken.append((time.perf_counter() - started) * 1000)
        if done.returncode:
            raise BenchError(f"{' '.join(command)} exited with {done.returncode}: {done.stderr[-500:]}")
    return taken[1:]


def _idle_mb(folder: Path) -> float:
    with running_backends(WORKLOADS["put-1x1"], folder) as backends:
        esp = Esp()
        try:
            esp.start(backends, folder)
            call(esp.address, "Range", rpc_pb2.RangeRequest(key=KEY))
            time.sleep(_SETTLE)
            assert esp.process
            return esp.process.memory_mb("VmRSS")
        finally:
            esp.stop()
