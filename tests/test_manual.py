"""The manual pages: one for each command, in a form that readers of such pages take."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from esp.cli.whole import app
from esp.commands.described import described
from esp.commands.manual import pages

PAGES = pages(app)


def test_every_command_has_a_page_with_its_options_examples_and_exit_codes() -> None:
    for command in described(app):
        page = PAGES[f"{command.title}.1"]
        for heading in ("NAME", "SYNOPSIS", "OPTIONS", "EXAMPLES", "EXIT STATUS", "SEE ALSO"):
            assert f"\n.SH {heading}\n" in page
        for option in command.options:
            for name in option.names:
                assert f"\\fB{name.replace('-', chr(92) + '-')}\\fR" in page
    assert len(PAGES) == len(described(app))


def test_a_text_cannot_be_a_request_of_roff() -> None:
    for page in PAGES.values():
        for line in page.splitlines():
            assert not line.startswith("'")
            assert not line.startswith(".") or line.split()[0] in (".TH", ".SH", ".B", ".BR", ".TP", ".PP"), line


@pytest.mark.skipif(shutil.which("mandoc") is None, reason="needs mandoc")
def test_mandoc_finds_no_fault(tmp_path: Path) -> None:
    for name, page in PAGES.items():
        (tmp_path / name).write_text(page)
    command = ["mandoc", "-T", "lint", "-W", "warning", *sorted(PAGES)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert [line for line in done.stdout.splitlines() if "missing date" not in line] == []
