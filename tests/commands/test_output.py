"""Tables on a terminal and in a pipe: tests/commands/test_route.py has the form in a pipe."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from itertools import chain
from pathlib import Path

import pytest

ENDPOINT = "http://127.0.0.1:1"
CONFIG = f"shards: [{{name: main, endpoints: [{ENDPOINT}], ranges: [{{start: '', end: ''}}]}}]\n"
SGR = re.compile(r"\x1b\[[\d;]*m")


def on_a_terminal(folder: Path, *arguments: str, columns: int = 120, config: str = CONFIG, **env: str) -> str:
    """What `esp` writes, on stdout and stderr, on a terminal of so many columns."""
    (folder / "esp.yaml").write_text(config)
    own = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES")
    environment = {name: value for name, value in os.environ.items() if name not in own} | {"TERM": "xterm"} | env
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    try:
        subprocess.run(
            [sys.executable, "-m", "esp", *arguments],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
            check=False,
        )
        return os.read(ours, 65536).decode().replace("\r\n", "\n")
    finally:
        os.close(ours)
        os.close(theirs)


def plain(text: str) -> list[list[str]]:
    return [line.split() for line in SGR.sub("", text).splitlines()]


@pytest.fixture
def piped(tmp_path: Path) -> str:
    (tmp_path / "esp.yaml").write_text(CONFIG)
    command = [sys.executable, "-m", "esp", "route", "[b]a"]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout


def test_a_terminal_gets_the_same_words_with_headers_that_stand_out(tmp_path: Path, piped: str) -> None:
    shown = on_a_terminal(tmp_path, "route", "[b]a")
    assert plain(shown) == plain(piped)
    assert SGR.search(shown)
    assert not SGR.search(piped)


def test_a_row_with_a_problem_is_red_unless_colour_is_not_wanted(tmp_path: Path) -> None:
    red = re.compile(r"\x1b\[31m")
    coloured = on_a_terminal(tmp_path, "check")
    assert red.search(next(line for line in coloured.splitlines() if ENDPOINT in line))
    assert not red.search(on_a_terminal(tmp_path, "check", NO_COLOR="1"))


def test_a_dumb_terminal_gets_the_same_as_a_pipe(tmp_path: Path, piped: str) -> None:
    assert on_a_terminal(tmp_path, "route", "[b]a", TERM="dumb") == piped


COMMANDS = ["check", "lease-sync", "route a", "--help", "serve -h", "chek", "check -o xml", "serve --listen nonsense"]
UNWANTED = [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {"TERM": ""}]


@pytest.mark.parametrize(
    ("command", "env"), [*((each, UNWANTED[0]) for each in COMMANDS), ("check", UNWANTED[1]), ("chek", UNWANTED[2])]
)
def test_no_command_sends_escapes_where_they_are_not_wanted(command: str, env: dict[str, str], tmp_path: Path) -> None:
    shown = on_a_terminal(tmp_path, *command.split(), **env)
    assert shown
    assert "\x1b" not in shown


LONG = "http://etcd-0.etcd-headless.some-namespace.svc.cluster.local.invalid:2379"
LONG_CONFIG = CONFIG.replace("main", "a-shard-of-a-long-name").replace("[http", f"[{LONG}, http")


@pytest.mark.parametrize("columns", [80, 20, 1, 0])
def test_no_cell_is_cut_or_folded_on_a_narrow_terminal(columns: int, tmp_path: Path) -> None:
    shown = on_a_terminal(tmp_path, "check", columns=columns, config=LONG_CONFIG)
    table = SGR.sub("", shown).rpartition("\n\n")[2].splitlines()[:-1]  # behind it: not healthy
    cells = [[cell for cell in re.split(" {2,}", line) if cell] for line in table]
    row_of_each = len(table) // 3
    headers, first, second = (
        list(chain(*cells[start : start + row_of_each])) for start in range(0, len(table), row_of_each)
    )
    assert headers == [
        "SHARD", "ENDPOINT", "LEADER", "VERSION", "DB SIZE", "REVISION", "LATENCY"
    ]  # fmt: skip
    assert first == ["a-shard-of-a-long-name", LONG, *"????", "down"]
    assert second == ["a-shard-of-a-long-name", ENDPOINT, *"????", "down"]
    for line, of_line in zip(table, cells, strict=True):
        assert len(line) <= (columns or 80) or len(of_line) == 1


GOLDEN_CONFIG = """\
shards:
- name: events
  endpoints: [http://etcd-events-0.etcd.svc:2379, http://etcd-events-1.etcd.svc:2379]
  ranges: [{kubernetes: events}]
- name: main
  endpoints: [http://etcd-main-0.etcd.svc:2379]
  ranges: [{start: "", end: ""}]
"""
AT_80 = """\
SHARD   KEY                  RANGE_END
    ENDPOINTS
main    "/registry/a"        "/registry/events"
    http://etcd-main-0.etcd.svc:2379
events  "/registry/events"   "/registry/events0"
    http://etcd-events-0.etcd.svc:2379,http://etcd-events-1.etcd.svc:2379
main    "/registry/events0"  "/registry/f"
    http://etcd-main-0.etcd.svc:2379
"""
AT_120 = """\
SHARD   KEY                  RANGE_END            ENDPOINTS
main    "/registry/a"        "/registry/events"   http://etcd-main-0.etcd.svc:2379
events  "/registry/events"   "/registry/events0"  http://etcd-events-0.etcd.svc:2379,http://etcd-events-1.etcd.svc:2379
main    "/registry/events0"  "/registry/f"        http://etcd-main-0.etcd.svc:2379
"""
EXPLAINED = """
A Txn over this range can only read: another shard begins at "/registry/events".

Why these shards:
  esp.yaml:7: shard main has ["", end)
  esp.yaml:4: shard events has ["/registry/events", "/registry/events0")
      narrower than ["", end) of shard main (line 7)
  esp.yaml:7: shard main has ["", end)

What is sent to whom:
CALL                 SHARDS        HOW
Range                main, events  in 3 parts, each at its own moment (range_reads)
"""


@pytest.mark.parametrize(("columns", "table"), [(80, AT_80), (120, AT_120)])
def test_the_whole_of_an_explanation_at_a_terminal(columns: int, table: str, tmp_path: Path) -> None:
    command = ("route", "/registry/a", "/registry/f", "--explain")
    shown = on_a_terminal(tmp_path, *command, columns=columns, config=GOLDEN_CONFIG, NO_COLOR="1")
    wide = "Range                main, events  in 3 parts, each at its own moment (range_reads)\n"
    folded = "Range                main, events\n    in 3 parts, each at its own moment (range_reads)\n"
    assert shown.startswith(table + (EXPLAINED if columns == 120 else EXPLAINED.replace(wide, folded)))


def test_a_ragged_table_keeps_the_rows_in_one_line_that_fit(tmp_path: Path) -> None:
    shown = on_a_terminal(tmp_path, "config", "show", columns=80, config=GOLDEN_CONFIG, NO_COLOR="1").splitlines()
    assert shown[0] == "FIELD                            FROM        VALUE"
    assert shown[1] == "listen                           default     [http://127.0.0.1:2379]"
    place = shown.index("shards.events.endpoints          esp.yaml:3")
    assert shown[place + 1] == "    [http://etcd-events-0.etcd.svc:2379, http://etcd-events-1.etcd.svc:2379]"


def test_colours_are_as_the_option_says(tmp_path: Path) -> None:
    assert not SGR.search(on_a_terminal(tmp_path, "route", "a", "--color", "never"))
    command = [sys.executable, "-m", "esp", "--color", "always", "route", "a"]
    assert SGR.search(subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout)


def test_ctrl_c_ends_a_command_that_waits_for_stdin(tmp_path: Path) -> None:
    (tmp_path / "esp.yaml").write_text(CONFIG)
    command = [sys.executable, "-m", "esp", "route", "-"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"a\n" * 10_000)  # more than is buffered, so that some of it is written
        process.stdin.flush()
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert (process.returncode, err) == (-signal.SIGINT, b"")
