"""Parts of log lines, for people and programs alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

FEW: Final = 5
"""Names that a line has at most; of further names it has the number."""


def in_one_line(text: str) -> str:
    """The text with line breaks and control characters escaped. The name of a file, say, may have some."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def few(names: Sequence[str]) -> str:
    """The names, if they are few; else the first ones and the number of the rest: `a, b, c, d, e and 996 more`."""
    if len(names) <= FEW + 1:  # "and 1 more" would be no shorter than the name
        return ", ".join(names)
    return f"{', '.join(names[:FEW])} and {len(names) - FEW:,} more"
