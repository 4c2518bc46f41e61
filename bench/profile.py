"""`bench/profile`: where esp spends its CPU under one workload."""

from __future__ import annotations

import argparse
import marshal
import os
import pstats
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from bench.gateway import JSON
from bench.load import missing_generators
from bench.measure import Amount, Sample, Subject, message_file, running_backends
from bench.peers import Esp, EspOneShard, EspTls
from bench.processes import BenchError
from bench.profiled_esp import Place
from bench.workloads import WORKLOADS, Workload

KNOWN = WORKLOADS | JSON
ROOT = Path(__file__).parent.parent


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="bench/profile",
        description="Profiles esp under one workload and prints where the CPU time went.",
        epilog=f"workloads: {', '.join(KNOWN)}",
    )
    parser.add_argument("--requests", type=int, help="exactly so many, instead of --seconds at esp's own pace")
    parser.add_argument("workload", choices=list(KNOWN), metavar="WORKLOAD")
    parser.add_argument("--how", choices=["sample", "cprofile"], default="sample", help="sample: little distortion")
    parser.add_argument(
        "--seconds", type=float, default=8.0, help="of load (8); the kernel samples every 1 to 4 ms of CPU time"
    )
    parser.add_argument("--one-shard", action="store_true", help="one shard configured instead of three")
    parser.add_argument("--tls", action="store_true", help="with TLS on the clients' side")
    parser.add_argument("--top", type=int, default=25, help="lines in each list (25)")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="keep what the profiler wrote (pstats with cprofile)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = Path(tempfile.mkdtemp(prefix="esp-profile-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    try:
        if reason := missing_generators():
            raise BenchError(reason)
        sample = _run(KNOWN[options.workload], options, folder)
        _print(sample, folder / "profile", options)
        if options.keep:
            shutil.copy(folder / "profile", options.keep)
    except BenchError as error:
        print(f"bench/profile: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def _run(workload: Workload, options: argparse.Namespace, folder: Path) -> Sample:
    base = EspTls if options.tls else EspOneShard if options.one_shard else Esp

    class ProfiledEsp(base):  # type: ignore[misc, valid-type]
        def command(self, config: Path) -> list[str | Path]:
            wrapper = [sys.executable, "-m", "bench.profiled_esp", options.how, folder / "profile"]
            return [*wrapper, "serve", "-c", config]

    with running_backends(workload, folder) as backends:
        peer = ProfiledEsp()
        try:
            peer.start(backends, folder)
            subject = Subject(peer, workload, backends, message_file(workload, folder))
            subject.calibrate(Amount(options.seconds, options.requests))
            assert peer.process
            os.kill(peer.process.pid, signal.SIGUSR1)
            sample = subject.measure()
            os.kill(peer.process.pid, signal.SIGUSR1)
        finally:
            peer.stop()
        if not (folder / "profile").exists():
            raise BenchError(f"esp left no profile: {peer.process.last_words()}")
    return sample


def _print(sample: Sample, file: Path, options: argparse.Namespace) -> None:
    print(
        f"{options.workload}: {sample.requests} requests, {sample.throughput:,.0f}/s, {sample.cpu_us:.1f} µs CPU per "
        f"request ({(sample.cpu_user_share or 0) * 100:.0f} % in user mode), the profiler's own share included\n"
    )
    if options.how == "cprofile":
        pstats.Stats(str(file)).strip_dirs().sort_stats("tottime").print_stats(options.top)
        return
    seen = marshal.loads(file.read_bytes())
    lists = {"own": "functions, own time", "total": "functions, with what they call", "lines": "lines, own time"}
    for key, title in lists.items():
        print(f"{title} ({seen['samples']} samples)\n   µs/request   share")
        ranked = sorted(seen[key].items(), key=lambda item: -item[1])[: options.top]
        for place, count in ranked:
            share = count / seen["samples"]
            print(f"{share * (sample.cpu_us or 0):13.2f} {share * 100:6.1f} %  {_told(place)}")
        print()


def _told(place: Place) -> str:
    file, line, function = place
    path = Path(file)
    if path.is_relative_to(ROOT) and ".venv" not in path.parts:
        return f"{path.relative_to(ROOT)}:{line} {function}"
    return f"{path.parent.name}/{path.name}:{line} {function}"


if __name__ == "__main__":
    sys.exit(main())
