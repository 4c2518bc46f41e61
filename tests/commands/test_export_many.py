"""Many keys into shards and out again, killed half-way and resumed, in bounded memory: as `bench.exports`.

A whole run of scripts/test, as CI makes it, has a million keys, which takes minutes and some GB of disk, beside all
other tests. A choice of tests has a few thousand, unless ESP_TEST_KEYS says how many.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench.exports import there_and_back
from tests.harness import running_etcds

KEYS = int(os.environ.get("ESP_TEST_KEYS", "6000"))


@pytest.mark.timeout(120 + KEYS / 500)
def test_nothing_is_lost_and_memory_is_bounded(etcd_binary: Path, tmp_path: Path) -> None:
    with running_etcds(tmp_path / "etcds", etcd_binary, alone=()) as etcds:  # under such a load they need time to elect
        there_and_back(tmp_path, etcds.several(3, f"--quota-backend-bytes={8 << 30}"), KEYS)
