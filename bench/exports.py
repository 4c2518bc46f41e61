"""`esp export` and `esp import` with many keys: how fast, how much memory, and nothing is lost when they are killed.

Run as `python -m bench.exports [--keys 1000000]`; prints Markdown. Four etcds as they are by default, with every fsync:
three shards and one alone. A file of keys is imported into the shards, killed half-way and resumed; then exported,
killed half-way and resumed; then imported into the one etcd through a pipe. Each file has to be the one before, but for
revisions, and no command may take more than `MOST_MB`.

tests/commands/test_export_many.py does the same as a test, with as many keys as ESP_TEST_KEYS says.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.etcd import etcd_binary
from bench.processes import BenchError
from esp.core.export.lines import Header, ShardAt, Trailer, header_line, key_line, lease_line, trailer_line
from esp.core.local import LocalEtcd

VALUE_BYTES = 200
MOST_MB = 100
"""The most memory of any command, however many keys there are; 51 MB were seen with 1,000,000."""
KEYS_OF_A_LEASE = 1000


def write_keys(path: Path, count: int) -> None:
    """Writes an export with `count` keys, a tenth of them with leases, over three shards alike."""
    drawn = random.Random(1)
    header = Header(1, "bench", "", "snapshot", 0.0, "", [ShardAt("a", "0", 1)], start="")
    digest = hashlib.sha256()
    leases = 0
    with path.open("wb") as file:

        def write(line: bytes) -> None:
            digest.update(line)
            file.write(line)

        write(header_line(header))
        for number in range(count):
            first = "aks"[number * 3 // count]
            lease = 0
            if number % 10 == 0:
                lease = 1000 + number // (KEYS_OF_A_LEASE * 10)
                if lease >= 1000 + leases:
                    leases += 1
                    write(lease_line(lease, 3600, 3600))
            key = f"{first}/registry/things/{number:09d}".encode()
            write(key_line(key, drawn.randbytes(VALUE_BYTES // 2).hex().encode(), 1, 1, 1, lease))
        file.write(trailer_line(Trailer(keys=count, leases=leases, sha256=digest.hexdigest())))


def content(path: Path) -> tuple[str, int]:
    """A hash over keys, values and leases of a file, and the number of its keys."""
    digest = hashlib.sha256()
    keys = 0
    with path.open("rb") as file:
        for line in file:
            row = json.loads(line)
            if "key" in row:
                keys += 1
                digest.update(repr((row["key"], row["value"], row.get("lease"))).encode())
    return digest.hexdigest(), keys


class Run:
    """One esp command, measured to its end, or killed."""

    def __init__(self, arguments: Sequence[str | Path], **streams: Any) -> None:
        self.begun = time.monotonic()
        self.process = subprocess.Popen([sys.executable, "-m", "esp", *map(str, arguments)], **streams)
        self.memory = 0

    def look(self) -> None:
        """Notes the most memory so far."""
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text()
        except OSError:
            return
        for line in status.splitlines():
            if line.startswith("VmHWM"):
                self.memory = int(line.split()[1]) // 1024

    def finish(self) -> float:
        """Waits for its end; the seconds that it took."""
        while self.process.poll() is None:
            self.look()
            time.sleep(0.02)
        if self.process.returncode:
            raise BenchError(f"{self.process.args!r} ended with {self.process.returncode}")
        return time.monotonic() - self.begun

    def kill(self) -> float:
        """Kills it, which must not have ended; the seconds until then."""
        self.look()
        if self.process.poll() is not None:
            raise BenchError(f"{self.process.args!r} ended before it was killed")
        self.process.kill()
        self.process.wait()
        return time.monotonic() - self.begun


@contextmanager
def etcds(folder: Path, count: int) -> Iterator[list[LocalEtcd]]:
    """Etcds with their defaults."""
    flags = ("--quota-backend-bytes", str(8 << 30))
    started = [
        LocalEtcd(f"e{number}", folder / f"e{number}", binary=etcd_binary(), flags=flags) for number in range(count)
    ]
    try:
        for etcd in started:
            etcd.start()
        for etcd in started:
            asyncio.run(etcd.wait_ready(30))
        yield started
    finally:
        for etcd in started:
            etcd.kill()


def counted(etcds: Sequence[LocalEtcd]) -> int:
    """The number of keys of all."""
    from bench.etcd import call
    from esp.core.pb import rpc_pb2

    request = rpc_pb2.RangeRequest(key=b"\0", range_end=b"\0", count_only=True)
    return sum(call(etcd.address, "Range", request).count for etcd in etcds)


def told(what: str, keys: int, seconds: float, memory: int) -> None:
    print(f"| {what} | {keys:,} | {seconds:.1f} s | {keys / seconds:,.0f} | {memory} MB |", flush=True)
    if memory > MOST_MB:
        raise BenchError(f"{what} took {memory} MB, more than {MOST_MB}")


def config_of(folder: Path, shards: Sequence[LocalEtcd]) -> Path:
    """A config over three shards."""
    config = folder / "esp.yaml"
    bounds = ["", "i", "r", ""]
    entries = [
        {"name": name, "endpoints": [etcd.endpoint], "ranges": [{"start": bounds[n], "end": bounds[n + 1]}]}
        for n, (name, etcd) in enumerate(zip("abc", shards, strict=True))
    ]
    # Of a machine that is busy with a million keys nobody asks for an answer within a second.
    config.write_text(json.dumps({"shards": entries, "limits": {"connect_timeout": 30}}))
    return config


def there_and_back(folder: Path, shards: Sequence[LocalEtcd], count: int) -> None:
    """Keys into three empty shards and out again, killed half-way and resumed both times."""
    source, out = folder / "source.jsonl", folder / "out.jsonl"
    write_keys(source, count)
    wanted, half = content(source), source.stat().st_size // 2
    print(f"{count:,} keys, {source.stat().st_size / 1e6:.0f} MB as lines\n")
    print("| | keys | time | keys a second | most memory |\n|---|---:|---:|---:|---:|", flush=True)
    config = config_of(folder, shards)
    run = Run(["import", "-", "-c", config, "--at-once", "8"], stdin=subprocess.PIPE)
    assert run.process.stdin is not None
    with source.open("rb") as file:
        for _ in range(0, half, 65_536):  # the command waits for the rest, and cannot have ended
            run.process.stdin.write(file.read(65_536))
    run.process.stdin.flush()
    while counted(shards) < count // 3:
        time.sleep(0.02)
    seconds = run.kill()
    run.process.stdin.close()
    told("import, killed half-way", counted(shards), seconds, run.memory)
    run = Run(["import", source, "-c", config, "--resume", "--at-once", "8"])
    told("import --resume, all of the file", count, run.finish(), run.memory)
    run = Run(["export", "-c", config], stdout=subprocess.PIPE)
    assert run.process.stdout is not None
    with out.open("wb") as file:
        for _ in range(0, half, 65_536):
            file.write(run.process.stdout.read(65_536))
    seconds = run.kill()
    run.process.stdout.close()
    told("export, killed half-way", count // 2, seconds, run.memory)
    run = Run(["export", "-c", config, "--resume", out])
    told("export --resume, the other half", count // 2, run.finish(), run.memory)
    check(wanted, content(out))


def into_one(folder: Path, config: Path, alone: LocalEtcd, count: int) -> None:
    """Keys of the shards into one etcd through a pipe, and out of that."""
    out, back = folder / "all.jsonl", folder / "back.jsonl"
    run = Run(["export", "-c", config, "--to", out])
    told("export, whole", count, run.finish(), run.memory)
    first = Run(["export", "-c", config], stdout=subprocess.PIPE)
    second = Run(["import", "-", "--at-once", "8", "--endpoint", alone.endpoint], stdin=first.process.stdout)
    told("export into import, to one etcd", count, second.finish(), second.memory)
    first.finish()
    run = Run(["export", "--endpoint", alone.endpoint, "--to", back])
    told("export of one etcd", count, run.finish(), run.memory)
    check(content(out), content(back))


def check(wanted: tuple[str, int], found: tuple[str, int]) -> None:
    if wanted != found:
        raise BenchError(f"the keys are not the same: {wanted} and {found}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=1_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="esp-exports-") as folder:
        path = Path(folder)
        with etcds(path, 4) as started:
            there_and_back(path, started[:3], options.keys)
            into_one(path, path / "esp.yaml", started[3], options.keys)


if __name__ == "__main__":
    main()
