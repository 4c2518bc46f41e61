"""`esp exec`: the command gets what it needs for one shard, nothing of the caller's own, and its exit code passes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from esp.commands.exec_ import variables
from esp.core import config as configs
from esp.core.local import LocalEtcd
from esp.core.local_tls import make_all
from tests.harness import program, write_config

PRINT = [sys.executable, "-c", "import json, os; print(json.dumps(dict(os.environ)))"]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exec")
    make_all(folder, ["10.0.0.3"])
    (folder / "password").write_text("geheim\n")
    path = folder / "esp.yaml"
    path.write_text(
        json.dumps(
            {
                "shards": [
                    {
                        "name": "a",
                        "endpoints": ["http://10.0.0.1:1", "http://10.0.0.2:1"],
                        "ranges": [{"start": "", "end": "m"}],
                    },
                    {
                        "name": "b",
                        "endpoints": ["https://10.0.0.3:1"],
                        "ranges": [{"start": "m", "end": ""}],
                        "tls": {"ca": "ca.crt", "cert": "client.crt", "key": "client.key"},
                        "auth": {"user": "esp", "password_file": "password"},
                    },
                ]
            }
        )
    )
    return path


def run(config: Path, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "esp", "exec", "-c", str(config), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **(env or {})})


def test_the_environment_is_the_shards_and_nothing_of_the_callers(config: Path) -> None:
    own = {
        "ETCDCTL_ENDPOINTS": "elsewhere",
        "ETCDCTL_USER": "root:x",
        "ETCDCTL_CACERT": "x",
        "ETCDCTL_WRITE_OUT": "json",
    }
    done = run(config, "a", "--", *PRINT, env=own)
    assert (done.returncode, done.stderr) == (0, "")
    told = {name: value for name, value in json.loads(done.stdout).items() if name.startswith("ETCDCTL_")}
    assert told == {
        "ETCDCTL_API": "3",
        "ETCDCTL_ENDPOINTS": "http://10.0.0.1:1,http://10.0.0.2:1",
        "ETCDCTL_WRITE_OUT": "json",
    }


def test_tls_and_the_user(config: Path) -> None:
    assert variables(configs.load(config).shard("b")) == {
        "ETCDCTL_API": "3",
        "ETCDCTL_ENDPOINTS": "https://10.0.0.3:1",
        "ETCDCTL_CACERT": str(config.parent / "ca.crt"),
        "ETCDCTL_CERT": str(config.parent / "client.crt"),
        "ETCDCTL_KEY": str(config.parent / "client.key"),
        "ETCDCTL_USER": "esp",
        "ETCDCTL_PASSWORD": "geheim",
    }


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["c", "--", "true"], 2, 'esp: no shard is called "c"; there are a, b\n'),
        (["a", "--", "no-such-program"], 127, 'esp: "no-such-program" was not found on PATH'),
        (["a", "--", "/"], 126, 'esp: "/" cannot be run: permission denied\n'),
        (["a"], 2, ""),
        (["a", "--", "sh", "-c", "exit 7"], 7, ""),
        (["a", "--", "sh", "-c", "kill -TERM $$"], -signal.SIGTERM, ""),
    ],
)
def test_the_exit_code(config: Path, arguments: list[str], code: int, text: str) -> None:
    done = run(config, *arguments)
    assert done.returncode == code
    assert done.stderr.startswith(text)


def test_a_real_etcdctl(empty_shards: list[LocalEtcd], tmp_path: Path) -> None:
    config = write_config(tmp_path / "esp.yaml", empty_shards, ["i", "r"])
    etcdctl = str(program("etcdctl", "ESP_ETCDCTL"))
    assert run(config, "s1", "--", etcdctl, "put", "k", "v").stdout == "OK\n"
    assert run(config, "s1", "--", etcdctl, "get", "k", "--print-value-only").stdout == "v\n"
    assert run(config, "s2", "--", etcdctl, "get", "k").stdout == ""
