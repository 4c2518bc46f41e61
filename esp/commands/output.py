"""The output of all commands: data on stdout, everything else on stderr, and the exit codes."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Container, Sequence
from enum import StrEnum
from typing import TextIO

from esp.commands.columns import breaks, laid_out
from esp.core.log.text import in_one_line

DONE = 0
FAILED = 1
USAGE = 2
BUG = 70
INTERRUPTED = 130
UNREAD = 141
"""Exit codes: done; failed; wrong usage or a wrong config; a bug; ended by Ctrl-C before the work was done; whoever has
read the output through a pipe has gone, which a shell gives for programs that end so."""


class Format(StrEnum):
    """The formats of every listing. Later versions add fields to the JSON form, and never change one."""

    TABLE = "table"
    JSON = "json"


class WideFormat(StrEnum):
    """The formats of a listing that also has a table with everything."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"


class Strays(StrEnum):
    """What `esp check --fix-strays` does with stray keys."""

    MOVE = "move"
    DELETE = "delete"


class LogFormat(StrEnum):
    """The formats of the log."""

    TEXT = "text"
    JSON = "json"


class Load(StrEnum):
    """The loads of `esp bench`, as `esp.core.load.Workload` has them."""

    PUT = "put"
    RANGE = "range"
    TXN = "txn"
    WATCH = "watch"
    KEEPALIVE = "keepalive"


class By(StrEnum):
    """What `esp plan` has even, as `esp.core.plan.Measure` has it."""

    KEYS = "keys"
    BYTES = "bytes"
    WRITES = "writes"


class LogLevel(StrEnum):
    """The levels of the log, from the lowest up."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Manner:
    """How commands write, as the options say that all commands have.

    Attributes:
        verbose: notes of what is done go to stderr.
        quiet: only errors are written, and what `-o json` asks for.
        color: `always` or `never`; `auto` for colours on a terminal.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Has all as without options."""
        self.verbose = False
        self.quiet = False
        self.color = "auto"


manner = Manner()


class CommandError(Exception):
    """An expected failure: one sentence for stderr, "" for none, and the exit code."""

    def __init__(self, text: str, exit_code: int = FAILED) -> None:
        super().__init__(text)
        self.exit_code = exit_code


def write(text: str) -> None:
    """Write one or more lines for people to stdout; not with `-q`.

    Raises:
        CommandError: stdout is closed or cannot be written.
    """
    if not manner.quiet:
        write_data(text)


def note(text: str) -> None:
    """With `-v`, write one line to stderr about what is done."""
    if manner.verbose and not manner.quiet:
        complain(text)


def write_data(text: str) -> None:
    """Write one or more lines to stdout that are data, whatever the options.

    Raises:
        CommandError: stdout is closed or cannot be written.
    """
    try:
        sys.stdout.write(text + "\n")
    except OSError as error:
        raise unwritten(error) from None


def flush() -> None:
    """Write the lines that are still buffered.

    Raises:
        CommandError: stdout cannot be written.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        raise unwritten(error) from None


def unwritten(error: OSError, *, is_whole: bool = False) -> CommandError:
    """The failure of a write to stdout; what is still buffered is dropped.

    That a reader such as `head` has gone is no failure to tell of: it has read what it wanted. Unless the output is of
    use only as a whole (`is_whole`).
    """
    _discard(sys.stdout)
    if error.errno == errno.EPIPE and not is_whole:
        return CommandError("", UNREAD)
    is_closed = error.errno == errno.EBADF
    reason = "standard output is closed" if is_closed else (error.strerror or str(error)).lower()
    return CommandError(f"the output cannot be written: {reason}")


def end_of(error: CommandError) -> int:
    """Tells of the failure, if there is something to tell, and returns the exit code."""
    if str(error):
        complain(str(error))
    return error.exit_code


def complain(text: str) -> None:
    """Write one line to stderr, if it can be written, with the name of the program in front."""
    if sys.stderr is not None:
        try:
            sys.stderr.write(f"esp: {in_one_line(text)}\n")
            sys.stderr.flush()
        except OSError:
            _discard(sys.stderr)


def _discard(stream: TextIO) -> None:
    """Let a stream write to nowhere; without this, buffered lines would fail once more when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def write_json(value: object) -> None:
    """Write the value to stdout as indented JSON, in ASCII."""
    import json

    write_data(json.dumps(value, indent=2))


def write_json_line(value: object) -> None:
    """Write the value to stdout as one line of JSON, at once: programs read lines as they come."""
    import json

    write_data(json.dumps(value))
    flush()


def json_key(key: bytes) -> dict[str, str]:
    """A key in JSON: {"text", "base64"}, without `text` if the key is not UTF-8."""
    import base64

    encoded = base64.b64encode(key).decode()
    try:
        return {"text": key.decode(), "base64": encoded}
    except UnicodeDecodeError:
        return {"base64": encoded}


def write_table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], marked: Container[int] = (), *, ragged: bool = False
) -> None:
    """Write aligned columns to stdout; no cell is cut off.

    In colours the headers are bold, and the rows whose number is in `marked` are red. On a terminal a row that is wider
    continues, indented, on the next line; see `laid_out`, also for `ragged`.
    """
    bold = red = end = ""
    if takes_escapes():
        bold, red, end = "\x1b[1m", "\x1b[31m", "\x1b[0m"
    for number, indent, line in laid_out(headers, rows, terminal_columns(), ragged=ragged):
        style = bold if number == -1 else red if number in marked else ""
        write(f"{indent}{style}{line}{end if style else ''}")


def write_prose(text: str, *, indent: str = "") -> None:
    """Write a paragraph to stdout; on a terminal it goes on in the next line between words, after `indent`."""
    room = terminal_columns()
    places = [] if room is None else breaks(text, room - len(indent))
    for start, end in zip([0, *places], [*places, None], strict=True):
        write(f"{indent if start else ''}{text[start:end].rstrip()}")


def terminal_columns() -> int | None:
    """The width of the terminal that stdout is; None if it is none."""
    if not sys.stdout.isatty():
        return None
    import shutil  # takes milliseconds to load, and scripts have no terminal

    return shutil.get_terminal_size().columns


def takes_escapes() -> bool:
    """Whether to send bold and colours: as `--color` says, else to a terminal, by NO_COLOR (no-color.org) and TERM."""
    if manner.color != "auto":
        return manner.color == "always"
    if not sys.stdout.isatty():
        return False
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM", "") not in ("", "dumb", "unknown")
