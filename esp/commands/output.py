"""How the commands speak: data on stdout, everything else on stderr, and three exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Container, Sequence
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
    """One line, or several, on stdout.

    Raises:
        CommandError: it cannot be written.
    """
    if sys.stdout is None:
        raise CommandError("the output cannot be written: standard output is closed")
    try:
        sys.stdout.write(text + "\n")
    except OSError as error:
        raise _unwritten(error) from None


def flush() -> None:
    """Writes what `write` has kept back.

    Raises:
        CommandError: it cannot be written.
    """
    if sys.stdout is not None:
        try:
            sys.stdout.flush()
        except OSError as error:
            raise _unwritten(error) from None


def _unwritten(error: OSError) -> CommandError:
    # What is still kept back would fail once more when Python ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return CommandError(f"the output cannot be written: {(error.strerror or str(error)).lower()}")


def complain(text: str) -> None:
    """One line on stderr, with the name of the program before it."""
    if sys.stderr is not None:
        sys.stderr.write(f"esp: {text}\n")


def write_json(value: object) -> None:
    """The value as indented JSON on stdout, in ASCII."""
    import json

    write(json.dumps(value, indent=2))


def json_key(key: bytes) -> dict[str, str]:
    """A key in JSON: {"text", "base64"}, without `text` when it is not UTF-8."""
    import base64

    encoded = base64.b64encode(key).decode()
    try:
        return {"text": key.decode(), "base64": encoded}
    except UnicodeDecodeError:
        return {"base64": encoded}


def write_table(headers: Sequence[str], rows: Sequence[Sequence[str]], marked: Container[int] = ()) -> None:
    """Aligned columns on stdout; nothing is cut off and nothing is drawn.

    On a terminal the headers stand out, and so do the rows whose number is in `marked`. What is wider than that goes on
    in its next line: a cell stays in one piece, to be copied.
    """
    if sys.stdout is not None and sys.stdout.isatty():
        _write_rich_table(headers, rows, marked)
        return
    lines = [headers, *rows]
    widths = [max(map(_width, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [cell + " " * (width - _width(cell)) for cell, width in zip(line, widths, strict=True)]
        write("  ".join(cells).rstrip())


def _write_rich_table(headers: Sequence[str], rows: Sequence[Sequence[str]], marked: Container[int]) -> None:
    # As slow to import as all the rest together, so not for a pipe. It looks at NO_COLOR and TERM by itself.
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for header in headers:
        table.add_column(header, no_wrap=True)
    for number, row in enumerate(rows):
        # Text, because in a plain string rich reads ["a", "b") as mark-up.
        table.add_row(*map(Text, row), style="red" if number in marked else None)
    console = Console(highlight=False)
    widths = [max(map(_width, column)) for column in zip(headers, *rows, strict=True)]
    console.print(table, width=max(console.width, sum(widths) + 2 * len(widths)), soft_wrap=True)


def _width(text: str) -> int:
    """How many columns of a terminal the text takes: East Asian wide characters take two, accents none."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(2 if east_asian_width(c) in "WF" else 0 if combining(c) else 1 for c in text)
