"""A short run: everything breaks once under load, and no answer is wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FAULTS = ("leader killed", "leader moved", "member cut off", "proxy killed", "proxies rolled")
ROOT = Path(__file__).parents[3]


@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
@pytest.mark.skipif(not all(map(shutil.which, ("unshare", "nsenter", "ip", "tc"))), reason="needs iproute2")
def test_nothing_is_lost_and_nothing_is_wrong_while_all_kinds_of_things_break(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    command = [sys.executable, "-m", "bench.chaos", "--seconds", "6", "--lasts", "0.5", "1.5", "--pace", "4"]
    done = subprocess.run(
        [*command, "--only", ",".join(FAULTS), "--folder", str(tmp_path), "--json", str(result)],
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
    found = json.loads(result.read_text())
    assert found["faults"] == []
    assert all(found["happened"].get(fault, 0) >= 1 for fault in FAULTS), told
    counts = found["counts"]
    assert all(counts[work] > 0 for work in ("keys judged", "operations on them", "events")), told
    assert counts["sessions"]["begun"] > 0
    assert counts["watches"]["resumed"] > 0
    assert counts["trespassers"]["refused"] > 0
