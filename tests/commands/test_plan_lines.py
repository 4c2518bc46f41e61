"""The lines of `esp move` that `esp plan` prints, as a shell and the command line of esp take them."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from esp.cli.whole import app
from esp.commands import move as command
from esp.commands.map_deciding import Confirm
from esp.commands.plan_config import move_line
from esp.core.keys import KeyRange, prefix_end
from esp.core.plan import Measure, Move, Weights
from tests.commands.test_golden import planned

RANGES = [
    KeyRange(b"a", b"i"),
    KeyRange(b"", b"i"),
    KeyRange(b"r", None),
    KeyRange(b"", None),
    KeyRange(b"app/", b"app0"),
    KeyRange(b"a b'\"$#\\", b"c # d"),
    KeyRange("ä/".encode(), prefix_end("ä/".encode())),
    KeyRange(b"--to", b"-z"),
    KeyRange(b"-x/", b"-x0"),
    KeyRange(b"\xc3\x28/", b"\xc3\x280"),
    KeyRange(b"a\n", b"b"),
    KeyRange(b"", b"\xff"),
    KeyRange(b"\xff", None),
    KeyRange(b"a\xff", None),
    KeyRange(b"a\xff\xff", b"b"),
]


def taken(line: str, monkeypatch: pytest.MonkeyPatch) -> command.Options:
    """What `esp move` is asked for by a line."""
    options = []

    def run(config: Path | None, given: command.Options, confirm: Confirm) -> None:
        options.append(given)

    monkeypatch.setattr(command, "run", run)
    program, *words = shlex.split(line, comments=True)
    result = CliRunner().invoke(app, words)
    assert (program, result.exit_code) == ("esp", 0), result.output
    [found] = options
    return found


def of_ranges() -> list[Move]:
    return [Move(one, "s0", "s1", Weights(1, 1, 1), None) for one in RANGES]


@pytest.mark.parametrize(
    "move",
    [*of_ranges(), *planned(Measure.KEYS).proposal.moves, *planned(Measure.WRITES).proposal.moves],
    ids=move_line,
)
def test_each_line_moves_what_was_proposed(move: Move, monkeypatch: pytest.MonkeyPatch) -> None:
    options = taken(f"{move_line(move)}  # 1 key", monkeypatch)
    assert (options.keys, options.to) == (move.range, move.target)
    assert options.experimental
