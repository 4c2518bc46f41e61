"""The error of a config."""

from __future__ import annotations

from pathlib import Path

from esp.core.log.text import in_one_line


class ConfigError(Exception):
    """A fault in a config. The text is one line: file, line, fault, cure. File and line may be None.

    Attributes:
        others: further faults of the same file, as far as they could be found beside this one.
    """

    others: tuple[ConfigError, ...] = ()

    def __init__(self, path: Path | None, line: int | None, text: str) -> None:
        # The text quotes the file, so it may have a line break or be very long.
        text = in_one_line(text)
        text = text if len(text) <= 500 else text[:200] + " ... " + text[-200:]
        super().__init__(path, line, text)
        self.path = path
        self.line = line
        self.text = text

    def __str__(self) -> str:
        where = "" if self.path is None else f"{self.path}: " if self.line is None else f"{self.path}:{self.line}: "
        return where + self.text
