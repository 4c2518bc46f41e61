"""Load and faults, then a judgement: `python -m bench.chaos --seconds 120`. Exit code 0 if no answer was wrong, else 1.

Everything runs in a network namespace of its own, as root, on Linux.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from time import monotonic

import grpc

from bench.chaos import report
from bench.chaos.accounts import APP
from bench.chaos.client import Client, Endpoints, RefusedError, UnknownError
from bench.chaos.etcdctl import etcdctl_binary
from bench.chaos.faults import NAMES, Faults
from bench.chaos.load import Load
from bench.chaos.network import own_namespace
from bench.chaos.replicas import EVERYTHING
from bench.chaos.report import Verdict
from bench.chaos.rig import Rig
from bench.processes import BenchError
from esp.core.pb import kv_pb2


def main() -> int:
    """Runs the command; the exit code."""
    options = _options()
    try:
        etcdctl_binary()
        own_namespace()
        folder = options.folder or Path(tempfile.mkdtemp(prefix="chaos-"))
        folder.mkdir(exist_ok=True)
        code = asyncio.run(_run(options, folder))
    except* BenchError as group:
        code = 2
        print("chaos:", *_texts(group), file=sys.stderr)
    return code


def _texts(group: BaseExceptionGroup[BaseException]) -> Iterator[str]:
    """The text of each error of a group and of groups within it."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _texts(error)
        else:
            yield str(error)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0, help="how long things break")
    parser.add_argument("--members", type=int, default=3, help="members of each of the three shards")
    parser.add_argument("--proxies", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2, help="processes of each proxy")
    parser.add_argument("--pace", type=float, default=6.0, help="calls a second that each client begins")
    parser.add_argument("--leases", type=int, default=4, help="clients with leases")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--only", default="", help="names of faults, separated by commas; by default all")
    parser.add_argument("--lasts", type=float, nargs=2, default=(2.0, 8.0), help="seconds that a fault lasts: from, to")
    parser.add_argument("--pauses", type=float, nargs=2, default=(0.0, 2.0), help="seconds between faults: from, to")
    parser.add_argument("--json", type=Path, help="a file for the result")
    parser.add_argument("--folder", type=Path, help="where logs and data go")
    return parser.parse_args()


async def _run(options: argparse.Namespace, folder: Path) -> int:
    rig = Rig.build(folder, options.members, options.proxies, options.workers)
    try:
        await rig.start()
        credentials = grpc.ssl_channel_credentials(rig.certificates.ca.read_bytes())
        endpoints = Endpoints([proxy.address for proxy in rig.proxies], APP, credentials)
        faults = Faults(rig, random.Random(options.seed), options.lasts)
        names = options.only.split(",") if options.only else list(NAMES)
        load = Load(endpoints, rig.who_ended, options.pace, options.leases, options.seed)
        verdict = await _trial(rig, load, faults, names, options.seconds, options.pauses)
        if verdict.faults:
            rig.keep_logs()
    finally:
        rig.close()
    what = (
        f"{options.seconds:g} s with seed {options.seed}: {len(rig.shards)} shards of {options.members} members, "
        f"{options.proxies} proxies of {options.workers} workers"
    )
    print(report.text(verdict, faults.counts, what))
    if options.json is not None:
        options.json.write_text(json.dumps({"what": what, "happened": faults.counts, **asdict(verdict)}, indent=1))
    if verdict.faults:
        print(f"logs: {folder}", file=sys.stderr)
    return 1 if verdict.faults else 0


async def _trial(
    rig: Rig, load: Load, faults: Faults, names: list[str], seconds: float, pauses: tuple[float, float]
) -> Verdict:
    """Lets faults happen one after the other for so long, and each at least once."""
    chance = random.Random(load.seed)

    async def happen() -> None:
        order: list[str] = []
        until = monotonic() + seconds
        while monotonic() < until or len(faults.counts) < len(names):
            order = order or chance.sample(names, len(names))
            name = order.pop()
            print(f"{until - monotonic():6.0f} s left: {name}", file=sys.stderr)
            await faults.happen(name)
            await asyncio.sleep(chance.uniform(*pauses))

    async with asyncio.TaskGroup() as group:
        copies: list[asyncio.Task[None]] = []

        async def begin() -> None:
            copies.extend(group.create_task(replica.run()) for replica in load.replicas)
            await happen()

        await load.run(begin)
        await rig.healthy(rig.members)
        await rig.ready()
        verdict = await load.judge(lambda: _rows(load.endpoints))
        for copy in copies:
            copy.cancel()
    return replace(verdict, counts={**verdict.counts, "packets of bad links": dict(faults.packets)})


async def _rows(endpoints: Endpoints) -> list[kv_pb2.KeyValue]:
    """All keys of the shards."""
    client = Client(endpoints, 0)
    try:
        while True:
            with suppress(RefusedError, UnknownError):
                return list((await client.range(*EVERYTHING, seconds=10)).kvs)
    finally:
        await client.close()


if __name__ == "__main__":
    sys.exit(main())
