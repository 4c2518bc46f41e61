"""What `esp map` prints while the map on the shards changes, byte by byte, as tests/commands/test_golden.py has it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from esp.core.local import LocalEtcd
from tests.commands.test_golden import WIDTHS, by_process, is_as_it_was, run
from tests.harness import Etcds, wipe, write_config

LINES = (
    ("map history", 1),
    ("map init --yes -c two.yaml", 0),
    ("map init --yes -c two.yaml", 0),
    ("map history -c two.yaml", 0),
    ("map apply --yes three.yaml", 0),
    ("map apply --yes three.yaml", 0),
    ("map apply --yes two.yaml", 0),
    ("map apply --yes other.yaml", 1),
    ("map finish -c two.yaml", 0),
    ("map history -c two.yaml", 0),
    ("map fence s1 --yes -c two.yaml", 0),
    ("map remove --yes -c two.yaml", 0),
)
"""In this order, and the exit code of each."""


@pytest.fixture(scope="module")
def etcds(module_etcds: Etcds) -> list[LocalEtcd]:
    return module_etcds.several(3)


def even(text: str, etcds: list[LocalEtcd]) -> str:
    """The text without what no two runs have alike: times, who it was, guards, ports."""
    text = re.sub(r"[^\n]*\r", "", text)
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:]+", "2026-11-30T12:00:00", text)
    text = re.sub(r'("by": ")[^"]+', r"\1root@host", text)
    text = re.sub(r"BY +CHANGE", "BY         CHANGE", re.sub(r"Z  \S+@\S+ +", "Z  root@host  ", text))
    for number, etcd in enumerate(etcds):
        text = re.sub(rf"\b{etcd.client_port}\b", f"{10_001 + number}", text)
    return re.sub(r"\b(\d)-[0-9a-f]{6,}", lambda guard: f"{guard[1]}-" + "a" * (len(guard[0]) - 2), text)


def test_what_changes_the_map(etcds: list[LocalEtcd], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "two.yaml", etcds[:2], ["i"])
    write_config(tmp_path / "other.yaml", etcds[:2], ["k"])
    (tmp_path / "esp.yaml").write_text((tmp_path / "two.yaml").read_text())
    shards = "".join(f"- {{name: s{at}, endpoints: ['{etcd.endpoint}']}}\n" for at, etcd in enumerate(etcds))
    (tmp_path / "three.yaml").write_text(f"map: shards\nshards:\n{shards}")
    transcript = ""
    for columns in (*WIDTHS, None):
        for etcd in etcds:
            wipe(etcd)
        transcript += f"== {columns} columns ==\n\n" if columns else "== -o json ==\n\n"
        for line, wanted in LINES:
            words = [*line.split(), *(() if columns else ("-o", "json"))]
            code, told = by_process(tmp_path, words, columns) if columns else run(" ".join(words))
            assert code == wanted, told
            transcript += f"$ esp {' '.join(words)}\n[exit code {code}]\n\n{even(told, etcds)}\n"
    is_as_it_was("map-changes.txt", transcript)
