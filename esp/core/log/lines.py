"""Log records as lines: for people at a terminal, as text for files, as JSON for programs.

Each record becomes one line, whatever its text holds; only at a terminal a traceback has lines of its own. A record may
have fields, for JSON: `log.info("...", extra=fields(shard=name))`. A text that begins with `shard %s` or with the peer,
`%s: `, has the fields `shard` or `peer` without that.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from esp.core.log.text import in_one_line
from esp.core.wording import says_shard, shard_called

MAX_TEXT: Final = 4000
"""Characters of a line's text, or of a field; of a longer one the end is left out, and its length told."""
ACCESS: Final = "esp.access"
"""The logger of the access log."""
MAX_FRAMES: Final = 12
"""The innermost frames of a traceback that a line of text has."""
PEER: Final = re.compile(r"(.+):\d{1,10}")
"""A peer as host:port, and its host; on a unix socket its path and user, and the process."""
_QUOTES_NOTHING: Final = (
    *(ArithmeticError, AssertionError, AttributeError, IndexError, MemoryError, NameError, OSError, RuntimeError),
    *(TypeError, asyncio.InvalidStateError),
)
"""Errors whose texts name types, attributes and files. That of a KeyError or a ValueError may be a key or a token."""
MAX_CAUSES: Final = 5
"""The errors of a chain that a traceback has."""
_ROOT: Final = str(Path(__file__).parents[3]) + "/"

Value = str | int | float | bool | list[str] | None


def fields(**values: Value) -> dict[str, dict[str, Value]]:
    """What `extra` of a logger's method takes, so that the JSON line has these fields."""
    return {"fields": values}


def fields_of(record: logging.LogRecord) -> dict[str, Value]:
    """The fields of a record: its own, and the shard or the peer with which its text begins."""
    found: dict[str, Value] = {}
    first = record.args[0] if isinstance(record.args, tuple) and record.args else None
    if isinstance(first, str) and isinstance(record.msg, str):
        if record.msg.startswith("shard %s"):
            found["shard"] = first
        elif record.msg.startswith("%s: ") and PEER.fullmatch(first):
            found["peer"] = first
    own: Mapping[str, Value] = getattr(record, "fields", {})
    found.update(own)
    return found


def text_of(record: logging.LogRecord) -> str:
    """The text of a record. A shard with which the text begins is named as in all sentences: `shard b`, but `shard-1`.

    Raises:
        Exception: the arguments do not fit the text.
    """
    text = record.getMessage()
    if isinstance(record.msg, str) and record.msg.startswith("shard %s") and isinstance(record.args, tuple):
        return text.removeprefix("shard ") if says_shard(str(record.args[0])) else text
    return text


def plain(text: str) -> str:
    """The text in one line, without control characters, and no longer than `MAX_TEXT` and its length."""
    if len(text) > MAX_TEXT:
        text = f"{text[:MAX_TEXT]}... ({len(text) - MAX_TEXT:,} more characters)"
    return in_one_line(text)


def _prefix(worker: int | None) -> str:
    return "" if worker is None else f"worker {worker}: "


class _Seconds:
    """Times in UTC in the form of RFC 3339, with milliseconds."""

    def __init__(self) -> None:
        self._second = -1
        self._text = ""

    def __call__(self, created: float) -> str:
        milliseconds = int(created * 1000)
        second, rest = divmod(milliseconds, 1000)
        if second != self._second:
            self._second, self._text = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._text}.{rest:03d}Z"


class CallLine(NamedTuple):
    """What the access log tells of a call.

    Attributes:
        peer: the client's address.
        method: the path of the RPC, printable.
        code: the status code of gRPC, as Go spells it.
        seconds: how long the call took.
        shard: the one shard that worked on it; "" if there is none, or several.
        shard_seconds: how long the call was there; None if it was not.
        trace: the id of its trace; "" for none.
    """

    peer: str
    method: str
    code: str
    seconds: float
    shard: str
    shard_seconds: float | None
    trace: str = ""

    @property
    def text(self) -> str:
        """The call for people."""
        told = f"{self.peer}: {self.method} {self.code} in {self.seconds:.6f} s"
        if self.shard_seconds is not None:
            told += f", {self.shard_seconds:.6f} s of that at {shard_called(self.shard)}"
        return f"{told}; trace {self.trace}" if self.trace else told


class Lines(logging.Formatter):
    """What all formats have in common."""

    def of_call(self, at: float, call: CallLine) -> str:
        """The line of the access log for a call that has ended now, at `at` of `time.time`."""
        raise NotImplementedError


class ForPeople(Lines):
    """The lines at a terminal: the time of day, and the level if above INFO; a traceback follows line by line.

    Args:
        coloured: whether the terminal takes colours.
        worker: the number of this process among several.
    """

    _COLOURS: Final = {logging.DEBUG: "2", logging.WARNING: "33", logging.ERROR: "31", logging.CRITICAL: "31"}

    def __init__(self, coloured: bool = False, worker: int | None = None) -> None:
        super().__init__()
        self._prefix = _prefix(worker)
        self._coloured = coloured

    def format(self, record: logging.LogRecord) -> str:
        """The line, and the lines of a traceback, without the last line break."""
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        if level and self._coloured:
            level = f"\x1b[{self._COLOURS.get(record.levelno, '0')}m{level[:-1]}\x1b[0m "
        time_of_day = time.strftime("%H:%M:%S", time.localtime(record.created))
        lines = [f"{time_of_day} {level}{self._prefix}{plain(text_of(record))}"]
        if record.exc_info and record.exc_info[1]:
            lines += _traceback(record.exc_info[1])
        return "\n".join(lines)

    def of_call(self, at: float, call: CallLine) -> str:
        """The line of the access log."""
        return f"{time.strftime('%H:%M:%S', time.localtime(at))} {self._prefix}{call.text}"


class ForFiles(Lines):
    """The lines of text elsewhere: the time in UTC, the level, the text.

    In place of a traceback a line has the error and its places in the code. `worker` is the number of this process
    among several.
    """

    def __init__(self, worker: int | None = None) -> None:
        super().__init__()
        self._prefix = _prefix(worker)
        self._seconds = _Seconds()

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its line break."""
        text = text_of(record)
        if record.exc_info and record.exc_info[1]:
            text += f"; {_error(record.exc_info[1])}; at {_places(record.exc_info[1])}"
        return f"{self._seconds(record.created)} {record.levelname} {self._prefix}{plain(text)}"

    def of_call(self, at: float, call: CallLine) -> str:
        """The line of the access log."""
        return f"{self._seconds(at)} INFO {self._prefix}{call.text}"


class _AccessObject(msgspec.Struct, omit_defaults=True):
    """A line of the access log as JSON."""

    time: str
    level: str
    logger: str
    msg: str
    peer: str
    method: str
    code: str
    seconds: float
    shard: str = ""
    shard_seconds: float | None = None
    trace: str = ""
    worker: int | None = None


class AsJson(Lines):
    """The lines as JSON: an object with `time`, `level`, `logger`, `msg`, and the record's own fields.

    A bug has `error` and `traceback` as well; a line of one process among several has `worker`, its number.
    """

    def __init__(self, worker: int | None = None) -> None:
        super().__init__()
        self._worker = worker
        self._seconds = _Seconds()
        self._encode = msgspec.json.Encoder().encode

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its line break."""
        line: dict[str, Any] = {
            "time": self._seconds(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "msg": plain(text_of(record)),
        }
        if self._worker is not None:
            line["worker"] = self._worker
        for name, value in fields_of(record).items():
            if name not in line:
                line[name] = plain(value) if isinstance(value, str) else value
        if record.exc_info and record.exc_info[1]:
            line["error"] = plain(_error(record.exc_info[1]))
            # In JSON a line break is no break of the line.
            line["traceback"] = "\n".join(_traceback(record.exc_info[1])[-4 * MAX_FRAMES :])
        return self._encode(line).decode()

    def of_call(self, at: float, call: CallLine) -> str:
        """The line of the access log."""
        line = _AccessObject(
            self._seconds(at),
            "info",
            ACCESS,
            call.text,
            call.peer,
            call.method,
            call.code,
            round(call.seconds, 6),
            call.shard,
            None if call.shard_seconds is None else round(call.shard_seconds, 6),
            call.trace,
            self._worker,
        )
        return self._encode(line).decode()


def _error(error: BaseException) -> str:
    """The type of an error, and its text, unless that may quote data of a client."""
    text = str(error) if isinstance(error, _QUOTES_NOTHING) else ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _traceback(error: BaseException) -> list[str]:
    """The lines of a traceback as Python prints it, causes first, with errors as `_error` tells them."""
    chain = [error]
    while len(chain) < MAX_CAUSES:
        last = chain[-1]
        cause = last.__cause__ or (None if last.__suppress_context__ else last.__context__)
        if cause is None:
            break
        chain.append(cause)
    lines: list[str] = []
    for one in reversed(chain):
        places = "".join(traceback.format_tb(one.__traceback__)).splitlines()
        lines += ["which led to:"] if lines else []
        lines += ["Traceback (most recent call last):", *map(plain, places), plain(_error(one))]
    return lines


def _places(error: BaseException) -> str:
    """The places of a traceback in one line, the innermost first."""
    frames = traceback.extract_tb(error.__traceback__)
    return " < ".join(
        f"{frame.filename.removeprefix(_ROOT)}:{frame.lineno} {frame.name}" for frame in frames[: -MAX_FRAMES - 1 : -1]
    )
