"""Parts of log lines."""

from __future__ import annotations

import pytest

from esp.core.log.text import few, in_one_line


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, ""),
        (1, "s0"),
        (6, "s0, s1, s2, s3, s4, s5"),
        (7, "s0, s1, s2, s3, s4 and 2 more"),
        (2001, "s0, s1, s2, s3, s4 and 1,996 more"),
    ],
)
def test_of_many_names_a_line_has_the_first_and_the_number_of_the_rest(number: int, text: str) -> None:
    assert few([f"s{place}" for place in range(number)]) == text


def test_nothing_in_a_line_begins_another_or_moves_the_cursor() -> None:
    hostile = "a\nb\r\x1b[2J\x9b\x85\u2028\u202e\0\udc80ü"
    assert in_one_line(hostile) == r"a\nb\r\x1b[2J\x9b\x85\u2028\u202e\x00\udc80ü"
