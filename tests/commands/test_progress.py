"""The progress bar: its line, and that only a terminal shows it."""

from __future__ import annotations

import io
import os

import pytest

from esp.commands import progress
from esp.commands.output import manner
from esp.commands.progress import bar_of, progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_line() -> None:
    assert bar_of("Exporting", 250_000, 1_000_000, 10.0, 0, "keys") == (
        "Exporting [######..................]  25%  250,000 of 1,000,000 keys  25,000/s  0:30 left"
    )
    assert bar_of("Exporting", 600, 1000, 10.0, 500, "keys").endswith("60%  600 of 1,000 keys  10/s  0:40 left")
    assert bar_of("Importing", 1500, None, 3.0, 0, "keys") == "Importing: 1,500 keys  500/s"
    assert bar_of("Importing", 0, 10, 0.0, 0, "keys") == "Importing [........................]   0%  0 of 10 keys  "


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_a_terminal_shows_it_in_one_line_and_it_is_gone_in_the_end(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(progress.sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(progress, "UPDATE_SECONDS", 0.0)
    with progress_bar("keys") as show:
        show("Exporting", 250_000, 1_000_000)
        show("Exporting", 1_000_000, 1_000_000)
    shown = terminal.getvalue().split("\r")
    assert "Exporting" in shown[1]
    assert max(map(len, shown)) < columns
    assert shown[-2].isspace()
    assert shown[-1] == ""
    assert "\n" not in terminal.getvalue()


@pytest.mark.parametrize(
    ("term", "quiet", "stream"),
    [("dumb", False, Terminal()), ("xterm", True, Terminal()), ("xterm", False, io.StringIO())],
)
def test_others_do_not(term: str, quiet: bool, stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress.sys, "stderr", stream)
    monkeypatch.setattr(manner, "quiet", quiet)
    monkeypatch.setattr(os, "environ", {"TERM": term})
    with progress_bar("keys") as show:
        show("Exporting", 1, 2)
    assert stream.getvalue() == ""
