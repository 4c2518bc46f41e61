"""The completion scripts: in step with the app, and answering in real shells what a user would expect."""

from __future__ import annotations

import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CONFIG = """\
shards:
- {name: alpha, endpoints: [h:1], ranges: [{start: "", end: kilo}]}
- {name: beta, endpoints: [h:2], ranges: [{start: kilo, end: "x y"}]}
- {name: gamma, endpoints: [h:3], ranges: [{start: "x y", end: ""}]}
"""
STATIC = {
    "esp ro": ["route"],
    "esp --vers": ["--version"],
    "esp -v route --pre": ["--prefix"],
    "esp route a -o ": ["table", "json"],
    "esp check --output j": ["json"],
    "esp config sh": ["show"],
    "esp config check oth": ["other.yaml"],
    "esp completion z": ["zsh"],
    "esp serve --local ": [],
    "esp serve -c oth": ["other.yaml"],
}
LIVE = {
    "esp lease-sync --only-on ": ["alpha", "beta", "gamma"],
    "esp route k": ["kilo"],
    "esp route -c other.yaml ": ["zulu"],
    "esp route -c none.yaml k": [],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with configs, and a program `esp`."""
    folder = tmp_path_factory.mktemp("completions")
    (folder / "esp.yaml").write_text(CONFIG)
    (folder / "other.yaml").write_text(CONFIG.replace("kilo", "zulu").replace('"x y"', "zulu2 x"))
    (folder / "bin").mkdir()
    program = folder / "bin" / "esp"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m esp "$@"\n')
    program.chmod(0o755)
    return folder


def environment(folder: Path) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if name != "ESP_CONFIG"}
    return {**env, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "HOME": str(folder), "TERM": "dumb"}


def test_the_scripts_and_the_manual_pages_are_in_step_with_the_app() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/completions", "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes(folder: Path) -> None:
    cases = STATIC | LIVE
    script = f"source {ROOT}/completions/esp.bash\n"
    for line in cases:
        words = " ".join(f"'{word}'" for word in line.split(" "))
        script += f'COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _esp; echo "${{COMPREPLY[*]}}"\n'
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    found = dict(zip(cases, done.stdout.splitlines(), strict=True))
    assert {line: sorted(words.split()) for line, words in found.items()} == {
        line: sorted(words) for line, words in cases.items()
    }


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
def test_fish_completes(folder: Path) -> None:
    cases = STATIC | LIVE
    script = f"source {ROOT}/completions/esp.fish\n"
    for line in cases:
        script += f"complete -C '{line}'; echo ==\n"
    done = subprocess.run(
        ["fish", "--no-config", "-c", script],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        check=True,
    )
    found = [
        sorted(row.partition("\t")[0] for row in part.splitlines() if row)
        for part in done.stdout.split("==\n")[: len(cases)]
    ]
    assert dict(zip(cases, found, strict=True)) == {line: sorted(words) for line, words in cases.items()}


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_zsh_completes(folder: Path) -> None:
    """At a terminal, as a user types: what stands there after the tab."""
    cases = {"esp ro": "esp route", "esp config sho": "esp config show", "esp route -o j": "esp route -o json"}
    cases |= {"esp lease-sync --only-on g": "esp lease-sync --only-on gamma", "esp route ki": "esp route kilo"}
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(folder)
        os.execve(shutil.which("zsh") or "", ["zsh", "-f", "-i"], {**environment(folder), "TERM": "xterm"})
    try:
        setup = f"fpath=({ROOT}/completions $fpath); autoload -Uz compinit; compinit -u -D; bindkey '^I' complete-word"
        os.write(terminal, f"{setup}; PS1=; unsetopt prompt_sp; echo rea''dy\n".encode())
        wait_for(terminal, "ready")
        for typed, expected in cases.items():
            os.write(terminal, f"{typed}\t".encode())
            wait_for(terminal, expected)
            os.write(terminal, b"\x15")  # Ctrl-U
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        os.close(terminal)


def wait_for(terminal: int, text: str) -> None:
    seen, end = b"", time.monotonic() + 100
    while text.encode() not in seen.replace(b"\x08", b""):
        assert time.monotonic() < end, f"no {text!r} in {seen!r}"
        if select.select([terminal], [], [], 1)[0]:
            seen += os.read(terminal, 65536)
