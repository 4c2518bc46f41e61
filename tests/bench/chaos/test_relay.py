"""A relay in a host's link, seen by the kernels at both ends of a connection: nothing is lost for good, all is late."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
Seen = Mapping[str, Mapping[str, Any]]
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(not all(map(shutil.which, ("unshare", "nsenter", "ip", "ss", "tc"))), reason="needs iproute2"),
]


@pytest.fixture(scope="module")
def seen() -> Seen:
    command = ["unshare", "--net", "--mount", "--", sys.executable, "-m", "tests.bench.chaos.bad_link"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    found: Seen = json.loads(done.stdout)
    return found


def test_what_is_sent_arrives_whole_over_every_link(seen: Seen) -> None:
    assert {name: trial["same"] for name, trial in seen.items()} == dict.fromkeys(seen, True)


def test_a_good_relay_loses_nothing(seen: Seen) -> None:
    for way in ("to host", "from host"):
        assert list(seen["good"][way]) == ["passed"]


def test_a_round_takes_at_least_the_delays_of_both_directions(seen: Seen) -> None:
    # The kernel's mean comes near to it in the course of the connection.
    assert seen["slow"]["round"] > 0.9 * 0.15
    assert seen["slow to the host"]["round"] > 0.9 * 0.1


def test_what_is_lost_is_sent_again(seen: Seen) -> None:
    trial = seen["lossy"]
    assert trial["to host"]["lost"] > 0
    assert trial["from host"]["lost"] > 0
    assert trial["sent again"] > 0
    assert trial["sent again by the host"] > 0


def test_one_direction_loses_packets_and_the_other_does_not(seen: Seen) -> None:
    trial = seen["lossy from the host"]
    assert trial["from host"]["lost"] > 0
    assert trial["sent again by the host"] > 0
    assert list(trial["to host"]) == ["passed"]


def test_what_a_narrow_link_does_not_take_is_lost_and_sent_again(seen: Seen) -> None:
    assert seen["narrow"]["to host"]["dropped"] > 0
    assert seen["narrow"]["sent again"] > 0
