"""What `esp move` prints, byte by byte, as tests/commands/test_golden.py has it: of fixed numbers and of real moves."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from esp.commands import move_view as view
from esp.commands.output import Format
from esp.core.move import Moved, Stage, Told
from esp.core.pb import rpc_pb2
from esp.core.shared_map import Phase
from tests.commands.test_golden import WIDTHS, by_pipe, by_process, is_as_it_was, run
from tests.core.shared_map.test_moving import moving
from tests.harness import Etcds, connect, wipe, write_config
from tests.stubs import rpc_pb2_grpc

LINES = (
    ("move --prefix b/ --to s1", 2),
    ("move --prefix b/ --to s1 --experimental", 2),
    ("move --prefix b/ --to s1 --experimental --yes --max-pause 20", 0),
    ("move b/ b0 --to s0 --experimental --yes --max-pause 20 --keep", 0),
    ("move b/ b0 --to s1 --experimental --yes", 1),
    ("move --resume", 0),
    ("move --resume", 1),
    ("move --abort", 1),
)
"""In this order, and the exit code of each."""


def test_what_moves_keys(capsys: pytest.CaptureFixture[str]) -> None:
    change, aborted = moving(Phase.COPY), moving(Phase.ABORT)
    done = Moved(change.after, 120, 340, 1500, 600_000, 0.0421)
    for output in Format:
        view.write_plan(change, 1234, output)
        with view.progress(output) as show:
            show(Told(Stage.COPYING, 700, 1234, 280_000, 12))
            show.step("purging", 200, 1234)
        view.write_moved(change, done, output)
        view.write_moved(change, replace(done, pause=None), output)
        view.write_purged("a", 1234, output)
        view.write_abort(aborted, output)
        view.write_result(aborted.result, False, output)
        view.write_result(change.after, True, output)
    is_as_it_was("move.txt", capsys.readouterr().out)


def even(text: str) -> str:
    """The text without what no two runs have alike: times, ids, revisions, and how often progress is told."""
    text = re.sub(r"waited for [\d.]+ s", "waited for 0.042 s", re.sub(r"[^\n]*\r", "", text))
    stages: list[str] = []
    lines = []
    for line in text.splitlines():
        if line.startswith("{"):
            told = json.loads(line)
            if "stage" in told:
                if told["stage"] in stages:
                    continue
                stages.append(told["stage"])
                told |= {"done": 0, "total": told["total"] and 1, "lag": 0}
            told |= {name: fixed for name, fixed in (("cut", 120), ("opened", 340), ("bytes", 1000)) if name in told}
            told |= {"move": "0123456789ab"} if "move" in told else {}
            told |= {"pause": 0.0421} if told.get("pause") is not None else {}
            line = json.dumps(told)
        lines.append(line)
    return "\n".join(lines) + "\n"


def test_a_real_move(module_etcds: Etcds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    etcds = module_etcds.several(2)
    transcript = ""
    for columns in (*WIDTHS, None):
        for etcd in etcds:
            wipe(etcd)
        with connect(etcds[0]) as channel:
            kv = rpc_pb2_grpc.KVStub(channel)
            for number in range(3):
                kv.Put(rpc_pb2.PutRequest(key=b"b/%d" % number, value=b"%d" % number))
        write_config(tmp_path / "esp.yaml", etcds, ["i"])
        assert run("map init --yes")[0] == 0
        write_config(tmp_path / "esp.yaml", etcds, ["i"], "map: shards")
        transcript += f"== {columns} columns ==\n\n" if columns else "== -o json ==\n\n"
        for line, wanted in LINES:
            given = line if columns else f"{line} -o json"
            code, told = by_process(tmp_path, given.split(), columns) if columns else by_pipe(tmp_path, given)
            assert code == wanted, told
            transcript += f"$ esp {given}\n[exit code {code}]\n\n{even(told)}\n"
    is_as_it_was("move-real.txt", transcript)
