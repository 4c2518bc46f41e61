"""The system under trial: shards of several etcds, each etcd on a host of its own, and proxies before them."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.chaos import wal
from bench.chaos.accounts import APP, ESP, READER, ROOT
from bench.chaos.network import HERE, Host, Network
from bench.chaos.registers import PREFIXES
from bench.etcd import etcd_binary
from bench.processes import BenchError, Process
from esp.core.local_tls import Authority

PATIENCE: Final = 180.0
"""Seconds for what must happen; nothing is judged by how long that takes, and the machine may be busy."""
BOUNDARIES: Final = ("", "i", "r", "")
"""Shard n owns the keys from the n-th to the next; `PREFIXES` has a prefix of each."""
CLIENT_PORT: Final = 2379
PEER_PORT: Final = 2380
DISK_BYTES: Final = 700_000_000
"""The size of each member's own disk."""
QUOTA_BYTES: Final = 48_000_000
"""The size of a database at which etcd raises NOSPACE."""


class Certificates:
    """One certificate for all servers, of a CA that everybody trusts.

    Attributes:
        ca: the file with the CA's certificate.
        pair: the files with certificate and key.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._authority = Authority()
        self._folder = folder
        self._names = names
        self.ca = folder / "ca.crt"
        self.ca.write_bytes(self._authority.cert)
        self.pair = self.rotate()

    def rotate(self) -> tuple[Path, Path]:
        """Puts a new certificate and a new key in the place of the old; the files."""
        return self._authority.issue(self._names).write(self._folder, "server")


class Member:
    """An etcd of a shard, on a host with links and a disk of its own."""

    def __init__(self, name: str, host: Host, folder: Path, cluster: str, certificates: Certificates) -> None:
        """Makes the disk: a file system in memory."""
        self.certificates = certificates
        self.name = name
        self.host = host
        self.disk = folder / name
        self._log = folder / f"{name}.log"
        self._process: Process | None = None
        self._cluster = cluster
        self.disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(self.disk)], check=True)

    @property
    def endpoint(self) -> str:
        """The URL for clients."""
        return f"https://{self.host.address('clients')}:{CLIENT_PORT}"

    @property
    def is_running(self) -> bool:
        """Whether the process runs, or is stopped."""
        return self._process is not None and self._process.is_running

    def has_clients(self) -> bool:
        """Whether somebody has a connection to the etcd as its client."""
        listing = self.host.command("ss", "--no-header", "--tcp", "state", "established", f"sport = :{CLIENT_PORT}")
        return bool(subprocess.run(listing, capture_output=True, check=True).stdout.strip())

    def is_healthy(self) -> bool:
        """Whether the etcd says that it has a leader and no alarm."""
        return _answers(f"{self.endpoint}/health", self.certificates.ca)

    def start(self) -> None:
        """Starts the etcd on the data that it has."""
        peers = f"http://{self.host.address('peers')}:{PEER_PORT}"
        flags = {
            "name": self.name,
            "data-dir": self.disk / "data",
            "listen-client-urls": self.endpoint,
            "advertise-client-urls": self.endpoint,
            "listen-peer-urls": peers,
            "initial-advertise-peer-urls": peers,
            "initial-cluster": self._cluster,
            "initial-cluster-token": self.name.rpartition("-")[0],
            "quota-backend-bytes": QUOTA_BYTES,
            "cert-file": self.certificates.pair[0],
            "key-file": self.certificates.pair[1],
            "bcrypt-cost": 4,  # the cost of a login is not under trial
            "log-level": "warn",
        }
        command = [str(etcd_binary()), *(f"--{flag}={value}" for flag, value in flags.items())]
        self._process = Process(self.name, self.host.command(*command), self._log)

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the process, if there is one."""
        if self._process is not None and self._process.is_running:
            os.kill(self._process.pid, number)

    def kill(self) -> None:
        """Ends the etcd with SIGKILL."""
        if self._process is not None:
            self._process.kill()

    def close(self) -> None:
        """Ends the etcd and its disk."""
        self.kill()
        subprocess.run(["umount", "--lazy", str(self.disk)], check=False)


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
        return _answers(f"https://{self.address}/readyz", self.certificates.ca)


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
            _add_users(shard)
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


def _answers(url: str, ca: Path) -> bool:
    """Whether a page says that all is well."""
    try:
        with urllib.request.urlopen(url, timeout=2, context=ssl.create_default_context(cafile=ca)) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def etcdctl_binary() -> Path:
    """The etcdctl beside the etcd, else the one on PATH.

    Raises:
        BenchError: there is none.
    """
    beside = etcd_binary().with_name("etcdctl")
    found = beside if beside.exists() else shutil.which("etcdctl")
    if found is None:
        raise BenchError("etcdctl missing: put one on PATH, or beside the etcd")
    return Path(found)


def etcdctl(members: Sequence[Member], *command: str, user: bool = True, seconds: int = 10, text: str = "") -> bool:
    """Runs etcdctl against members of a shard; whether it succeeded."""
    return bool(ask_etcdctl(members, *command, user=user, seconds=seconds, text=text)[0])


def ask_etcdctl(
    members: Sequence[Member], *command: str, user: bool = True, seconds: int = 10, text: str = ""
) -> tuple[bool, str]:
    """Runs etcdctl against members of a shard; whether it succeeded, and its output."""
    account = ["--user", f"{ROOT.name}:{ROOT.password}"] if user else []
    endpoints = ",".join(member.endpoint for member in members)
    done = subprocess.run(
        [
            str(etcdctl_binary()),
            f"--endpoints={endpoints}",
            f"--cacert={members[0].certificates.ca}",
            f"--command-timeout={seconds}s",
            *account,
            *command,
        ],
        capture_output=True,
        text=True,
        input=text,
        env={**os.environ, "ETCDCTL_API": "3"},
    )
    return done.returncode == 0, done.stdout


def _add_users(members: Sequence[Member]) -> None:
    """Adds the users, gives them their roles, and switches auth on.

    Raises:
        BenchError: the shard refuses a step.
    """
    first = PREFIXES[0].decode()
    steps = [
        ("user", "add", f"{ROOT.name}:{ROOT.password}"),
        ("user", "grant-role", ROOT.name, "root"),
        ("user", "add", f"{ESP.name}:{ESP.password}"),
        ("user", "grant-role", ESP.name, "root"),
        ("role", "add", "app"),
        ("role", "grant-permission", "app", "readwrite", "--prefix", ""),
        ("user", "add", f"{APP.name}:{APP.password}"),
        ("user", "grant-role", APP.name, "app"),
        ("role", "add", "reader"),
        ("role", "grant-permission", "reader", "read", "--prefix", first),
        ("user", "add", f"{READER.name}:{READER.password}"),
        ("user", "grant-role", READER.name, "reader"),
        ("auth", "enable"),
    ]
    for step in steps:
        if not etcdctl(members, *step, user=False):
            raise BenchError(f"etcdctl {' '.join(step)} fails on {members[0].name}")
