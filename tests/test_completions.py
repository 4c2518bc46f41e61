"""The completion scripts: in step with the app, and answering what a user would expect."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_the_scripts_are_in_step_with_the_app() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/completions", "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["esp", "ro"], ["route"]),
        (["esp", "--vers"], ["--version"]),
        (["esp", "route", "--pre"], ["--prefix"]),
        (["esp", "route", "a", "-o", ""], ["table", "json"]),
        (["esp", "check", "--output", "j"], ["json"]),
        (["esp", "serve", "--local", ""], []),
        (["esp", "serve", "-c", "ex"], ["example.yaml", "examples"]),
        (["esp", "serve", "--data-dir", "ex"], ["examples"]),
    ],
    ids=" ".join,
)
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes(words: list[str], expected: list[str], tmp_path: Path) -> None:
    (tmp_path / "example.yaml").touch()
    (tmp_path / "examples").mkdir()
    script = 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _esp; printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(
        ["bash", "--norc", "-c", script, "bash", ROOT / "completions/esp.bash", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert sorted(done.stdout.split()) == sorted(expected)
    assert done.stderr == ""


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
def test_fish_completes(tmp_path: Path) -> None:
    script = f"source {ROOT}/completions/esp.fish; complete -C 'esp ro'; complete -C 'esp route -o j'"
    done = subprocess.run(
        ["fish", "--no-config", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == ["route", "json"]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_zsh_accepts_its_script() -> None:
    done = subprocess.run(["zsh", "-n", ROOT / "completions/_esp"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
