from __future__ import annotations

import os
from pathlib import Path

import pytest

from esp.core import config
from esp.core.config.workers import MOST_WORKERS, processors, workers_of

SHARDS = "shards: [{name: a, endpoints: ['http://127.0.0.1:1'], ranges: [{start: '', end: ''}]}]\n"


@pytest.mark.parametrize(("value", "workers"), [(1, 1), (2, 2), ("3", 3), (MOST_WORKERS, MOST_WORKERS)])
def test_a_number_of_workers(value: object, workers: int) -> None:
    assert workers_of(value) == workers


@pytest.mark.parametrize("value", [0, -1, MOST_WORKERS + 1, True, 1.5, "", None, "many", "²", [1]])
def test_no_number_of_workers(value: object) -> None:
    with pytest.raises(ValueError, match="write a number from 1 to 64, or auto"):
        workers_of(value)


def test_the_field_of_the_file_and_its_line() -> None:
    assert config.parse(SHARDS, None).workers == 1
    assert config.parse(SHARDS + "workers: 4\n", None).workers == 4
    assert config.parse(SHARDS + "workers: auto\n", None).workers == workers_of("auto")
    with pytest.raises(config.ConfigError, match=r'c\.yaml:2: "workers" is "0"; write a number'):
        config.parse(SHARDS + "workers: 0\n", Path("c.yaml"))


def test_a_quota_of_the_container_counts_and_is_at_least_one(tmp_path: Path) -> None:
    group = Path("/proc/self/cgroup").read_text().strip().rpartition("::")[2].lstrip("/")
    here = tmp_path / group
    here.mkdir(parents=True, exist_ok=True)
    for told, most in (("max 100000", 10**6), ("150000 100000", 1), ("50000 100000", 1), ("9900000 100000", 99)):
        (here / "cpu.max").write_text(told + "\n")
        assert processors(tmp_path) == min(most, len(os.sched_getaffinity(0)))
    assert processors(tmp_path / "none") == len(os.sched_getaffinity(0))
