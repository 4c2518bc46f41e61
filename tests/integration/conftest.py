"""Fixtures of the tests of leases."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import grpc
import pytest

from tests.harness import Server, connect
from tests.integration.lease_client import Client


@pytest.fixture
def client_of() -> Iterator[Callable[[Server], Client]]:
    """Call it with a server for a client of its leases."""
    channels: list[grpc.Channel] = []

    def make(server: Server) -> Client:
        channels.append(connect(server))
        return Client(channels[-1])

    yield make
    for channel in channels:
        channel.close()


@pytest.fixture
def new_id() -> int:
    """An id that no test has used: esp remembers for a while where it saw a lease."""
    return random.randrange(1, 2**62)
