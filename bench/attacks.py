"""`bench/attacks`: how an honest neighbour fares while others attack esp, attack by attack, in one table on stdout.

Each attack gets a fresh esp over three etcds that all share. A neighbour (puts, gets, a watch, keepalives of a lease of
6 s, new connections) is measured while it is quiet and then beside the attack. The bar: its p99 at most twice its
quiet one, or 20 ms, whichever is more; no error; no lease lost.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.attack_shapes import ATTACKS, BIG_KEYS, BIG_VALUE, LEASES, Attack, big_key
from bench.attack_trials import TRIALS, Trial
from bench.certificates import make_pair
from bench.etcd import Etcd
from bench.neighbour import keys_of_neighbour
from bench.peers import SHARD_STARTS, Backends, Esp, tls_fields
from bench.processes import BenchError, Process

BAR_TIMES, BAR_MS = 2.0, 20.0
KINDS = ("put", "get", "watch", "keepalive", "connect")
_NICE = 10  # of attackers
_STEPS_SHOWN, _TURNS_SHOWN = 12, 4


@dataclass(frozen=True)
class Row:
    """One attack by so many connections."""

    name: str
    connections: int
    megabytes_per_second: float  # that the server took
    things_per_second: float  # requests or frames, whatever the attack consists of
    opened: int
    ended: int  # connections that the server ended
    attacker_cores: float
    server_cores: float
    shard_cores: float  # of all shards together
    quiet_ms: dict[str, tuple[float, float]]  # by kind: p50, p99
    attacked_ms: dict[str, tuple[float, float]]
    errors: list[str]
    lease_lost: bool
    rss_mb: tuple[float, float, float]  # before, peak, two seconds after the end
    log_lines: int
    seconds: float

    def misses(self) -> list[str]:
        """What is above the bar."""
        found = [f"no {kind} at all" for kind in KINDS if kind not in self.attacked_ms]
        found += [f"{kind} {ms:,.0f} ms" for kind, (_, ms) in self.attacked_ms.items() if ms > self._allowed(kind)]
        if self.errors:
            found.append(f"{len(self.errors)} errors")
        return [*found, "lease lost"] if self.lease_lost else found

    def _allowed(self, kind: str) -> float:
        return max(BAR_TIMES * self.quiet_ms.get(kind, (0.0, 0.0))[1], BAR_MS)

    def line(self) -> str:
        """The row of the table."""
        p99s = []
        for kind in KINDS:
            quiet, attacked = self.quiet_ms.get(kind), self.attacked_ms.get(kind)
            ratio = f" ({attacked[1] / quiet[1]:.1f})" if quiet and attacked else ""
            p99s.append(f"{_ms(quiet)} / {_ms(attacked)}{ratio}")
        load = f"{self.megabytes_per_second:.2f} | {self.things_per_second:,.0f} | {self.ended}"
        memory = "/".join(f"{one:.0f}" for one in self.rss_mb)
        verdict = "held" if not (misses := self.misses()) else "**missed**: " + ", ".join(misses)
        cells = [
            self.name,
            str(self.connections),
            load,
            *p99s,
            str(len(self.errors)),
            "lost" if self.lease_lost else "0",
        ]
        return "| " + " | ".join([*cells, memory, f"{self.log_lines:,}", verdict]) + " |"


_HEAD = (
    "| attack | connections | MB/s in | things/s | ended | "
    + " | ".join(f"{kind} p99, quiet / attacked (ratio)" for kind in KINDS)
    + " | errors | leases lost | RSS MB before/peak/after | log lines | verdict |\n|"
    + "---|" * (10 + len(KINDS))
)


def _ms(pair: tuple[float, float] | None) -> str:
    return f"{pair[1]:.1f}" if pair else "-"


def _percentiles(latencies: list[float]) -> tuple[float, float]:
    ordered = sorted(latencies)
    return ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]


class _Memory(threading.Thread):
    """Looks at a process's memory ten times a second."""

    def __init__(self, process: Process) -> None:
        super().__init__(daemon=True)
        self._process = process
        self._over = threading.Event()
        self.peak = 0.0

    def run(self) -> None:
        while not self._over.wait(0.1):
            try:
                self.peak = max(self.peak, self._process.memory_mb("VmRSS"))
            except (OSError, StopIteration):
                return

    def stop(self) -> None:
        self._over.set()
        self.join()


@contextmanager
def _neighbour(address: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "bench.neighbour", address]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        try:
            assert client.stdout is not None
            if client.stdout.readline() != "ready\n":
                raise BenchError("the neighbour could not begin")
            yield client
        finally:
            if client.poll() is None:
                client.kill()


def _tell(client: subprocess.Popen[str], phase: str) -> None:
    assert client.stdin is not None
    client.stdin.write(phase + "\n")
    client.stdin.flush()


def _give_way(name: str) -> None:
    """Lets this process, which attacks, give way to the others: in the world attackers have cores of their own.

    The stock client of a trial takes more than one core, and runs only where one is idle.
    """
    if name in TRIALS:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    else:
        os.nice(_NICE)


def _lines_of(log: Path) -> int:
    return log.read_bytes().count(b"\n")


def measure(
    name: str,
    connections: int,
    server: Process,
    address: str,
    target: str,
    options: argparse.Namespace,
    frozen: Process | None,
    shards: Sequence[Process],
) -> Row:
    """One attack on a running server: the neighbour is at `address`, the attack at `target`.

    `frozen` is set going again when it is over.
    """
    began = time.monotonic()
    module = "bench.attack_load" if name in ATTACKS else "bench.attack_trials"
    command = [
        sys.executable,
        "-m",
        module,
        target,
        name,
        f"--connections={connections}",
        f"--seconds={options.seconds}",
        f"--again={options.again}",
    ]
    if name in ATTACKS:
        command.append(f"--times={options.times}")
    with _neighbour(address) as client:
        _tell(client, "quiet")
        time.sleep(options.quiet_seconds)
        if options.steps and not options.direct:
            os.kill(server.pid, signal.SIGUSR1)  # what was in the quiet time does not count
        before, lines, cpu = server.memory_mb("VmRSS"), _lines_of(server.log), server.cpu()
        at_shards = sum(shard.cpu().total for shard in shards)
        memory = _Memory(server)
        memory.start()
        _tell(client, "attacked")
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, preexec_fn=partial(_give_way, name)
        ) as attacker:
            try:
                text, _ = attacker.communicate(timeout=options.seconds + 30)
            except subprocess.TimeoutExpired:
                raise BenchError("the attacker does not end") from None
            finally:
                if attacker.poll() is None:
                    attacker.kill()
        used = (server.cpu() - cpu).total
        at_shards = sum(shard.cpu().total for shard in shards) - at_shards
        if frozen:
            os.kill(frozen.pid, signal.SIGCONT)
        _tell(client, "after")
        time.sleep(2.0)
        memory.stop()
        after = server.memory_mb("VmRSS")
        _tell(client, "end")
        assert client.stdout is not None
        told: dict[str, Any] = json.loads(client.stdout.readline() or "{}")
    if not told or not text:
        raise BenchError(f"{name}: the {'attacker' if told else 'neighbour'} broke off: {server.last_words()}")
    sent: dict[str, Any] = json.loads(text)
    server.require_running()
    # What was asked during the attack and answered after it is counted with the attack.
    latencies = {
        phase: {kind: _percentiles(values) for kind, values in told["latencies"].get(phase, {}).items()}
        for phase in ("quiet", "attacked")
    }
    return Row(
        name,
        ATTACKS[name].connections or connections if name in ATTACKS else sent["opened"],
        sent["bytes"] / options.seconds / 1e6,
        sent["things"] / options.seconds,
        sent["opened"],
        sent["ended"],
        sent["cpu_seconds"] / options.seconds,
        used / options.seconds,
        at_shards / options.seconds,
        latencies["quiet"],
        latencies["attacked"],
        [error for errors in told["errors"].values() for error in errors] + sent["errors"],
        told["lease_lost"],
        (before, max(before, memory.peak), after),
        _lines_of(server.log) - lines,
        time.monotonic() - began,
    )


def _load(shards: Sequence[Etcd], keys: Sequence[bytes], value: bytes) -> None:
    for shard, start, end in zip(shards, SHARD_STARTS, [*SHARD_STARTS[1:], b"\xff"], strict=True):
        shard.load((key, value) for key in keys if start <= key < end)


def _load_all(shards: Sequence[Etcd], names: Sequence[str]) -> None:
    """Puts what the attacks read, so that no row depends on the rows before it."""
    _load(shards, keys_of_neighbour(), b"x" * 100)
    attacks = [ATTACKS[name] for name in names if name in ATTACKS]
    if any(attack.big_keys for attack in attacks):
        _load(shards, [big_key(number) for number in range(BIG_KEYS)], b"v" * BIG_VALUE)
    if any(attack.leases for attack in attacks):
        for shard in shards:
            shard.grant(range(1, LEASES + 1))


def _attack(name: str, connections: int, shards: Sequence[Etcd], folder: Path, options: argparse.Namespace) -> Row:
    with ExitStack() as stack:
        if options.direct:
            if name in ATTACKS and ATTACKS[name].tls:
                raise BenchError("etcd has no TLS here")
            server, address, tls_address = shards[0].process, shards[0].address, ""
        else:
            esp = SteppedEsp() if options.steps else BothEsp()
            if options.steps:
                stack.callback(_print_steps, folder / "steps")
            stack.callback(esp.stop)
            folder.mkdir()
            esp.start(Backends(shards, None), folder)
            assert esp.process is not None
            server, address = esp.process, esp.address
            tls_address = esp.tls_address
        frozen = shards[2].process if name in TRIALS and TRIALS[name].freezes else None
        if frozen:
            stack.callback(os.kill, frozen.pid, signal.SIGCONT)
            time.sleep(0.5)  # so that esp has met it
            os.kill(frozen.pid, signal.SIGSTOP)
        target = tls_address if name in ATTACKS and ATTACKS[name].tls else address
        processes = [shard.process for shard in shards]
        return measure(name, connections, server, address, target, options, frozen, processes)


class BothEsp(Esp):
    """Listens with TLS as well.

    Attributes:
        tls_address: where.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tls_address = ""

    def config(self, backends: Backends, folder: Path) -> str:
        """With a second listen URL."""
        self.tls_address = self._new_address()
        pair = make_pair(folder)
        both = f"[http://{self.address}, https://{self.tls_address}]"
        return super().config(backends, folder).replace(f"[http://{self.address}]", both) + tls_fields(pair)


class SteppedEsp(BothEsp):
    """Notes its longest steps; the folder of its config has them when it has ended."""

    def command(self, config: Path) -> list[str | Path]:
        """With what notes them in front."""
        return [sys.executable, "-m", "bench.stepped_esp", config.parent / "steps", "serve", "-c", config]


def _print_steps(file: Path) -> None:
    """The longest steps of a run, each with where it was last seen."""
    if not file.exists():
        return
    seen = json.loads(file.read_text())
    lengths = ", ".join(f"{count:,} of {ms} ms" for ms, count in seen["lengths"]) or "none of 1 ms"
    print(f"  steps: {lengths}")
    for step in seen["longest"][:_STEPS_SHOWN]:
        print(f"  {step['ms']:8.1f} ms  {step['called']}, up to {step['ended']}: {' < '.join(step['lines'])}")
    lengths = ", ".join(f"{count:,} of {ms} ms" for ms, count in seen["turns"]) or "none of 1 ms"
    print(f"  turns: {lengths}")
    for turn in seen["longest_turns"][:_TURNS_SHOWN]:
        print(f"  {turn['ms']:8.1f} ms  {', '.join(f'{name} {ms}' for name, ms in turn['parts'].items())}")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    names = [*ATTACKS, *TRIALS]
    rows: list[Attack | Trial] = [*ATTACKS.values(), *TRIALS.values()]
    abouts = "\n".join(f"  {row.name:22} {row.about}" for row in rows)
    parser = argparse.ArgumentParser(
        prog="bench/attacks",
        description=__doc__,
        epilog=f"attacks:\n{abouts}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", help="attacks, separated by commas; a name's beginning is enough")
    parser.add_argument("--connections", default="1", help="1,30 say: every attack is made with each of these (1)")
    parser.add_argument("--seconds", type=float, default=9.0, help="how long each attack lasts (9)")
    parser.add_argument("--again", type=float, default=3.0, help="after so many seconds it begins anew (3)")
    parser.add_argument("--quiet-seconds", type=float, default=3.0, help="how long the neighbour works without it (3)")
    parser.add_argument(
        "--quick", action="store_true", help="attacks of 2 s: a look; a lease of 6 s survives much of that"
    )
    parser.add_argument("--times", type=float, default=1.0, help="of each attack's own rate (1)")
    parser.add_argument("--direct", action="store_true", help="attack one plain etcd instead, for comparison")
    parser.add_argument(
        "--steps",
        action="store_true",
        help="above each row the longest steps and turns of esp's loop, in CPU time; that slows esp down",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="every row goes here, with p50s and the texts of errors"
    )
    options = parser.parse_args(arguments)
    if options.quick:
        options.seconds, options.quiet_seconds = 2.0, 1.0
    wanted = options.only.split(",") if options.only else names
    options.names = []
    for word in wanted:
        found = [word] if word in names else [name for name in names if name.startswith(word)]
        if not found:
            parser.error(f"{word!r} is none of {', '.join(names)}")
        options.names += found
    if options.direct:
        options.names = [name for name in options.names if name not in TRIALS or not TRIALS[name].freezes]
    try:
        options.counts = [int(one) for one in options.connections.split(",")]
    except ValueError:
        parser.error(f"--connections: {options.connections!r} is no list of numbers")
    return options


def run(options: argparse.Namespace) -> int:
    """Attacks and reports; 0 if every row held, else 1."""
    folder = Path(tempfile.mkdtemp(prefix="esp-attacks-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    rows: list[Row] = []
    failures: list[str] = []
    try:
        with ExitStack() as stack:
            shards: list[Etcd] = []
            for shard in "abc":
                shards.append(Etcd(shard, folder))
                stack.callback(shards[-1].stop)
            _load_all(shards, options.names)
            print(_HEAD, flush=True)
            for name in options.names:
                own = ATTACKS[name].connections if name in ATTACKS else None
                for connections in options.counts[:1] if own else options.counts:
                    try:
                        row = _attack(name, connections, shards, folder / f"{name}-{connections}", options)
                    except (BenchError, OSError) as error:
                        failures.append(f"{name}, {connections}: {error}")
                        print(f"FAILED: {failures[-1]}", file=sys.stderr, flush=True)
                        continue
                    rows.append(row)
                    print(row.line(), flush=True)
                    print(f"{name}, {row.connections}: {row.seconds:.0f} s", file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if options.json:
            options.json.write_text(json.dumps([{**asdict(row), "misses": row.misses()} for row in rows], indent=1))
    missed = [row for row in rows if row.misses()]
    print(f"\n{len(rows) - len(missed)} of {len(rows)} rows within the bar; {len(failures)} failed to run")
    return 1 if missed or failures else 0


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is stopped
    try:
        return run(_options(None))
    except BenchError as error:
        print(f"bench/attacks: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
