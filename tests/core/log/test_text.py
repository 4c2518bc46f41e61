"""Parts of log lines."""

from __future__ import annotations

from esp.core.log.text import in_one_line


def test_nothing_in_a_line_begins_another_or_moves_the_cursor() -> None:
    hostile = "a\nb\r\x1b[2J\x9b\x85\u2028\u202e\0\udc80ü"
    assert in_one_line(hostile) == r"a\nb\r\x1b[2J\x9b\x85\u2028\u202e\x00\udc80ü"
