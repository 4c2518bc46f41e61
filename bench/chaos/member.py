"""The etcds of the shards: each on a host with links and a disk of its own. And the certificate of all servers."""

from __future__ import annotations

import os
import signal
import ssl
import subprocess
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bench.chaos.network import Host
from bench.etcd import etcd_binary
from bench.processes import Process
from esp.core.local_tls import Authority

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
        return answers(f"{self.endpoint}/health", self.certificates.ca)

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


def answers(url: str, ca: Path) -> bool:
    """Whether a page says that all is well."""
    try:
        with urllib.request.urlopen(url, timeout=2, context=ssl.create_default_context(cafile=ca)) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
