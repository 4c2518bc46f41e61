"""The start of esp over a layout, and runs of random programs against both sides.

The programs are the same in each run. ESP_TEST_PROGRAMS=5000 runs so many of each kind instead, new ones each time;
with ESP_TEST_SMALLEST=1 as well, a program that fails is made as small as can be.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from esp.core.local import LocalEtcd
from tests.differential import programs as p
from tests.differential.clusters import Clusters
from tests.differential.differences import Difference
from tests.differential.mapping import Layout
from tests.differential.run import Run
from tests.harness import EspProcess, Esps

PROGRAMS = int(os.environ.get("ESP_TEST_PROGRAMS", "0"))
SMALLEST = bool(os.environ.get("ESP_TEST_SMALLEST"))


def configured(path: Path, shards: Sequence[LocalEtcd], layout: Layout) -> Path:
    """A config of this layout."""

    def text(key: bytes) -> str:
        return json.dumps(f"hex:{key.hex()}" if key else "")

    ends = [*layout.starts[1:], b""]
    lines = ["shards:"]
    for number, shard in enumerate(shards):
        ranges = [
            f"{{start: {text(start)}, end: {text(end)}}}"
            for start, end, owner in zip(layout.starts, ends, layout.owners, strict=True)
            if owner == number
        ]
        lines.append(f"  - {{name: s{number}, endpoints: [{shard.endpoint}], ranges: [{', '.join(ranges)}]}}")
    path.write_text("\n".join([*lines, ""]))
    return path


def start(esps: Esps, shards: Sequence[LocalEtcd], layout: Layout, extra: str = "") -> EspProcess:
    """esp over shards with this layout, ready. `extra` is more YAML."""
    path = configured(esps.folder / f"layout-{len(esps.started)}.yaml", shards, layout)
    with path.open("a") as file:
        file.write(extra)
    esp = esps.launch("-c", path, config=path)
    esp.wait_ready()
    return esp


def explore(both: Clusters, count: int, programs: st.SearchStrategy[list[p.Step]] = p.programs) -> Counter[Difference]:
    """Runs so many programs; what differed, and how often."""
    noted: Counter[Difference] = Counter()

    @settings(
        max_examples=PROGRAMS or count,
        derandomize=not PROGRAMS,
        deadline=None,
        database=None,
        # The step that failed is told; making the program smaller would take minutes.
        phases=list(Phase) if SMALLEST else [Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(programs)
    def run(program: list[p.Step]) -> None:
        Run(both, noted).all_of(program)

    run()
    return noted
