"""Fixtures of the tests of leases, of locks and of Kubernetes, and etcdctl of each generation."""

from __future__ import annotations

import contextlib
import functools
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from tests.harness import Server, connect, peer, program, run_etcdctl
from tests.integration.apiserver import ApiServer
from tests.integration.lease_client import Client
from tests.integration.lock_client import Locks


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


@pytest.fixture(params=["3.4", "3.5", "3.7"])
def any_etcdctl(request: pytest.FixtureRequest) -> Callable[..., subprocess.CompletedProcess[str]]:
    """etcdctl of each generation; called as `etcdctl`."""
    if request.param == "3.4":
        path = shutil.which("etcdctl") or pytest.skip("no etcdctl on PATH")
        told = subprocess.run([path, "version"], capture_output=True, text=True, check=True).stdout
        if " 3.4." not in told:
            pytest.skip(f"the etcdctl on PATH is not 3.4: {told}")
        return functools.partial(run_etcdctl, Path(path))
    binary = program("etcdctl", "ESP_ETCDCTL") if request.param == "3.5" else peer("etcdctl")
    return functools.partial(run_etcdctl, binary)
