"""The sums over workers: no counter goes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from esp.core.metrics.families import Family, counter, gauge, merge
from esp.core.metrics.sums import Sums


def worker(calls: int, is_open: int = 1) -> list[Family]:
    return [counter("c_total", "C.", calls), gauge("g", "G.", is_open)]


def whole(
    sums: Sums, asker: int, own: Sequence[Family], others: Mapping[int, Sequence[Family] | None]
) -> dict[str, object]:
    """What the page of the asker shows."""
    sums.take({asker: own, **others})
    return {family.name: family.rows[0][1] for family in merge([own, sums.beside(asker)])}


def test_workers_are_added_up_whichever_is_asked() -> None:
    sums = Sums()
    assert whole(sums, 10, worker(3), {11: worker(4)}) == {"c_total": 7, "g": 2}
    assert whole(sums, 11, worker(5), {10: worker(3)}) == {"c_total": 8, "g": 2}


def test_the_counters_of_a_worker_that_has_ended_stay_and_its_gauges_go() -> None:
    sums = Sums()
    whole(sums, 10, worker(3), {11: worker(4)})
    assert whole(sums, 10, worker(5), {}) == {"c_total": 9, "g": 1}
    assert whole(sums, 12, worker(1), {10: worker(6)}) == {"c_total": 11, "g": 2}
    assert whole(sums, 12, worker(1), {}) == {"c_total": 11, "g": 1}  # the asker of before has ended


def test_a_silent_worker_counts_with_what_it_told_last() -> None:
    sums = Sums()
    whole(sums, 10, worker(3), {11: worker(4)})
    assert whole(sums, 11, worker(5), {10: None}) == {"c_total": 8, "g": 2}
    assert whole(sums, 11, worker(5), {10: worker(9)}) == {"c_total": 14, "g": 2}
    assert whole(sums, 11, worker(5), {10: worker(9), 12: None}) == {"c_total": 14, "g": 2}
