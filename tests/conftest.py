"""Fixtures: real etcds, a real esp, and stock clients for them; tests/harness.py says what each can do."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from esp.core import local
from esp.core.local import LocalEtcd
from tests.harness import (
    EspProcess,
    Esps,
    Etcds,
    connect,
    newest_etcd,
    peer,
    program,
    run_etcdctl,
    running_esps,
    running_etcds,
    wipe,
)
from tests.stubs import rpc_pb2_grpc

# How long an example takes says how busy the machine is, and nothing else.
settings.register_profile("esp", deadline=None)
settings.load_profile("esp")

# Before anything imports it, so that its assertions tell what differs.
pytest.register_assert_rewrite("tests.core.wire.conversation")


def pytest_configure(config: pytest.Config) -> None:
    """Where several pytests run side by side, each picks its ports from a part of its own.

    A server that a test has stopped for a while must find its port free when it comes back.
    """
    worker: dict[str, str] | None = getattr(config, "workerinput", None)
    if worker is not None:
        number = int(worker["workerid"].removeprefix("gw"))
        each = len(local._PORTS) // int(worker["workercount"])
        local._PORTS = local._PORTS[number * each : (number + 1) * each]


@pytest.fixture(scope="session")
def etcd_binary() -> Path:
    return program("etcd", "ESP_ETCD")


@pytest.fixture
def start_etcd(tmp_path: Path, etcd_binary: Path) -> Iterator[Etcds]:
    """Call it with extra flags for an etcd of this test's own; `.several(n)` and `.members(n)` start more."""
    with running_etcds(tmp_path / "etcds", etcd_binary) as etcds:
        yield etcds


@pytest.fixture
def start_durable_etcd(tmp_path: Path, etcd_binary: Path) -> Iterator[Etcds]:
    """As `start_etcd`, for tests that kill them: of the newest version, where scripts/peers could build it.

    The embedded one, 3.5.1, loses what it has acknowledged now and then (etcd issue 13766, mended in 3.5.3).
    """
    with running_etcds(tmp_path / "etcds", newest_etcd() or etcd_binary) as etcds:
        yield etcds


@pytest.fixture(scope="session")
def session_etcds(tmp_path_factory: pytest.TempPathFactory, etcd_binary: Path) -> Iterator[Etcds]:
    with running_etcds(tmp_path_factory.mktemp("etcds"), etcd_binary) as etcds:
        yield etcds


@pytest.fixture(scope="session")
def etcd(session_etcds: Etcds) -> LocalEtcd:
    """One etcd that belongs to no shard: the judge of what etcd answers. See `empty_etcd`."""
    return session_etcds(name="judge")


@pytest.fixture(scope="session")
def shards(session_etcds: Etcds) -> list[LocalEtcd]:
    """The three etcds behind `esp`."""
    return session_etcds.several(3)


@pytest.fixture(scope="session")
def etcd37(session_etcds: Etcds) -> LocalEtcd:
    """An etcd of the newest version esp knows, where scripts/peers could build one."""
    return session_etcds(name="etcd37", binary=peer("etcd"))


@pytest.fixture
def empty_shards(shards: list[LocalEtcd]) -> list[LocalEtcd]:
    """The shards without a key or lease."""
    for shard in shards:
        wipe(shard)
    return shards


@pytest.fixture
def empty_etcd(etcd: LocalEtcd) -> LocalEtcd:
    wipe(etcd)
    return etcd


@pytest.fixture(scope="session")
def etcdctl() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Call it with a server and etcdctl's arguments; see `run_etcdctl`."""
    return functools.partial(run_etcdctl, program("etcdctl", "ESP_ETCDCTL"))


@pytest.fixture
def start_esp(tmp_path: Path, etcd_binary: Path) -> Iterator[Esps]:
    """Call it with shards and boundaries for an esp of this test's own, which must end well (`Esps.finish`)."""
    with running_esps(tmp_path, etcd_binary) as esps:
        yield esps


@pytest.fixture(scope="session")
def esp(shards: list[LocalEtcd], tmp_path_factory: pytest.TempPathFactory, etcd_binary: Path) -> Iterator[EspProcess]:
    """esp over `shards`: keys below "i", from "i" to below "r", and from "r" on."""
    with running_esps(tmp_path_factory.mktemp("esp"), etcd_binary) as esps:
        yield esps(shards, ["i", "r"])


@pytest.fixture
def kv(esp: EspProcess, empty_shards: list[LocalEtcd]) -> Iterator[rpc_pb2_grpc.KVStub]:
    """KV through esp; the shards begin empty."""
    with connect(esp) as channel:
        yield rpc_pb2_grpc.KVStub(channel)


@pytest.fixture
def kv_direct(empty_shards: list[LocalEtcd]) -> Iterator[Callable[[int], rpc_pb2_grpc.KVStub]]:
    """kv_direct(i) is KV of shard i, past esp."""
    channels = [connect(shard) for shard in empty_shards]
    yield lambda index: rpc_pb2_grpc.KVStub(channels[index])
    for channel in channels:
        channel.close()
