"""Parts of log lines, for people and programs alike."""

from __future__ import annotations


def in_one_line(text: str) -> str:
    """The text with line breaks and control characters escaped. The name of a file, say, may have some."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
