"""Many keys into shards and out again, killed half-way and resumed, in bounded memory: as `bench.exports`.

CI has a few thousand keys. A million takes minutes, and some GB of disk:
ESP_TEST_KEYS=1000000 scripts/test tests/commands/test_export_many.py
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench.exports import there_and_back
from tests.harness import Etcds

KEYS = int(os.environ.get("ESP_TEST_KEYS", "6000"))


@pytest.mark.timeout(120 + KEYS / 500)
def test_nothing_is_lost_and_memory_is_bounded(start_etcd: Etcds, tmp_path: Path) -> None:
    there_and_back(tmp_path, start_etcd.several(3, f"--quota-backend-bytes={8 << 30}"), KEYS)
