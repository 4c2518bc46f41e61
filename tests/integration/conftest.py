"""Fixtures of the tests of leases and of Kubernetes, and a watch that idles beside all tests of this folder."""

from __future__ import annotations

import contextlib
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from tests.harness import EspProcess, Server, connect, program, running_esps, running_etcds, wait_until
from tests.integration.apiserver import ApiServer
from tests.integration.lease_client import Client
from tests.integration.watch_talk import watchers_in


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
def new_id() -> int:
    """An id that no test has used: esp remembers for a while where it saw a lease."""
    return random.randrange(1, 2**62)


@dataclass
class IdleWatch:
    """etcdctl, watching all keys through an esp that nobody else talks to; it has been told of one event.

    Attributes:
        idle_since: when that was, by `time.monotonic`.
    """

    esp: EspProcess
    process: subprocess.Popen[str]
    idle_since: float


@pytest.fixture(scope="session")
def idle_watch(
    tmp_path_factory: pytest.TempPathFactory, etcd_binary: Path, etcdctl: Callable[..., object]
) -> Iterator[IdleWatch]:
    folder = tmp_path_factory.mktemp("idle")
    with running_etcds(folder / "etcds", etcd_binary) as etcds, running_esps(folder, etcd_binary) as esps:
        shards = etcds.several(3)
        esp = esps(shards, ["i", "r"])
        command = [program("etcdctl", "ESP_ETCDCTL"), "--endpoints", esp.address, "watch", "--prefix", ""]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watch:
            try:
                wait_until(lambda: all(watchers_in(shard) for shard in shards))
                etcdctl(esp, "put", "a", "1")
                assert watch.stdout is not None
                assert [watch.stdout.readline() for _ in range(3)] == ["PUT\n", "a\n", "1\n"]
                yield IdleWatch(esp, watch, time.monotonic())
            finally:
                watch.kill()


@pytest.fixture(scope="session", autouse=True)
def idle_watch_from_the_start(request: pytest.FixtureRequest) -> None:
    """Lets the minute go by while other tests run, when the test that needs it is among them."""
    if any("idle_watch" in getattr(item, "fixturenames", ()) for item in request.session.items):
        request.getfixturevalue("idle_watch")
