"""Watches of other languages' clients through esp: revisions in JavaScript, large responses in Go.

scripts/foreign builds the clients; a test without its client skips.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.harness import Esps, Etcds, Server, foreign


def tells(command: list[str | Path]) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_javascript_watches_from_behind_what_it_read(start_etcd: Etcds, start_esp: Esps) -> None:
    """Revisions above 2^53 are rounded there, and a watch from one was answered as compacted."""
    node = foreign("node")
    esp = start_esp(start_etcd.several(3), ["i", "r"])
    for _ in range(5):
        told = tells(["node", node / "token.js", esp.address])
        assert told == {"exact": True, "told": [["a", "after"], ["z", "after"]]}


def test_a_response_in_fragments_of_15_mib_comes(start_durable_etcd: Etcds, start_esp: Esps) -> None:
    trials = foreign("go") / "trials"
    esp = start_esp(start_durable_etcd.several(2), ["m"])
    assert tells([trials, "fragments", esp.address, "1000", "15360"])["events"] == 1000


@pytest.mark.parametrize("through", ["etcd", "esp"])
@pytest.mark.parametrize(
    ("fragment", "limit", "events", "error"),
    [
        (False, 0, 10, ""),
        (False, 1_572_864, 0, "code = ResourceExhausted desc = grpc: received message larger than max ("),
        (True, 0, 10, ""),
        (True, 1_572_864, 10, ""),
    ],
)
def test_the_first_response_is_what_etcds_own_tests_expect(
    start_durable_etcd: Etcds, start_esp: Esps, through: str, fragment: bool, limit: int, events: int, error: str
) -> None:
    """TestWatchFragmentDisable, ...DisableWithGRPCLimit, ...Enable and ...EnableWithGRPCLimit of etcd's clientv3."""
    trials = foreign("go") / "trials"
    shards = start_durable_etcd.several(2)
    server: Server = shards[0] if through == "etcd" else start_esp(shards, ["m"])
    told = tells([trials, "response", server.address, str(fragment).lower(), str(limit)])
    assert told["events"] == events
    assert error in told["error"]
    assert bool(error) == bool(told["error"])
