"""Fixtures of the tests of leases, of locks, of Kubernetes and of random programs; etcdctl of each generation."""

from __future__ import annotations

import contextlib
import functools
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from esp.core.local import LocalEtcd
from tests.harness import Esps, Etcds, Server, connect, etcdctl_of, run_etcdctl, running_esps
from tests.integration.apiserver import ApiServer
from tests.integration.lease_client import Client
from tests.integration.lock_client import Locks
from tests.integration.rigs import Rig, Rigs


@pytest.fixture
def channel_to() -> Iterator[Callable[[Server], grpc.Channel]]:
    """Call it with a server for a channel of the test's own, which is closed at its end."""
    with contextlib.ExitStack() as channels:
        yield lambda server: channels.enter_context(connect(server))


@pytest.fixture
def client_of(channel_to: Callable[[Server], grpc.Channel]) -> Callable[[Server], Client]:
    """Call it with a server for a client of its leases."""
    return lambda server: Client(channel_to(server))


@pytest.fixture
def apiserver() -> Iterator[Callable[..., ApiServer]]:
    """Call it with a server, and a root other than /registry/, for the requests of a kube-apiserver."""
    channels: list[grpc.Channel] = []

    def make(server: Server, root: bytes = b"/registry/") -> ApiServer:
        channels.append(connect(server))
        return ApiServer(channels[-1], root)

    yield make
    for channel in channels:
        channel.close()


@pytest.fixture
def locks_of() -> Iterator[Callable[[Server], Locks]]:
    """Call it with a server for a client of its locks and elections."""
    made: list[Locks] = []

    def make(server: Server) -> Locks:
        made.append(Locks(server))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def new_id() -> int:
    """An id that no test has used: esp remembers for a while where it saw a lease."""
    return random.randrange(1, 2**62)


@pytest.fixture(scope="module")
def rigs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rigs]:
    rigs = Rigs(tmp_path_factory.mktemp("rigs"))
    yield rigs
    rigs.close()


@pytest.fixture
def rig(rigs: Rigs, request: pytest.FixtureRequest) -> Rig:
    """The rig of the version of etcd that is the fixture's parameter."""
    return rigs(request.param)


@pytest.fixture(scope="module")
def module_esps(tmp_path_factory: pytest.TempPathFactory, etcd_binary: Path) -> Iterator[Esps]:
    """Starts esps, which run until the end of the module."""
    with running_esps(tmp_path_factory.mktemp("esps"), etcd_binary) as esps:
        yield esps


@pytest.fixture(scope="module")
def four_etcds(module_etcds: Etcds) -> list[LocalEtcd]:
    """One etcd, and three for the shards."""
    return module_etcds.several(4)


@pytest.fixture
def twins(start_etcd: Etcds) -> tuple[LocalEtcd, LocalEtcd]:
    """Two etcds that say the same to the same: of one name, address and token, from which their ids come."""
    name = "http://127.0.0.1:1"
    flags = ("--name=twin", f"--initial-advertise-peer-urls={name}", f"--initial-cluster=twin={name}")
    one, other = start_etcd.several(2, *flags, "--initial-cluster-token=twins")
    return one, other


@pytest.fixture(params=["3.4", "3.5", "3.7"])
def any_etcdctl(request: pytest.FixtureRequest) -> Callable[..., subprocess.CompletedProcess[str]]:
    """etcdctl of each generation; called as `etcdctl`."""
    return functools.partial(run_etcdctl, etcdctl_of(request.param))
