"""The log of the process: what esp logs goes to stderr."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Mapping
from typing import ClassVar, Final, NamedTuple, TextIO

from esp.core.background import later_in_loop
from esp.core.log.floods import Floods
from esp.core.log.levels import Format, Level
from esp.core.log.lines import AsJson, ForFiles, ForPeople, fields
from esp.core.log.output import Output

log = logging.getLogger("esp")

LEVELS: Final[dict[Level, int]] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


class Counts(NamedTuple):
    """What the log of this process has counted since the start.

    Attributes:
        lines: by level, the lines that were logged.
        summed: those of them that were counted in place of being written.
        calls: lines of the access log.
        lost: lines that nobody has read in time.
    """

    lines: Mapping[str, int]
    summed: int
    calls: int
    lost: int


class Log:
    """Every line of the process: written to stderr, in the format and from the level in force.

    A process has one; `use` may be called at any time.

    Args:
        form, level: chosen on the command line, whatever `use` says; None leaves them to `use`.

    Attributes:
        floods: counts repeated lines.
        output: writes the lines; None if the process has no stderr.
        form: the format in force.
        process: the log of this process; None if it has none.
    """

    process: ClassVar[Log | None] = None

    def __init__(self, form: Format | None = None, level: Level | None = None) -> None:
        self._chosen = form, level
        self._worker: int | None = None
        self.form: Format = "text"
        self._begin()
        self.use("text", "info")
        Log.process = self
        self._unraisable, sys.unraisablehook = sys.unraisablehook, _log_unraisable

    def _begin(self) -> None:
        stream = sys.stderr  # None if a shell has closed it
        self.output = None
        if stream is not None:
            self.output = Output(_descriptor(stream), later_in_loop, self._missing, stream.encoding)
        self.floods = Floods(self._write, later_in_loop)
        self._is_terminal = stream is not None and stream.isatty()
        logging.getLogger().addHandler(self.floods)

    def fork(self, worker: int) -> None:
        """Called in a new process, the worker with this number: the lines have the number from now on.

        Lines that wait, and counts of lines, are the business of the process that was forked.
        """
        self._worker = worker
        logging.getLogger().removeHandler(self.floods)
        self._begin()
        self._format()

    def use(self, form: Format, level: Level) -> None:
        """Puts a format and a level in force. Of code that is not esp's own only warnings are logged."""
        chosen_form, chosen_level = self._chosen
        self.form = chosen_form or form
        self._format()
        logging.getLogger("esp").setLevel(LEVELS[chosen_level or level])

    def _format(self) -> None:
        coloured = not os.environ.get("NO_COLOR") and os.environ.get("TERM", "") not in ("", "dumb", "unknown")
        worker = self._worker
        if self.form == "json":
            self.floods.setFormatter(AsJson(worker))
        else:
            self.floods.setFormatter(ForPeople(coloured, worker) if self._is_terminal else ForFiles(worker))

    @property
    def counts(self) -> Counts:
        """What was counted since the start."""
        lost = 0 if self.output is None else self.output.lost
        return Counts(self.floods.lines, self.floods.summed, self.floods.calls, lost)

    def close(self) -> None:
        """Writes what is counted or waits, and ends the log."""
        if Log.process is self:
            Log.process = None
            sys.unraisablehook = self._unraisable
        logging.getLogger().removeHandler(self.floods)
        self.floods.close()
        if self.output is not None:
            self.output.close()

    def _write(self, line: str, *, soon: bool = False) -> None:
        if self.output is not None:
            self.output.write(line, soon=soon)

    def _missing(self, number: int) -> str:
        record = logging.LogRecord("esp", logging.WARNING, "", 0, "%d lines are missing here", (number,), None)
        record.created = time.time()
        record.fields = fields(missing=number)["fields"]
        return self.floods.format(record)


def _log_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """Logs an exception that nobody can catch; Python itself would write it to stderr, however often it comes."""
    if isinstance(unraisable.object, bytes):
        return  # a TLS client asks for a server whose name is not ASCII; its connection ends, with a line of its own
    name = getattr(unraisable.object, "__qualname__", type(unraisable.object).__qualname__)
    log.error("%s: a bug in esp; an exception was ignored", name, exc_info=unraisable.exc_value)


def _descriptor(stream: TextIO) -> int:
    try:
        return stream.fileno()
    except OSError:  # a stream in memory, in which a test runs the command
        return 2
