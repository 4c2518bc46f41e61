"""`bench/run`: every peer under every workload, one report on stdout, progress on stderr."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench import report
from bench.load import missing_generators
from bench.measure import Amount, Sample, measure_workload
from bench.peers import ON_REQUEST, PEERS, Esp, Peer
from bench.processes import BenchError
from bench.startup import Startup, measure_startup
from bench.workloads import WORKLOADS

STARTUP = "startup"  # in --only, next to the names of workloads


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench/run",
        description="Drives esp and its peers with the same load and prints one report in Markdown.",
        epilog=f"workloads: {', '.join([*WORKLOADS, STARTUP])}. peers: {', '.join(PEERS)}.",
    )
    parser.add_argument("--rounds", type=int, default=5, help="each takes every peer once (5)")
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument("--seconds", type=float, default=2.0, help="about so long for each measurement (2)")
    amount.add_argument("--requests", type=int, help="exactly so many for each, rounded to the connections")
    parser.add_argument("--only", help="workloads, separated by commas; a name's beginning is enough")
    parser.add_argument("--peers", help="peers, separated by commas")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every single sample goes here")
    parser.add_argument("--quick", action="store_true", help="2 rounds of half a second: a look, not a result")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds, options.seconds = 2, 0.5
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    options.workloads = _chosen(parser, options.only, [*WORKLOADS, STARTUP], prefixes=True)
    default = ",".join(name for name in PEERS if name not in ON_REQUEST)
    options.peers = _chosen(parser, options.peers or default, list(PEERS), prefixes=False)
    return options


def _chosen(parser: argparse.ArgumentParser, text: str | None, known: list[str], prefixes: bool) -> list[str]:
    if not text:
        return known
    chosen: list[str] = []
    for word in text.split(","):
        found = [name for name in known if name == word or (prefixes and name.startswith(word))]
        if not found:
            parser.error(f"{word!r} is none of {', '.join(known)}")
        chosen += found
    return list(dict.fromkeys(chosen))


def _present(names: Sequence[str]) -> list[type[Peer]]:
    present = []
    for name in names:
        if reason := PEERS[name].missing():
            _say(f"without {name}: {reason}")
        else:
            present.append(PEERS[name])
    return present


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _tmpfs() -> str | None:
    """Where the etcds keep their data."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def run(options: argparse.Namespace) -> int:
    """Measures and reports; 0 if no target was missed and no peer failed, else 1."""
    if reason := missing_generators():
        raise BenchError(reason)
    peers = _present(options.peers)
    head = report.machine([peer.name for peer in peers])
    results: dict[str, dict[str, list[Sample]]] = {}
    failures: list[str] = []
    startup: Startup | None = None
    folder = Path(tempfile.mkdtemp(prefix="esp-bench-", dir=_tmpfs()))
    try:
        for name in options.workloads:
            its_folder = folder / name
            its_folder.mkdir()
            if name == STARTUP:
                if Esp in peers:
                    startup = _startup(its_folder, failures)
            else:
                results[name] = _measure(name, peers, options, its_folder, failures)
            shutil.rmtree(its_folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    found = report.verdicts(results, startup)
    print(_document(head, options, results, startup, found, failures))
    if options.json:
        options.json.write_text(json.dumps(report.as_json(head, results, startup), indent=1))
    return 1 if failures or any(reached is False for reached, _ in found) else 0


def _startup(folder: Path, failures: list[str]) -> Startup | None:
    try:
        return measure_startup(folder)
    except BenchError as error:
        _fail(failures, f"{STARTUP}: {error}")
        return None


def _fail(failures: list[str], text: str) -> None:
    failures.append(text)
    _say(f"FAILED: {text}")


def _measure(
    name: str, peers: Sequence[type[Peer]], options: argparse.Namespace, folder: Path, failures: list[str]
) -> dict[str, list[Sample]]:
    samples: dict[str, list[Sample]] = {peer.name: [] for peer in peers}
    amount = Amount(options.seconds, options.requests)
    started = time.monotonic()
    for peer, sample in measure_workload(WORKLOADS[name], peers, options.rounds, amount, folder):
        if isinstance(sample, BenchError):
            _fail(failures, f"{name}, {peer}: {sample}")
            continue
        samples[peer].append(sample)
        cpu = f"{sample.cpu_us:8.1f} µs CPU" if sample.cpu_us is not None else ""
        _say(f"{name:14} {peer:14} {sample.requests:7} requests {sample.throughput:9,.0f}/s {cpu}")
    _say(f"{name}: {time.monotonic() - started:.0f} s")
    return {peer: its for peer, its in samples.items() if its}


def _document(
    head: dict[str, str],
    options: argparse.Namespace,
    results: dict[str, dict[str, list[Sample]]],
    startup: Startup | None,
    found: Sequence[report.Verdict],
    failures: Sequence[str],
) -> str:
    amount = f"{options.requests} requests" if options.requests else f"about {options.seconds:g} s"
    lines = [f"- {key}: {value}" for key, value in head.items()]
    lines += [
        f"- {options.rounds} rounds, each with every peer once for {amount}; cells are median (min-max) of the rounds",
        f"- columns named `ratio`: to {' / to '.join(report.REFERENCES)}, the median of the rounds' own ratios",
        "- everything shares the machine's cores, no process is pinned; etcd runs with --unsafe-no-fsync on a tmpfs",
    ]
    lines += [f"- {name}: {peer.about}" for name, peer in PEERS.items() if any(name in its for its in results.values())]
    parts = ["\n".join(lines) + "\n"]
    if results:
        parts.append(report.overview(results))
        parts += [report.workload_table(name, samples) for name, samples in results.items()]
    if startup:
        extremes = f"{startup.route_min_ms:.0f}-{startup.route_max_ms:.0f}"
        etcdctl = "" if startup.etcdctl_ms is None else f"; `etcdctl version`: {startup.etcdctl_ms:.0f} ms"
        parts.append(
            f"### Start\n\n`esp route`: {startup.route_ms:.0f} ms ({extremes}), "
            f"`esp --help`: {startup.help_ms:.0f} ms, "
            f"the bare interpreter: {startup.python_ms:.0f} ms{etcdctl}. Idle worker: {startup.idle_mb:.1f} MB.\n"
        )
        parts += [
            f"- {peer}, start to ready: {its.ms:.0f} ms (shortest {its.min_ms:.0f}), {its.cpu_ms:.0f} ms of CPU; "
            f"a process that serves has {its.rss_mb:.1f} MB then, {its.pss_mb:.1f} MB without what others share\n"
            for peer, its in startup.ready.items()
        ]
    if found:
        parts += ["### Verdicts\n", report.verdict_lines(found)]
    if failures:
        parts += ["### Failed\n", "".join(f"- {' '.join(failure.split())}\n" for failure in failures)]
    return "\n".join(parts)


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is stopped
    try:
        return run(_options(None))
    except BenchError as error:
        _say(f"bench: {error}")
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
