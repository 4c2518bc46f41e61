"""What commands tell on stderr with -v."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from esp.core.local import LocalEtcd
from tests.harness import Etcds, write_config


@pytest.fixture(scope="module")
def etcds(module_etcds: Etcds) -> list[LocalEtcd]:
    return module_etcds.several(3)


@pytest.fixture
def config(etcds: list[LocalEtcd], tmp_path: Path) -> Path:
    return write_config(tmp_path / "esp.yaml", etcds, ["i", "r"])


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("ESP_")}
    command = [sys.executable, "-m", "esp", *words]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize(
    "line",
    [
        "route a",
        "route a z --explain",
        "config check",
        "config show",
        "check",
        "lease-sync",
        "export",
        "map show",
        "plan --watch 0",
        "version",
    ],
)
def test_stdout_is_the_same_and_stderr_tells_of_config_time_and_end(line: str, config: Path) -> None:
    plain, told = run(config.parent, *line.split()), run(config.parent, *line.split(), "-v")
    assert told.returncode == plain.returncode
    if line not in ("check", "export"):  # their output has times
        assert told.stdout == plain.stdout
    lines = told.stderr.splitlines()
    assert all(line.startswith("esp: ") for line in lines), lines
    assert lines[-1].endswith(f" s, exit code {plain.returncode}")
    assert (f"config {config}" in told.stderr) == (line != "version")


@pytest.mark.parametrize("line", ["check", "lease-sync", "export", "map show", "plan --watch 0"])
def test_who_was_asked_and_what_has_answered(line: str, config: Path, etcds: list[LocalEtcd]) -> None:
    told = run(config.parent, *line.split(), "-v").stderr
    for etcd in etcds:
        assert any(
            str(etcd.endpoint) in line and f"etcd {version}" in line
            for line in told.splitlines()
            for version in ("3.",)
        ), told


def test_an_endpoint_that_does_not_answer(tmp_path: Path) -> None:
    (tmp_path / "esp.yaml").write_text("shards: [{name: a, endpoints: [127.0.0.1:1], ranges: [{prefix: ''}]}]\n")
    assert "asked shard a, http://127.0.0.1:1: connection refused" in run(tmp_path, "check", "-v").stderr
    assert "cannot connect to http://127.0.0.1:1: connection refused" in run(tmp_path, "export", "-v").stderr


def test_no_password_is_told(config: Path) -> None:
    (config.parent / "password").write_text("geheim\n")
    config.write_text(config.read_text() + "auth: {user: root, password_file: password}\n")
    done = run(config.parent, "exec", "-v", "s0", "--", "true")
    assert "ETCDCTL_ENDPOINTS=" in done.stderr
    assert "ETCDCTL_PASSWORD=..." in done.stderr
    assert "geheim" not in done.stderr


def test_nothing_with_q(config: Path) -> None:
    assert run(config.parent, "route", "a", "-v", "-q").stderr == ""
