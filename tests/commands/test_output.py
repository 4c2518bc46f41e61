"""Tables on a terminal and in a pipe: tests/commands/test_route.py has the form in a pipe."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

ENDPOINT = "http://127.0.0.1:1"
CONFIG = f"shards: [{{name: main, endpoints: [{ENDPOINT}], ranges: [{{start: '', end: ''}}]}}]\n"
SGR = re.compile(r"\x1b\[[\d;]*m")


def on_a_terminal(folder: Path, *arguments: str, **env: str) -> str:
    """What `esp` writes on a terminal of 120 columns."""
    (folder / "esp.yaml").write_text(CONFIG)
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    environment |= {"TERM": "xterm", "COLUMNS": "120"} | env
    ours, theirs = pty.openpty()
    try:
        subprocess.run(
            [sys.executable, "-m", "esp", *arguments], cwd=folder, env=environment, stdout=theirs, check=False
        )
        return os.read(ours, 65536).decode().replace("\r\n", "\n")
    finally:
        os.close(ours)
        os.close(theirs)


def plain(text: str) -> list[list[str]]:
    return [line.split() for line in SGR.sub("", text).splitlines()]


@pytest.fixture
def piped(tmp_path: Path) -> str:
    (tmp_path / "esp.yaml").write_text(CONFIG)
    command = [sys.executable, "-m", "esp", "route", "[b]a"]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout


def test_a_terminal_gets_the_same_words_with_headers_that_stand_out(tmp_path: Path, piped: str) -> None:
    shown = on_a_terminal(tmp_path, "route", "[b]a")
    assert plain(shown) == plain(piped)
    assert SGR.search(shown)
    assert not SGR.search(piped)


def test_a_row_with_a_problem_is_red_unless_colour_is_not_wanted(tmp_path: Path) -> None:
    red = re.compile(r"\x1b\[31m")
    coloured = on_a_terminal(tmp_path, "check")
    assert red.search(next(line for line in coloured.splitlines() if ENDPOINT in line))
    assert not red.search(on_a_terminal(tmp_path, "check", NO_COLOR="1"))


def test_a_dumb_terminal_gets_no_escapes(tmp_path: Path, piped: str) -> None:
    shown = on_a_terminal(tmp_path, "route", "[b]a", TERM="dumb")
    assert not SGR.search(shown)
    assert plain(shown) == plain(piped)
