"""What an etcd that was frozen while it led does to leases when it goes on: `python -m bench.frozen_leader`.

Plain etcd, three members, no esp. In each round the leader is stopped with SIGSTOP for longer than the TTL of the
leases, and goes on. Three groups of leases are looked at:

- live: renewed each half second, at the new leader once there is one, to the last moment;
- young: granted by the new leader, and renewed there;
- resting: renewed by the new leader for the last time some seconds before the old one goes on.

Keepalives for the young and the resting ones wait in the frozen member's sockets, as of clients that have not noticed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.message import Message

from bench.etcd import etcd_binary
from bench.processes import HOST, Process, free_port
from esp.core.pb import rpc_pb2

Answer = TypeVar("Answer", bound=Message)

TTL: Final = 4
FROZEN_SECONDS: Final = 6.5
RESTS_SECONDS: Final = 2.2
"""How long before the old leader goes on the resting leases are renewed for the last time."""
SETTLE_SECONDS: Final = 0.35
"""How long after that is looked: less than any promise, and longer than the old leader believes that it leads."""
STREAMS: Final = 20


class VoidError(Exception):
    """The machine was too slow: a lease has ended for want of renewals."""


class Cluster:
    """Three members, and a connection to each."""

    def __init__(self, folder: Path) -> None:
        names = [f"m{number}" for number in range(3)]
        clients, peers = [free_port() for _ in names], [free_port() for _ in names]
        cluster = ",".join(f"{name}=http://{HOST}:{port}" for name, port in zip(names, peers, strict=True))
        self.members = []
        for name, client, peer in zip(names, clients, peers, strict=True):
            at, with_peers = f"http://{HOST}:{client}", f"http://{HOST}:{peer}"
            flags = {
                "name": name,
                "data-dir": folder / name,
                "listen-client-urls": at,
                "advertise-client-urls": at,
                "listen-peer-urls": with_peers,
                "initial-advertise-peer-urls": with_peers,
                "initial-cluster": cluster,
                "log-level": "error",
            }
            command = [str(etcd_binary()), *(f"--{flag}={value}" for flag, value in flags.items())]
            self.members.append(Process(name, command, folder / f"{name}.log"))
        own = [("grpc.use_local_subchannel_pool", 1)]
        self._channels = [grpc.aio.insecure_channel(f"{HOST}:{port}", own) for port in clients]

    def close(self) -> None:
        """Ends the members."""
        for member in self.members:
            os.kill(member.pid, signal.SIGCONT)
            member.kill()

    async def ask(self, at: int, method: str, request: Message, answer: type[Answer], seconds: float = 5) -> Answer:
        """A member's answer."""
        path = f"/etcdserverpb.{method}"
        call = self._channels[at].unary_unary(path, type(request).SerializeToString, answer.FromString)
        told: Answer = await call(request, timeout=seconds)
        return told

    def keepalives(self, at: int) -> Any:
        """A new LeaseKeepAlive call to a member."""
        request, answer = rpc_pb2.LeaseKeepAliveRequest, rpc_pb2.LeaseKeepAliveResponse
        path = "/etcdserverpb.Lease/LeaseKeepAlive"
        return self._channels[at].stream_stream(path, request.SerializeToString, answer.FromString)()

    async def leader(self, among: Sequence[int]) -> int:
        """The member of these that leads, once one does."""
        while True:
            for at in among:
                try:
                    status = await self.ask(at, "Maintenance/Status", rpc_pb2.StatusRequest(), rpc_pb2.StatusResponse)
                except grpc.aio.AioRpcError:
                    continue
                if status.leader == status.header.member_id:
                    return at
            await asyncio.sleep(0.05)

    async def grant(self, at: int, count: int) -> list[int]:
        """New leases, each with a key."""

        async def one() -> int:
            request = rpc_pb2.LeaseGrantRequest(TTL=TTL)
            lease = (await self.ask(at, "Lease/LeaseGrant", request, rpc_pb2.LeaseGrantResponse)).ID
            put = rpc_pb2.PutRequest(key=b"lease/%d" % lease, lease=lease)
            await self.ask(at, "KV/Put", put, rpc_pb2.PutResponse)
            return lease

        return list(await asyncio.gather(*(one() for _ in range(count))))

    async def there(self, at: int) -> set[int]:
        """The leases whose keys are there."""
        rows = rpc_pb2.RangeRequest(key=b"lease/", range_end=b"lease0", keys_only=True)
        answer = await self.ask(at, "KV/Range", rows, rpc_pb2.RangeResponse)
        return {int(row.key.removeprefix(b"lease/")) for row in answer.kvs}


async def renewed(cluster: Cluster, at: int, leases: Sequence[int], seconds: float = 2.0) -> dict[int, int]:
    """The TTLs that a member answers for these leases, by lease, within so many seconds."""
    told: dict[int, int] = {}

    async def some(part: Sequence[int]) -> None:
        call = cluster.keepalives(at)
        try:
            async with asyncio.timeout(seconds):
                for lease in part:
                    await call.write(rpc_pb2.LeaseKeepAliveRequest(ID=lease))
                for _ in part:
                    answer = await call.read()
                    if answer is grpc.aio.EOF:
                        return
                    told[answer.ID] = max(0, answer.TTL)
        except (TimeoutError, grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return
        finally:
            call.cancel()

    await asyncio.gather(*(some(leases[number::STREAMS]) for number in range(STREAMS)))
    return told


async def trial(cluster: Cluster, count: int) -> Counter[str]:
    """One round; what came of it.

    Raises:
        VoidError: the machine was too slow.
    """
    old = await cluster.leader(range(3))
    others = [at for at in range(3) if at != old]
    live, resting = await cluster.grant(old, count), await cluster.grant(old, count)
    promised: dict[int, float] = {}

    async def keep(at: int, leases: Sequence[int]) -> None:
        asked = monotonic()
        told = await renewed(cluster, at, leases)
        if len(told) < len(leases) or not all(told.values()):
            raise VoidError
        promised.update((lease, asked + ttl) for lease, ttl in told.items())

    await keep(old, [*live, *resting])
    os.kill(cluster.members[old].pid, signal.SIGSTOP)
    try:
        thaw = monotonic() + FROZEN_SECONDS
        new = await cluster.leader(others)
        while monotonic() < thaw - RESTS_SECONDS:
            await keep(new, [*live, *resting])
            await asyncio.sleep(0.5)
        young = await cluster.grant(new, count)
        while monotonic() < thaw - 0.6:
            await keep(new, [*live, *young])
            await asyncio.sleep(0.3)
        late = asyncio.create_task(renewed(cluster, old, [*young, *resting], 0.6 + SETTLE_SECONDS))
        await asyncio.sleep(max(0.0, thaw - monotonic()))
    finally:
        os.kill(cluster.members[old].pid, signal.SIGCONT)
    thawed = monotonic()
    await asyncio.sleep(SETTLE_SECONDS)
    there, seen = await cluster.there(new), monotonic()
    told = await late
    counts = Counter(
        {
            "live leases": count,
            "live, ended before their time": sum(one not in there and seen < promised[one] for one in (*live, *young)),
            "young, answered with no such lease": sum(told.get(one) == 0 for one in young),
            "of these there": sum(told.get(one) == 0 and one in there for one in young),
            "resting, promised anew by the old leader": sum(told.get(one, 0) > 0 for one in resting),
        }
    )
    while monotonic() < thawed + TTL:
        there, seen = await cluster.there(new), monotonic()
        false = {one for one in resting if one not in there and seen < thawed + told.get(one, 0)}
        counts["of these ended before that time"] = max(counts["of these ended before that time"], len(false))
        await asyncio.sleep(0.2)
    await asyncio.sleep(2)
    return counts


async def run(rounds: int, count: int) -> None:
    """All rounds, one line each, and their sums."""
    folder = Path(tempfile.mkdtemp(prefix="frozen-leader-"))
    cluster = Cluster(folder)
    total: Counter[str] = Counter()
    hit: Counter[str] = Counter()
    try:
        for _ in range(rounds):
            try:
                counts = await trial(cluster, count)
            except (VoidError, grpc.aio.AioRpcError) as error:
                print(f"void: {error or 'too slow'}", flush=True)
                await asyncio.sleep(TTL)
                continue
            print(", ".join(f"{name}: {number}" for name, number in counts.items()), flush=True)
            total += counts
            hit += Counter({name: 1 for name, number in counts.items() if number})
    finally:
        cluster.close()
        shutil.rmtree(folder)
    print("| | leases | rounds |\n|---|---|---|")
    for name in total:
        print(f"| {name} | {total[name]} | {hit[name]} |")


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m bench.frozen_leader", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--leases", type=int, default=60, help="leases of each group")
    parser.add_argument("--busy", type=int, default=0, help="processes that compete for the cores")
    options = parser.parse_args()
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(options.busy)]
    try:
        asyncio.run(run(options.rounds, options.leases))
    finally:
        for process in busy:
            process.kill()


if __name__ == "__main__":
    main()
