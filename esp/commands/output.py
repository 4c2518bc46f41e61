"""How the commands speak: data on stdout, everything else on stderr, and three exit codes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from enum import StrEnum

DONE = 0
FAILED = 1
USAGE = 2
"""Exit codes: done; failed; wrong usage or a wrong config."""


class Format(StrEnum):
    """The forms that every listing has. The JSON form is a promise: fields are added, never changed."""

    TABLE = "table"
    JSON = "json"


class CommandError(Exception):
    """An expected failure: one sentence for stderr, and the exit code."""

    def __init__(self, text: str, exit_code: int = FAILED) -> None:
        super().__init__(text)
        self.exit_code = exit_code


def write(text: str) -> None:
    """One line, or several, on stdout."""
    sys.stdout.write(text + "\n")


def complain(text: str) -> None:
    """One line on stderr, with the name of the program before it."""
    sys.stderr.write(f"esp: {text}\n")


def write_json(value: object) -> None:
    """The value as indented JSON on stdout, in ASCII."""
    import json

    write(json.dumps(value, indent=2))


def write_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Aligned columns on stdout. Nothing is cut off and nothing is drawn, so that it reads the same in a pipe."""
    lines = [headers, *rows]
    widths = [max(map(_width, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [cell + " " * (width - _width(cell)) for cell, width in zip(line, widths, strict=True)]
        write("  ".join(cells).rstrip())


def _width(text: str) -> int:
    """How many columns of a terminal the text takes: East Asian wide characters take two, accents none."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(2 if east_asian_width(c) in "WF" else 0 if combining(c) else 1 for c in text)
