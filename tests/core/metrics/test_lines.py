"""The lines of the log in numbers."""

from __future__ import annotations

from typing import Any

import pytest

from esp.core.log.setup import Counts, Log
from esp.core.metrics.lines import families


class Counted:
    counts = Counts({"info": 3, "error": 1}, 7, 100, 2)


def values() -> dict[str, dict[tuple[str, ...], Any]]:
    return {family.name: dict(family.rows) for family in families()}


def test_the_log_of_the_process_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Log, "process", Counted())
    assert values() == {
        "esp_log_lines_total": {("debug",): 0, ("info",): 3, ("warning",): 0, ("error",): 1},
        "esp_log_lines_summed_total": {(): 7},
        "esp_log_access_lines_total": {(): 100},
        "esp_log_lines_lost_total": {(): 2},
    }


def test_without_a_log_all_is_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Log, "process", None)
    assert {value for rows in values().values() for value in rows.values()} == {0}
