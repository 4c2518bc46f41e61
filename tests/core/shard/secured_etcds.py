"""etcds with TLS, certificates for them, and shards' clients that connect to them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import wraps
from pathlib import Path
from time import monotonic
from typing import Any

import uvloop

from esp.core.background import Background
from esp.core.config import Endpoint, ShardConfig, ShardTls, User
from esp.core.local import LocalEtcd, free_port
from esp.core.local_tls import Authority, write_file
from esp.core.shard import Shard
from esp.core.tls_files import TlsFiles
from esp.core.tls_paths import Files
from esp.core.wire.context import WireContext
from esp.core.wire.limits import Limits
from tests.harness import ALONE, fast_flags, wait_ready

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


PATIENT = Limits(
    connect_timeout=20, keepalive_timeout=20, max_waiting_seconds=20, health_interval=0.5, health_timeout=20
)


class Certificates:
    """A folder with the certificates of a cluster."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority()
        self.ca = folder / "ca.crt"
        self.other_ca = folder / "other-ca.crt"
        write_file(self.ca, self.authority.cert)
        other = Authority("another CA")
        write_file(self.other_ca, other.cert)
        self.server = self.make("server", ["localhost", "127.0.0.1"])
        self.client = self.make("client")
        self.foreign = Files(*other.issue().write(folder, "foreign"), self.ca)

    def make(self, name: str, names: list[str] | None = None, common_name: str = "", days: float = 9) -> Files:
        """A certificate, its key and the CA. A second certificate of the same name takes the place of the first."""
        pair = self.authority.issue(names or [], common_name=common_name, life=timedelta(days=days))
        return Files(*pair.write(self.folder, name), self.ca)


def start(folder: Path, name: str, binary: Path, tls: Files | None, *flags: str) -> LocalEtcd:
    """Starts an etcd, its port for members with TLS if that for clients has TLS."""
    if tls is not None:
        port = free_port()
        url = f"https://127.0.0.1:{port}"
        flags = (
            f"--listen-peer-urls={url}",
            f"--initial-advertise-peer-urls={url}",
            f"--initial-cluster={name}={url}",
            f"--peer-cert-file={tls.cert}",
            f"--peer-key-file={tls.key}",
            "--peer-client-cert-auth",
            f"--peer-trusted-ca-file={tls.ca}",
            *flags,
        )
    etcd = LocalEtcd(name, folder / name, binary=binary, tls=tls, flags=(*ALONE, *fast_flags(binary), *flags))
    if tls is not None:
        etcd.peer_port = port
    etcd.start()
    wait_ready(etcd)
    return etcd


def endpoint(etcd: LocalEtcd, *, tls: bool, peer: bool = False, host: str = "127.0.0.1") -> Endpoint:
    return Endpoint(host, etcd.peer_port if peer else etcd.client_port, tls)


@asynccontextmanager
async def running(
    at: Endpoint | tuple[Endpoint, ...],
    tls: ShardTls | None = None,
    files: TlsFiles | None = None,
    user: User | None = None,
) -> AsyncIterator[Shard]:
    """The client of a shard, when it is connected or has failed to be."""
    async with Background() as background:
        config = ShardConfig("s", at if isinstance(at, tuple) else (at,), (), user, tls)
        shard = Shard.of(config, WireContext(PATIENT), background, files or TlsFiles())
        background.start(shard.run())
        background.start(_tick(shard))
        await until(lambda: shard.is_ready or bool(shard.troubles))
        yield shard


async def _tick(shard: Shard) -> None:
    while True:
        await asyncio.sleep(0.05)
        shard.tick(monotonic())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - nobody signals it
            await asyncio.sleep(0.01)


async def trouble(at: Endpoint, tls: ShardTls | None) -> str:
    """Why a shard at this endpoint cannot be used; "" if it can."""
    async with running(at, tls) as shard:
        return shard.troubles.get(at, "")


def in_each_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Runs a test in each kind of event loop."""

    @wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        for loop in LOOPS.values():
            with asyncio.Runner(loop_factory=loop) as runner:
                runner.run(asyncio.wait_for(test(*arguments, **named), 60))

    return run
