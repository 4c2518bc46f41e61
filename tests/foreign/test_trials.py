"""Clients of other languages: many streams on one connection, deadlines, large answers.

Each client writes its results as JSON. scripts/foreign builds the clients; a test without its client skips.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from esp.core.local import LocalEtcd
from tests.harness import EspProcess, Esps, Server, foreign, frozen


def run(*command: object, seconds: float = 100) -> dict[str, Any]:
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=seconds, check=False, cwd=Path.home()
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def go(trial: str, server: Server, *arguments: object) -> dict[str, Any]:
    return run(foreign("go") / "trials", trial, server.address, *arguments)


@pytest.fixture
def three(start_esp: Esps, empty_shards: list[LocalEtcd]) -> EspProcess:
    """esp over three empty shards, of this test's own."""
    return start_esp(empty_shards, ["i", "r"])


@pytest.fixture(params=["etcd", "esp"])
def server(request: pytest.FixtureRequest) -> Server:
    """One empty etcd, which shows that the trial is right, and esp over three."""
    found: Server = request.getfixturevalue({"etcd": "empty_etcd", "esp": "three"}[request.param])
    return found


class TestMoreThanAThousandWatchesEachAStream:
    def test_java(self, server: Server) -> None:
        java = foreign("java")
        told = run("java", "-cp", f"{java}/classes:{java}/lib/*", "Watches", f"http://{server.address}", 1_200)
        assert (told["failed"], told["told"]) == (0, 1_200)

    def test_rust(self, server: Server) -> None:
        told = run(foreign("rust") / "trials", "watches", f"http://{server.address}", 1_200)
        assert told == {"created": 1_200, "failed": 0, "puts": 1_200, "events": 1_200}


class TestOneShardStopped:
    def test_deadlines_on_it_reach_nobody_else(self, three: EspProcess, empty_shards: list[LocalEtcd]) -> None:
        with frozen(empty_shards[2]):
            told = go("deadlines", three, 8)
        assert told["late"] > 300
        assert told["puts"] > 50
        assert told["failed"] == []
        assert told["events"] == told["puts"]
        assert not told["lease_ended"]

    def test_reads_that_wait_for_it_hold_up_nobody_else(self, three: EspProcess, empty_shards: list[LocalEtcd]) -> None:
        with frozen(empty_shards[2]):
            told = go("waiting", three, 1_100)
        assert told == {"puts": 32, "failed": []}


class TestFragments:
    def test_a_watch_gets_all_of_60_mib(self, server: Server) -> None:
        assert go("fragments", server, 60, 1024 * 1024)["events"] == 60


class TestEndpointsFromMemberList:
    def test_go_stays_at_the_proxy(self, three: EspProcess) -> None:
        told = go("sync", three)
        assert told == {"synced": [three.url], "endpoints": [three.url], "keys": ["a", "j", "z"]}
