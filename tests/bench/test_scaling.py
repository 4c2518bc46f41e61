"""The bench of esp's own work: every call of every row is answered, however many shards and ranges there are."""

from __future__ import annotations

import asyncio

import pytest

from bench.scaling import ROWS, Unanswered, World, measure


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize(("shards", "ranges"), [(1, 1), (3, 100)])
def test_each_row_is_measured(row: str, shards: int, ranges: int) -> None:
    assert asyncio.run(measure(ROWS[row], shards, ranges, rounds=2)) > 0


def test_a_call_without_an_answer_is_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(World, "tells", lambda *_: asyncio.sleep(0, 0.0))
    with pytest.raises(Unanswered):
        asyncio.run(measure(ROWS["Put"], 3, 3, rounds=1))
