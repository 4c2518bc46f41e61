"""What esp costs before it serves anything: how long commands and starts take, how much memory an idle worker holds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.etcd import call
from bench.measure import running_backends
from bench.peers import Backends, Esp, EspOneShard, EspTwoWorkers, esp_config
from bench.processes import HOST, BenchError, Process, free_port
from bench.workloads import KEY, WORKLOADS
from esp.core.pb import rpc_pb2

RUNS = 20
_PEER = Path(__file__).parent.parent / ".cache" / "peers" / "etcdctl"
STARTS = 7
_SETTLE = 2.0  # seconds after the first request


@dataclass(frozen=True, slots=True)
class Startup:
    route_ms: float  # median wall-clock time of `esp route KEY`, process start to exit
    route_min_ms: float
    route_max_ms: float
    help_ms: float  # the same for `esp --help`
    python_ms: float  # the same for `python -c pass`: what no program in Python can go below
    etcdctl_ms: float | None  # the same for `etcdctl version`; None without an etcdctl
    idle_mb: float  # VmRSS of an idle worker (and its supervisor, if it has one) after one request
    ready: dict[str, Ready]  # from the start of `esp serve` to its ready line, by peer


@dataclass(frozen=True, slots=True)
class Ready:
    """How long a start takes.

    Attributes:
        ms: the median, in milliseconds of wall-clock time.
        min_ms: the shortest.
        cpu_ms: the median of the CPU time, of all processes.
        rss_mb, pss_mb: the memory of a process that serves, before its first request: all of it, and its part of what
            processes share.
    """

    ms: float
    min_ms: float
    cpu_ms: float
    rss_mb: float
    pss_mb: float


def measure_startup(folder: Path) -> Startup:
    """Needs no load generator; raises BenchError if the command fails.

    Modules are compiled once, as they are where esp is installed.
    """
    os.environ.update(PYTHONDONTWRITEBYTECODE="", PYTHONPYCACHEPREFIX=str(folder / "compiled"))
    config = folder / "esp.yaml"
    config.write_text(esp_config("127.0.0.1:2379", ["127.0.0.1:12379", "127.0.0.1:22379", "127.0.0.1:32379"]))
    route = _times([sys.executable, "-m", "esp", "route", KEY.decode(), "-c", str(config)])
    shown = _times([sys.executable, "-m", "esp", "--help"])
    python = _times([sys.executable, "-c", "pass"])
    etcdctl = Path(shutil.which("etcdctl") or _PEER)
    other = median(_times([str(etcdctl), "version"])) if etcdctl.exists() else None
    with running_backends(WORKLOADS["put-1x1"], folder) as backends:
        ready = {peer.name: _ready(peer(), backends, folder) for peer in (EspOneShard, Esp, EspTwoWorkers)}
    return Startup(median(route), min(route), max(route), median(shown), median(python), other, _idle_mb(folder), ready)


def _ready(peer: Esp, backends: Backends, folder: Path) -> Ready:
    """Starts it again and again, and waits for the ready line; the first start fills the caches."""
    shards = [backends.sole] if peer.count == 1 else backends.shards
    taken: list[tuple[float, float, float, float]] = []
    for number in range(STARTS + 1):
        peer.address = f"{HOST}:{free_port()}"
        config, log = folder / "esp.yaml", folder / f"ready-{peer.name}-{number}"
        config.write_text(peer.config(Backends(shards, None), folder))
        started = time.perf_counter()
        process = Process(peer.name, peer.command(config), log)
        try:
            while b" ready on " not in log.read_bytes():
                process.require_running()
                time.sleep(0.001)
            milliseconds = (time.perf_counter() - started) * 1000
            pid = process.pids()[-1]
            rss, pss = (_memory_mb(pid, field) for field in ("Rss", "Pss"))
            taken.append((milliseconds, process.cpu().total * 1000, rss, pss))
        finally:
            process.stop()
    all_ms, all_cpu, all_rss, all_pss = zip(*taken[1:], strict=True)
    return Ready(median(all_ms), min(all_ms), median(all_cpu), median(all_rss), median(all_pss))


def _memory_mb(pid: int, field: str) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":")) * 1024 / 1e6


def _times(command: list[str]) -> list[float]:
    """Milliseconds of each of RUNS runs, after one that fills the caches."""
    taken = []
    for _ in range(RUNS + 1):
        started = time.perf_counter()
        # Modules stay compiled, as in an install, whatever the environment of the bench says.
        environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, env=environ)
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
