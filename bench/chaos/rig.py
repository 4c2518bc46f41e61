"""The system under trial: shards of several etcds, each etcd on a host of its own, and proxies before them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.chaos import wal
from bench.chaos.accounts import ESP
from bench.chaos.etcdctl import add_users
from bench.chaos.member import PEER_PORT, Certificates, Member, answers
from bench.chaos.network import HERE, Network
from bench.chaos.registers import PREFIXES
from bench.processes import BenchError, Process

PATIENCE: Final = 180.0
"""Seconds for what must happen; nothing is judged by how long that takes, and the machine may be busy."""
BOUNDARIES: Final = ("", "i", "r", "")
"""Shard n owns the keys from the n-th to the next; `PREFIXES` has a prefix of each."""


class Proxy:
    """An esp. One that is started again listens where it did.

    Attributes:
        log: its output, of all its runs.
    """

    def __init__(self, name: str, folder: Path, port: int, workers: int, certificates: Certificates) -> None:
        self.certificates = certificates
        self.name = name
        self.address = f"{HERE}:{port}"
        self.log = folder / f"{name}.log"
        self.config = folder / f"{name}.yaml"
        self._workers = workers
        self._process: Process | None = None

    def start(self, *options: str) -> None:
        """Starts it; does not wait until it is ready."""
        workers = ["--workers", str(self._workers)] if self._workers > 1 else []
        command = [sys.executable, "-m", "esp", "serve", "-c", str(self.config), *workers, *options]
        self._process = Process(self.name, command, self.log)

    async def take_over(self, seconds: float) -> None:
        """Starts another process in its place, to which it hands its sockets and its tokens, and waits for its end.

        Raises:
            BenchError: it does not end in time, or the other one has ended.
        """
        before, self._process = self._process, None
        self.start("--takeover")
        deadline = time.monotonic() + seconds
        while before is not None and before.is_running:
            self.require_running()
            if time.monotonic() > deadline:
                before.kill()
                raise BenchError(f"{self.name} does not end after a takeover; its log is {self.log}")
            await asyncio.sleep(0.05)

    @property
    def pid(self) -> int:
        """The process to signal."""
        assert self._process is not None
        return self._process.pid

    @property
    def workers(self) -> list[int]:
        """The processes that serve, if there is one that supervises them."""
        return self._process.pids()[1:] if self._process is not None and self._process.is_running else []

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the process."""
        if self._process is not None and self._process.is_running:
            os.kill(self._process.pid, number)

    def send_all(self, number: signal.Signals) -> None:
        """Sends a signal to the process and its workers."""
        if self._process is not None and self._process.is_running:
            for pid in self._process.pids():
                os.kill(pid, number)

    def require_running(self) -> None:
        """Checks that the process has not ended.

        Raises:
            BenchError: it has.
        """
        if self._process is not None:
            self._process.require_running()

    async def ended(self, seconds: float) -> None:
        """Waits for the end.

        Raises:
            BenchError: there is none in time.
        """
        deadline = time.monotonic() + seconds
        while self._process is not None and self._process.is_running:
            if time.monotonic() > deadline:
                raise BenchError(f"{self.name} does not end; its log is {self.log}")
            await asyncio.sleep(0.05)

    def kill(self) -> None:
        """Ends it with SIGKILL, and its workers with it."""
        if self._process is not None:
            for pid in reversed(self._process.pids() if self._process.is_running else []):
                os.kill(pid, signal.SIGKILL)
            self._process.kill()

    def asks_ready(self) -> bool:
        """Whether it answers that it and all its shards are ready."""
        return answers(f"https://{self.address}/readyz", self.certificates.ca)


@dataclass
class Rig:
    """Shards, members, proxies. All that clients speak, here and to the shards, is TLS."""

    network: Network
    certificates: Certificates
    folder: Path
    shards: list[list[Member]]
    proxies: list[Proxy]

    @classmethod
    def build(cls, folder: Path, members: int, proxies: int, workers: int) -> Rig:
        """Builds and starts everything, with users and their roles.

        Raises:
            BenchError: a part does not start.
        """
        network = Network()
        firsts = [256 * shard + 1 for shard in range(len(PREFIXES))]
        places = [[network.host(first + number) for number in range(members)] for first in firsts]
        certificates = Certificates(folder, [HERE, *(host.address("clients") for hosts in places for host in hosts)])
        shards = []
        for shard, hosts in enumerate(places):
            names = [f"s{shard}-{number}" for number in range(members)]
            cluster = ",".join(
                f"{name}=http://{host.address('peers')}:{PEER_PORT}" for name, host in zip(names, hosts, strict=True)
            )
            shards.append(
                [Member(name, host, folder, cluster, certificates) for name, host in zip(names, hosts, strict=True)]
            )
        fleet = [Proxy(f"esp-{number}", folder, 2379 + number, workers, certificates) for number in range(proxies)]
        return cls(network, certificates, folder, shards, fleet)

    @property
    def members(self) -> list[Member]:
        """All members of all shards."""
        return [member for shard in self.shards for member in shard]

    def who_ended(self, lease: int) -> wal.Evidence:
        """What the write-ahead logs of all shards have of the end of a lease."""
        found = [wal.evidence([wal.Log(member.disk / "data") for member in shard], lease) for shard in self.shards]
        told = "; ".join(f"shard {number}: {one.text}" for number, one in enumerate(found))
        return wal.Evidence(any(one.is_of_former_leader for one in found), told)

    def keep_logs(self) -> None:
        """Packs the members' write-ahead logs into files beside their disks, which go with the rig."""
        for member in self.members:
            pack = self.folder / f"{member.name}-wal.tar.gz"
            subprocess.run(["tar", "-czf", str(pack), "-C", str(member.disk / "data" / "member"), "wal"], check=False)

    async def start(self) -> None:
        """Starts the etcds, adds the users, and starts the proxies.

        Raises:
            BenchError: a part does not get ready.
        """
        for member in self.members:
            member.start()
        for shard in self.shards:
            await self.healthy(shard)
            add_users(shard)
        password = self.folder / "password"
        password.write_text(ESP.password)
        for proxy in self.proxies:
            proxy.config.write_text(self.config(proxy, password))
            proxy.start()
        await self.ready()

    def config(self, proxy: Proxy, password: Path, extra: str = "") -> str:
        """The config of a proxy."""
        shards = [
            {
                "name": f"s{number}",
                "endpoints": [member.endpoint for member in members],
                "ranges": [{"start": BOUNDARIES[number], "end": BOUNDARIES[number + 1]}],
            }
            for number, members in enumerate(self.shards)
        ]
        values = {
            "listen": [f"https://{proxy.address}"],
            "tls": dict(zip(("cert", "key"), map(str, self.certificates.pair), strict=True)),
            "shard_tls": {"ca": str(self.certificates.ca)},
            "auth": {"user": ESP.name, "password_file": str(password)},
            "shards": shards,
            # Only so is a renewal a promise of all shards: "tolerant" leaves out a shard that is away for too long.
            "leases": "strict",
        }
        return json.dumps(values, indent=1) + extra

    async def ready(self, seconds: float = PATIENCE) -> None:
        """Waits until every proxy reaches every shard.

        Raises:
            BenchError: one does not, in time.
        """
        deadline = time.monotonic() + seconds
        for proxy in self.proxies:
            while not await asyncio.to_thread(proxy.asks_ready):
                if time.monotonic() > deadline:
                    raise BenchError(f"{proxy.name} is not ready after {seconds:g} s; its log is {proxy.log}")
                await asyncio.sleep(0.1)

    async def healthy(self, members: Sequence[Member], seconds: float = PATIENCE) -> None:
        """Waits until every member has a leader and serves.

        Raises:
            BenchError: one does not, in time.
        """
        deadline = time.monotonic() + seconds
        for member in members:
            while not await asyncio.to_thread(member.is_healthy):
                if time.monotonic() > deadline:
                    raise BenchError(f"{member.name} is not healthy after {seconds:g} s; logs are in {self.folder}")
                await asyncio.sleep(0.1)

    def close(self) -> None:
        """Ends everything."""
        for proxy in self.proxies:
            proxy.kill()
        for member in self.members:
            member.close()
        self.network.close()
