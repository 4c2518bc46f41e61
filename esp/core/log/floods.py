"""A summary of repeated log lines, so that no client can fill the log, and the disk, with its refusals."""

from __future__ import annotations

import logging
import re
import time
from collections import Counter
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from esp.core.log.lines import PEER, CallLine, Lines, Value, fields_of
from esp.core.log.output import Later

INTERVAL: Final = 10.0
"""Seconds after which the counts of a place in the code are written and the place starts anew."""
AT_ONCE: Final = 10
"""Lines of one kind that are written at once in an interval, one for each address; further lines are counted."""
AT_ONCE_TOGETHER: Final = 20
"""Lines of one place in the code that are written at once in an interval; further lines are counted."""
MAX_KINDS: Final = 20
"""Kinds that are told apart in an interval for one place in the code; all further kinds count as one."""
MAX_PLACES: Final = 500
"""Places in the code that are told apart in an interval; all further ones count as one."""
MAX_ADDRESSES: Final = 1000
"""Addresses that are told apart for one kind in an interval."""
MAX_ALL_ADDRESSES: Final = 10_000
"""Addresses that are told apart in an interval for all kinds together."""
_KIND_LENGTH: Final = 120
_NUMBERS: Final = re.compile(r"\d+")

_Place = tuple[int, str, str]


class Write(Protocol):
    """As `Output.write`."""

    def __call__(self, line: str, *, soon: bool = False) -> None:
        """Writes a line."""


class _Last(NamedTuple):
    """What is kept of the last line that was counted; not its record, which may hold the frames of an error."""

    name: str
    level: int
    text: str
    fields: dict[str, Value]


class _Kind:
    """The lines of one kind in this interval."""

    __slots__ = ("addresses", "count", "last", "written")

    def __init__(self) -> None:
        self.written = 0
        self.count = 0
        self.addresses: dict[str, None] = {}
        self.last: _Last | None = None


class _Lines:
    """The lines of one place in the code in this interval: of one level, logger and template."""

    __slots__ = ("kinds", "since", "written")

    def __init__(self, since: float) -> None:
        self.since = since
        self.written = 0
        self.kinds: dict[str, _Kind] = {}


_BEYOND: Final[_Place] = (0, "", "")


class Floods(logging.Handler):
    """A log handler that writes the first lines of a kind, and then the number of further lines.

    Lines are of one kind if they come from one place in the code (with the same level, logger and template) and have
    the same text, apart from numbers and from the peer in front as `host:port`. A record may name its kind itself, in
    the attribute `kind`. A place starts anew `INTERVAL` seconds after its first line. Its counts are written then by a
    timer of the running loop, at the latest by `close`. Without a running loop every line is written.

    Args:
        write: writes a line; with `soon`, at the end of this turn of the loop.
        later: the timer.
        now: a clock in seconds that never goes back.

    Attributes:
        lines: by level, the lines that were logged since the start, those among them that were only counted.
        summed: lines that were counted in place of being written, since the start.
        calls: lines of the access log since the start.
    """

    def __init__(self, write: Write, later: Later, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self.lines: Counter[str] = Counter()
        self.summed = 0
        self.calls = 0
        self._write = write
        self._later = later
        self._now = now
        self._places: dict[_Place, _Lines] = {}
        self._addresses = 0
        self._is_timed = False

    def emit(self, record: logging.LogRecord) -> None:
        """Writes the line, or counts it. Raises nothing: a line that cannot be made is told without its values."""
        self.lines[record.levelname.lower()] += 1
        try:
            if self._is_told(record, record.getMessage()):
                self._write(self.format(record))
        except Exception as error:
            text = f"a bug in esp: {type(error).__name__} for the line {str(record.msg)!r}"
            self._write(self.format(_record(record.name, logging.ERROR, text, {})))

    def tell_call(self, call: CallLine) -> None:
        """Writes a line of the access log. These are never counted: `log.access` says how many calls have one."""
        self.calls += 1
        if isinstance(self.formatter, Lines):
            self._write(self.formatter.of_call(time.time(), call), soon=True)

    def _is_told(self, record: logging.LogRecord, text: str) -> bool:
        """Whether to write the line; else it is counted."""
        if not self._is_timed:
            self._is_timed = self._later(INTERVAL, self._on_timer)
            if not self._is_timed:
                return True
        place: _Place = (record.levelno, record.name, str(record.msg))
        if place not in self._places and len(self._places) >= MAX_PLACES:
            place = _BEYOND
        lines = self._places.get(place)
        if lines is None:
            lines = self._places[place] = _Lines(self._now())
        address, name = _address_and_kind(record, text)
        if place == _BEYOND or (name not in lines.kinds and len(lines.kinds) >= MAX_KINDS):
            name = ""
        kind = lines.kinds.get(name)
        if kind is None:
            kind = lines.kinds[name] = _Kind()
        is_new = address not in kind.addresses
        if is_new and len(kind.addresses) < MAX_ADDRESSES and self._addresses < MAX_ALL_ADDRESSES:
            kind.addresses[address] = None
            self._addresses += 1
        if (is_new or not address) and kind.written < AT_ONCE and lines.written < AT_ONCE_TOGETHER:
            kind.written += 1
            lines.written += 1
            return True
        kind.count += 1
        kind.last = _Last(record.name, record.levelno, text, fields_of(record))
        self.summed += 1
        return False

    def _on_timer(self) -> None:
        self._is_timed = False
        oldest = self.tell(INTERVAL)
        if oldest is not None:
            self._is_timed = self._later(max(0.0, INTERVAL - oldest), self._on_timer)

    def tell(self, age: float) -> float | None:
        """Writes the counts of the places that began `age` seconds ago or earlier, and forgets these places.

        Returns:
            Age in seconds of the oldest remaining place; None if none remains.
        """
        now = self._now()
        for place, lines in list(self._places.items()):
            if now - lines.since >= age:
                del self._places[place]
                for kind in lines.kinds.values():
                    self._addresses -= len(kind.addresses)
                    if kind.last is not None:
                        summary = _summary(kind, kind.last, now - lines.since, is_mixed=place == _BEYOND)
                        self._write(self.format(summary))
        return max((now - lines.since for lines in self._places.values()), default=None)

    def close(self) -> None:
        """Writes the remaining counts."""
        self.tell(0.0)
        super().close()


def _address_and_kind(record: logging.LogRecord, text: str) -> tuple[str, str]:
    """The address of the line's peer without its port, or ""; and the kind: the text without peer and numbers."""
    kind = getattr(record, "kind", None)
    peer = record.args[0] if isinstance(record.args, tuple) and record.args else None
    address = ""
    if isinstance(peer, str) and str(record.msg).startswith("%s: ") and (found := PEER.fullmatch(peer)):
        address, text = found[1], text[len(peer) :]
    return address, kind if isinstance(kind, str) else _NUMBERS.sub("#", text[:_KIND_LENGTH])


def _summary(kind: _Kind, last: _Last, seconds: float, *, is_mixed: bool) -> logging.LogRecord:
    many = len(kind.addresses)
    told = "" if not any(kind.addresses) else f" from {many}{'+' if many == MAX_ADDRESSES else ''} address"
    told += "es" if told and many != 1 else ""
    like = "other lines" if is_mixed else "more like this"
    text = f"{kind.count:,} {like} in the last {max(1, round(seconds))} s{told}, the last: {last.text}"
    numbers: dict[str, Value] = {"summed": kind.count, "summed_seconds": round(seconds, 1)}
    return _record(last.name, last.level, text, last.fields | numbers)


def _record(name: str, level: int, text: str, values: dict[str, Value]) -> logging.LogRecord:
    record = logging.LogRecord(name, level, "", 0, text, None, None)
    record.fields = values
    return record


def of_process() -> Floods | None:
    """The handler through which all lines of this process go, if it has a log."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, Floods):
            return handler
    return None
