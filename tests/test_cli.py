from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from esp.cli import app


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_no_command_prints_the_help() -> None:
    code, out, err = run()
    assert (code, err) == (0, "")
    assert out == run("--help")[1]
    assert [line.split()[0] for line in out.partition("Commands:\n")[2].splitlines()] == [
        "serve",
        "route",
        "check",
        "reload",
        "lease-sync",
        "export",
        "import",
    ]


def test_the_version() -> None:
    assert run("--version") == (0, f"esp {version('etcd-sharding-proxy')}\n", "")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["serve", "--local", "3", "-c", "x.yaml"], "--local makes its own config; leave out -c"),
        (["serve", "--data-dir", "x"], "--data-dir is only for --local; add --local 3 or leave it out"),
        (["serve", "-c", "none.yaml"], "none.yaml: cannot be read: no such file or directory"),
        (["check", "-c", "none.yaml"], "none.yaml: cannot be read: no such file or directory"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(
    arguments: list[str], error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == (2, "", f"esp: {error}\n")


def test_an_unknown_option_is_exit_2_and_leaves_stdout_empty() -> None:
    code, out, err = run("route", "a", "--nope")
    assert (code, out) == (2, "")
    assert err.endswith("Error: No such option: --nope\n")


def test_the_help_and_esp_route_load_nothing_they_do_not_need() -> None:
    script = (
        "import sys, esp.cli; before = set(sys.modules); import esp.commands.route; print(*before); print(*sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    for_help, for_route = (set(line.split()) for line in out.splitlines())
    assert for_help.isdisjoint({"yaml", "msgspec", "esp.core.config", "google.protobuf", "uvloop"})
    assert for_route.isdisjoint({"google.protobuf", "uvloop", "esp.core.shard", "esp.core.proxy"})


def test_a_key_that_the_terminal_cannot_show_is_escaped(tmp_path: Path) -> None:
    (tmp_path / "esp.yaml").write_text("shards: [{endpoints: [h:1], ranges: [{start: '', end: ''}]}]")
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "esp", "route", "é"], cwd=tmp_path, env=env, capture_output=True, check=True
    )
    assert b'"\\xe9"' in done.stdout
    assert done.stderr == b""
