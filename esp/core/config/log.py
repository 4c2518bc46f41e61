"""The `log` of the file: the form of the log, and what it tells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from esp.core.config.fields import Fields, shown
from esp.core.log.setup import FORMATS, LEVELS, Format, Level


@dataclass(frozen=True, slots=True)
class LogConfig:
    """What the log tells, and how.

    Attributes:
        format: text, or JSON lines.
        level: lines below it are not written.
    """

    format: Format = "text"
    level: Level = "info"


class _LogShape(msgspec.Struct, forbid_unknown_fields=True):
    format: Any = "text"
    level: Any = "info"


def log_of(value: dict[str, Any], fields: Fields) -> LogConfig:
    """The values of a file's `log`.

    Raises:
        LineError: a field is wrong.
    """
    shape = fields.shaped(value, _LogShape, ("log",), '"log"')
    for name, words in (("format", FORMATS), ("level", tuple(LEVELS))):
        if (found := getattr(shape, name)) not in words:
            told = _told(found)
            fields.fail(("log", name), f'log: "{name}" is {told}; write {", ".join(words[:-1])} or {words[-1]}')
    return LogConfig(shape.format, shape.level)


def _told(value: object) -> str:
    return "empty" if value is None else shown(value)
