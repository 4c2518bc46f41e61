"""What `esp move` prints of a move with fixed numbers, byte by byte, as tests/commands/test_golden.py has it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from esp.commands import move_view as view
from esp.commands.output import Format
from esp.core.move import Moved, Stage, Told
from esp.core.shared_map import Phase
from tests.commands.test_golden import is_as_it_was
from tests.core.shared_map.test_moving import moving


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
