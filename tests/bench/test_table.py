"""The one table of the bench, out of the files of its runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.table import of_files, one_table


def sample(throughput: float, cpu_us: float | None) -> dict[str, Any]:
    return {
        "requests": 10,
        "throughput": throughput,
        "p50_us": 1.0,
        "p99_us": 2.0,
        "cpu_us": cpu_us,
        "cpu_user_share": None,
        "peak_rss_mb": None,
    }


def write(file: Path, **workloads: Any) -> Path:
    file.write_text(json.dumps({"workloads": {name.replace("_", "-"): peers for name, peers in workloads.items()}}))
    return file


def test_a_row_has_medians_and_the_median_of_the_ratios(tmp_path: Path) -> None:
    direct = [sample(1000, None), sample(3000, None), sample(2000, None)]
    esp = [sample(900, 10.0), sample(1500, 30.0), sample(1700, 20.0)]
    haproxy = [sample(800, 20.0), sample(800, 20.0), sample(800, 20.0)]
    first = write(tmp_path / "a", put_8x16={"esp": [sample(1, 1.0)]}, put_1x1={"esp": [sample(50_000, 7.25)]})
    last = write(tmp_path / "b", put_8x16={"direct": direct, "esp": esp, "haproxy-h2": haproxy})
    head, _, *rows = one_table(of_files([first, last])).splitlines()
    assert head.count("|") == rows[0].count("|") == 12
    assert rows == [
        "| Put of 256 B, 8x16 | 2,000 | 1,500 | 800 | - | **0.85** | 20.0 | 20.0 | - | **1.00** | - |",
        "| Put of 256 B, 1x1 | - | 50,000 | - | - | - | 7.2 | - | - | - | - |",
    ]
