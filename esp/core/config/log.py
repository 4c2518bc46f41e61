"""The `log` of the file: the form of the log, what it tells, and what it tells of single calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from esp.core.config.fields import Fields, shown
from esp.core.config.shape import Shape
from esp.core.log.levels import FORMATS, LEVELS, Format, Level

MAX_ONE_OF: Final = 1_000_000_000
MAX_SLOW_SECONDS: Final = 86_400


@dataclass(frozen=True, slots=True)
class LogConfig:
    """What the log tells, and how.

    Attributes:
        format: text, or JSON lines.
        level: lines below it are not written.
        access: one of so many ended calls has a line; 0 for none.
        slow_seconds: a call that takes longer has a line; None for no such lines.
    """

    format: Format = "text"
    level: Level = "info"
    access: int = 0
    slow_seconds: float | None = 1.0


class LogShape(Shape):
    """The fields of `log`."""

    format: Any = "text"
    level: Any = "info"
    access: Any = False
    slow_seconds: Any = 1.0


def log_of(value: dict[str, Any], fields: Fields) -> LogConfig:
    """The values of a file's `log`.

    Raises:
        LineError: a field is wrong.
    """
    shape = fields.shaped(value, LogShape, ("log",), '"log"')
    for name, words in (("format", FORMATS), ("level", LEVELS)):
        if (found := getattr(shape, name)) not in words:
            told = _told(found)
            fields.note_at(("log", name), f'log: "{name}" is {told}; write {", ".join(words[:-1])} or {words[-1]}')
    slow = shape.slow_seconds
    if slow is False or slow == "off":  # YAML reads `off` as false
        slow = None
    elif isinstance(slow, bool) or not isinstance(slow, int | float) or not 0 < slow <= MAX_SLOW_SECONDS:
        cure = f"write a number of seconds above 0, at most {MAX_SLOW_SECONDS}, or off"
        fields.note_at(("log", "slow_seconds"), f'log: "slow_seconds" is {_told(slow)}; {cure}')
        slow = None
    access = fields.tried(0, _access, shape.access, fields)
    return LogConfig(shape.format, shape.level, access, None if slow is None else float(slow))


def _access(value: object, fields: Fields) -> int:
    if value is False or value == "off":
        return 0
    if value is True or value == "all":
        return 1
    if isinstance(value, dict) and list(value) == ["one_of"]:
        number = value["one_of"]
        if isinstance(number, int) and not isinstance(number, bool) and 1 <= number <= MAX_ONE_OF:
            return number
        cure = f"write a whole number from 1 to {MAX_ONE_OF}: of so many calls one has a line"
        fields.fail(("log", "access", "one_of"), f'log: "one_of" is {_told(number)}; {cure}')
    cure = "write off, all or {one_of: 100}"
    return fields.fail(("log", "access"), f'log: "access" is {_told(value)}; {cure}')


def _told(value: object) -> str:
    return "empty" if value is None else shown(value)
