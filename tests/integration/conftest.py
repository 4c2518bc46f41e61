"""Fixtures of the tests of leases and of Kubernetes."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator

import grpc
import pytest

from tests.harness import Server, connect
from tests.integration.apiserver import ApiServer
from tests.integration.lease_client import Client


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
