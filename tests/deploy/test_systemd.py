"""The units of deploy/systemd, as systemd itself judges them."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from esp.core import config

FOLDER = Path(__file__).parent.parent.parent / "deploy" / "systemd"
WORST_EXPOSURE = 1.5


@pytest.fixture
def analyze(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """systemd-analyze with the units, whose program is one that every machine has."""
    program = shutil.which("systemd-analyze") or pytest.skip("no systemd-analyze: apt install systemd")
    for unit in FOLDER.iterdir():
        (tmp_path / unit.name).write_text(unit.read_text().replace("/opt/esp/bin/esp", "/bin/true"))

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([program, *words], cwd=tmp_path, capture_output=True, text=True, check=False)

    return run


def test_systemd_finds_no_fault_in_the_units(analyze: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = analyze("verify", "--man=no", "./esp.service", "./esp.socket")
    # Other units of the machine have faults of their own.
    assert [line for line in done.stderr.splitlines() if "esp." in line] == []
    assert done.returncode == 0, done.stderr


def test_systemd_finds_the_service_well_confined(analyze: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = analyze(
        "security", "--offline=true", f"--threshold={WORST_EXPOSURE * 10:.0f}", "--no-pager", "./esp.service"
    )
    assert done.returncode == 0, done.stdout
    assert "Overall exposure level" in done.stdout


def test_the_socket_is_where_esp_listens_by_default() -> None:
    [address] = re.findall(r"(?m)^ListenStream=(.+)$", (FOLDER / "esp.socket").read_text())
    [listen] = config.parse("shards: [{endpoints: [127.0.0.1:1], ranges: [{start: '', end: ''}]}]", None).listen
    assert str(listen) == f"http://{address}"
