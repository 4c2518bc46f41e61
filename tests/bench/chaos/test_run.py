"""Short runs: all that can break breaks once under load, and no answer is wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from bench.chaos.faults import NAMES

ROOT: Final = Path(__file__).parents[3]
MEMBERS: Final = (
    "member killed",
    "leader killed",
    "shard killed",
    "member stopped",
    "leader stopped",
    "leader moved",
    "member defragmented",
    "disk full",
    "no space",
)
LINKS: Final = (
    "member cut off",
    "leader cut off from its peers",
    "member cut off from clients",
    "shard cut off",
    "shard slow",
    "member slow",
    "member lossy",
    "leader slow among peers",
    "leader lossy among peers",
)
PROXIES: Final = ("proxy killed", "proxy stopped", "worker killed")
SUCCESSORS: Final = ("proxy taken over", "certificates rotated")
DRAINED: Final = ("proxies rolled", "config reloaded")
RUNS: Final = {"members": MEMBERS, "links": LINKS, "proxies": PROXIES, "successors": SUCCESSORS, "drained": DRAINED}
"""Several, so that each is far from its time-out on a busy machine."""
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(not all(map(shutil.which, ("unshare", "nsenter", "ip", "ss", "tc"))), reason="needs iproute2"),
]


def test_the_short_runs_have_all_faults() -> None:
    assert sorted(fault for faults in RUNS.values() for fault in faults) == sorted(NAMES)


@pytest.mark.parametrize("faults", RUNS.values(), ids=RUNS)
def test_nothing_is_lost_and_nothing_is_wrong_while_all_kinds_of_things_break(
    tmp_path: Path, faults: tuple[str, ...]
) -> None:
    found = run(tmp_path, faults)
    assert found["faults"] == []
    assert found["happened"] == dict.fromkeys(faults, 1)
    counts = found["counts"]
    assert all(counts[work] > 0 for work in ("keys judged", "operations on them", "events")), found
    assert counts["sessions"]["begun"] > 0
    assert counts["trespassers"]["refused"] > 0
    if faults is LINKS:
        assert counts["packets of bad links"]["passed"] > 0
    if faults is PROXIES:
        assert counts["watches"]["resumed"] > 0


def run(folder: Path, faults: tuple[str, ...]) -> Any:
    """The result of a run in which each of these faults happens once."""
    result = folder / "result.json"
    command = [sys.executable, "-m", "bench.chaos", "--seconds", "0", "--seed", "1", "--only", ",".join(faults)]
    # Longer than an election takes.
    command += ["--lasts", "1", "2", "--pauses", "0", "0.3", "--pace", "4"]
    done = subprocess.run(
        [*command, "--folder", str(folder), "--json", str(result)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
    )
    told = done.stdout + done.stderr
    if "etcdctl missing" in told:
        pytest.skip("needs an etcdctl")
    assert done.returncode == 0, told
    assert "Wrong answers: none." in done.stdout
    return json.loads(result.read_text())


def test_a_run_that_is_killed_leaves_no_mounts(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.chaos", "--members", "1", "--proxies", "1", "--workers", "1"]
    with subprocess.Popen(
        [*command, "--folder", str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stderr is not None
        told = running.stderr.readline()
        if "etcdctl missing" in told:
            pytest.skip("needs an etcdctl")
        mounts = Path(f"/proc/{running.pid}/mounts").read_text()
        running.kill()
    assert str(tmp_path) in mounts
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()
