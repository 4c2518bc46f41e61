"""The words for the formats and the levels of the log, for those who load no log."""

from __future__ import annotations

from typing import Final, Literal, get_args

Format = Literal["text", "json"]
Level = Literal["debug", "info", "warning", "error"]
FORMATS: Final[tuple[Format, ...]] = get_args(Format)
LEVELS: Final[tuple[Level, ...]] = get_args(Level)
"""From the lowest level up."""
