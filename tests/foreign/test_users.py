"""etcd's own client with a user: it authenticates anew by itself when a shard's token has ended."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from esp.core.local import LocalEtcd
from esp.core.pb import rpc_pb2
from tests.foreign.test_trials import go
from tests.harness import EspProcess, Esps, Etcds, Server
from tests.integration.test_auth import BOUNDARIES, QUICK, Client, set_up

SHORT = "--auth-token-ttl=1"
"""Seconds after its last use that a token lives."""
ROUNDS = 3


@pytest.fixture
def shards(start_etcd: Etcds) -> list[LocalEtcd]:
    return start_etcd.several(3, QUICK, SHORT)


@pytest.fixture
def esp(shards: list[LocalEtcd], start_esp: Esps) -> EspProcess:
    return start_esp(shards, BOUNDARIES)


def trial(server: Server) -> None:
    set_up(Client(server))
    told = go("auth", server, "root", "root", ROUNDS, 4)
    assert told == {"failed": [], "read": 3 * ROUNDS, "deleted": 3 * ROUNDS, "events": [3 * ROUNDS, 3 * ROUNDS]}


def test_a_token_that_ends_between_calls_is_renewed_at_one_etcd(start_etcd: Etcds) -> None:
    trial(start_etcd(QUICK, SHORT))


def test_a_token_that_ends_between_calls_is_renewed_at_several_shards(esp: EspProcess) -> None:
    trial(esp)


def test_a_watch_goes_on_with_a_new_token_behind_a_shard_that_restarts(
    start_durable_etcd: Etcds, start_esp: Esps
) -> None:
    shards = start_durable_etcd.several(3, QUICK)
    esp = start_esp(shards, BOUNDARIES)
    client = Client(esp)
    # At revisions that are far apart, so that those of the last events leave no doubt about where a watch goes on.
    for key, count in ((b"k", 100), (b"z", 300)):
        for _ in range(count):
            client.call("KV/Put", rpc_pb2.PutRequest(key=key))
    set_up(client)
    restarting = threading.Thread(target=_restart, args=(lambda: shards[1],))
    restarting.start()
    told = go("auth", esp, "root", "root", ROUNDS, 2)
    restarting.join()
    assert (told["failed"], told["deleted"], told["events"]) == ([], 3 * ROUNDS, [3 * ROUNDS, 3 * ROUNDS])


def _restart(which: Callable[[], LocalEtcd]) -> None:
    time.sleep(3)
    which().kill()
    which().start()
