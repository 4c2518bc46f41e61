"""Families of several processes become those of one."""

from __future__ import annotations

import pytest

from esp.core.metrics.families import Family, counter, gauge, merge, merging, of_json, to_json

BOUNDS = (0.5, 1.0)


def seconds(*rows: tuple[tuple[str, ...], list[int | float]]) -> Family:
    return Family("s_seconds", "histogram", "S.", ("a",), list(rows), bounds=BOUNDS)


def test_samples_with_the_same_labels_are_added_up_and_others_stay() -> None:
    one = [counter("c_total", "C.", 1), seconds((("x",), [1, 2, 3, 0.5]))]
    other = [counter("c_total", "C.", 2), seconds((("x",), [1, 1, 1, 0.25]), (("y",), [0, 0, 1, 9.0]))]
    assert merge([one, other]) == [
        counter("c_total", "C.", 3),
        seconds((("x",), [2, 3, 4, 0.75]), (("y",), [0, 0, 1, 9.0])),
    ]


@pytest.mark.parametrize(("how", "expected"), [("sum", 8), ("max", 5), ("min", 1)])
def test_the_family_says_what_becomes_of_its_samples(how: str, expected: int) -> None:
    processes = [[gauge("g", "G.", value, how)] for value in (1, 5, 2)]  # type: ignore[arg-type]
    assert merge(processes)[0].rows == [((), expected)]


def test_a_family_of_one_process_only_is_kept() -> None:
    assert merge([[gauge("a", "A.", 1)], [gauge("b", "B.", 2)]]) == [gauge("a", "A.", 1), gauge("b", "B.", 2)]


def test_a_family_that_another_version_has_in_another_form_is_left_out() -> None:
    first = Family("m", "gauge", "M.", ("a",), [(("x",), 1)])
    others = [Family("m", "gauge", "M.", ("b",), [(("x",), 1)]), Family("m", "counter", "M.", ("a",), [(("x",), 1)])]
    assert merge([[first], *([other] for other in others)]) == [first]


def test_the_processes_own_families_stay_as_they_are() -> None:
    one, other = seconds((("x",), [1, 2, 3, 0.5])), seconds((("x",), [1, 1, 1, 0.25]))
    merge([[one], [other]])
    assert one == seconds((("x",), [1, 2, 3, 0.5]))


def test_families_pass_through_json() -> None:
    families = [counter("c_total", "C.", 1), seconds((("x\n\u20ac",), [1, 2, 3, 0.5]))]
    assert b"\n" not in to_json(families)
    assert merge([of_json(to_json(families))]) == families
    with pytest.raises(ValueError):
        of_json(b'[{"name": 1}]')


def test_many_rows_are_merged_in_steps() -> None:
    one = Family("g", "gauge", "G.", ("n",), [((str(n),), n) for n in range(10_000)])
    assert sum(step is None for step in merging([[one], [one]])) > 30
