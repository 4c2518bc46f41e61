from __future__ import annotations

import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable
from contextlib import redirect_stderr, redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import typer.main

from esp import build
from esp.cli import PARTS, app_of, needed
from esp.cli.whole import app

GROUP = typer.main.get_command(app)  # once, because making all commands takes as long as most of the tests


def run(*arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr, as typer's runner has them."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
        GROUP.main(args=list(arguments), prog_name="esp")
    return int(ended.value.code or 0), out.getvalue(), err.getvalue()


def _commands(group: Any, before: tuple[str, ...] = ()) -> dict[str, Any]:
    """All commands by their words, those of groups behind the groups themselves."""
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        found[" ".join((*before, name))] = command
        if hasattr(command, "commands"):
            found |= _commands(command, (*before, name))
    return found


COMMANDS = _commands(GROUP)
ALONE = {"help", "version", "config", "config example", "config schema", "map"}
"""The commands that need no config, and nothing else."""


def test_no_command_prints_the_help() -> None:
    code, out, err = run()
    assert (code, err) == (0, "")
    assert out == run("--help")[1] == run("help")[1]
    listed = out.partition("Commands:\n")[2].partition("\n\n")[0]
    assert [line.split()[0] for line in listed.splitlines()] == list(GROUP.commands)  # type: ignore[attr-defined]
    assert "..." not in listed, "a first sentence does not fit into 80 columns"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_examples_that_can_be_given_and_exit_codes(command: str) -> None:
    code, out, err = run("help", *command.split())
    assert (code, err) == (0, "")
    assert out == run(*command.split(), "--help")[1]
    assert max(map(len, out.splitlines())) <= 80
    assert set(re.findall(r"^  (\d+) ", out.partition("Exit codes:\n")[2], re.MULTILINE)) >= {"0", "2"}
    examples = COMMANDS[command].examples
    assert 2 <= len(examples) <= 3
    for line, meaning in examples:
        words = shlex.split(re.split("[|<>]|&&", line)[0])
        words = words[words.index("esp") + 1 :]
        assert " ".join(words).startswith(command)
        assert meaning
        here = GROUP
        while hasattr(here, "commands") and words:
            here = here.commands[words.pop(0)]
        with here.make_context(command, words):
            pass  # it can be parsed


def test_a_help_of_no_command_is_wrong_usage() -> None:
    assert run("help", "rout") == (2, "", 'esp: there is no command "rout"; esp help lists them\n')


def test_the_version() -> None:
    assert (
        run("--version")
        == run("version")
        == (
            0,
            f"esp {version('etcd-sharding-proxy')} ({build()})\n",
            "",
        )
    )
    told = json.loads(run("version", "-o", "json")[1])
    assert set(told) == {"version", "build", "python", "platform", "dependencies"}
    assert told["version"] == version("etcd-sharding-proxy")
    assert {"msgspec", "pyyaml", "typer"} <= set(told["dependencies"])


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["serve", "--local", "3", "-c", "x.yaml"], "--local makes its own config; leave out -c"),
        (["serve", "--data-dir", "x"], "--data-dir is only for --local; add --local 3 or leave it out"),
        (["serve", "-c", "none.yaml"], "none.yaml: cannot be read: no such file or directory"),
        (["check", "-c", "none.yaml"], "none.yaml: cannot be read: no such file or directory"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(
    arguments: list[str], error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == (2, "", f"esp: {error}\n")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ("route a --nope", "no such option: --nope; see esp route --help"),
        ("rout a", "no such command 'rout'; did you mean 'route'? See esp --help"),
        (
            "route a -o xml",
            "invalid value for '-o' / '--output': 'xml' is not one of 'table', 'json'; see esp route --help",
        ),
        ("route a -o", "option '-o' requires an argument; see esp route --help"),
        ("check --fix-strays", "option '--fix-strays' requires an argument; see esp check --help"),
        ("config show --nope", "no such option: --nope; see esp config show --help"),
        ("config nope", "no such command 'nope'; see esp config --help"),
        ("--color", "option '--color' requires an argument; see esp --help"),
        ("serve --local 0", "invalid value for '--local': 0 is not in the range 1<=x<=26; see esp serve --help"),
        ("check a", "got unexpected extra argument(s) (a); see esp check --help"),
        ("--color pink check", "--color is 'pink'; write auto, always or never"),
        ("check --color pink", "--color is 'pink'; write auto, always or never"),
    ],
)
def test_what_cannot_be_parsed_is_one_line_with_the_cure(arguments: str, error: str) -> None:
    assert run(*arguments.split()) == (2, "", f"esp: {error}\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_fails_with_more_than_one_line(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is wrong: an option, the config, where the output goes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ESP_CONFIG", raising=False)
    (tmp_path / "esp.yaml").write_bytes(b"shards: [\xff")
    wrong = [["--nope"], ["-c", "none.yaml"], ["-c", str(tmp_path)], ["-c", ""], ["-o", "x"]]
    for arguments in wrong if command in ALONE else [*wrong, []]:
        code, out, err = run(*command.split(), *arguments)
        # What is in the file is what `config check` is there for.
        assert (code, out, err.count("\n")) == (2, "", 1), arguments
        assert err.startswith("esp: ")


@pytest.mark.parametrize("arguments", ["version", "version -o json", "route a", "--help", "help route", "--version"])
@pytest.mark.parametrize("closed", [False, True], ids=["full", "closed"])
def test_an_output_that_cannot_be_written_is_one_line(
    arguments: str, closed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "esp.yaml").write_text("shards: [{endpoints: [h:1], ranges: [{start: '', end: ''}]}]")
    monkeypatch.chdir(tmp_path)
    descriptor = os.open(os.devnull if closed else "/dev/full", os.O_RDONLY if closed else os.O_WRONLY)
    with open(descriptor, "w", closefd=False) as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        with pytest.raises(SystemExit) as ended:
            app(arguments.split(), prog_name="esp")
    os.close(descriptor)
    reason = "standard output is closed" if closed else "no space left on device"
    assert (ended.value.code, capsys.readouterr().err) == (1, f"esp: the output cannot be written: {reason}\n")


class TestABug:
    @pytest.fixture(autouse=True)
    def broken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object) -> None:
            raise ZeroDivisionError("of \n a test")

        monkeypatch.setattr("esp.commands.version.run", fail)

    def test_is_one_line(self) -> None:
        code, out, err = run("version")
        assert (code, out, err.count("\n")) == (70, "", 1)
        assert re.match(
            r"esp: a bug in esp: ZeroDivisionError: of \\n a test in esp/cli/about.py:\d+; run it once more with -v, "
            "and please report it\n",
            err,
        )

    @pytest.mark.parametrize("arguments", [("version", "-v"), ("-v", "version")])
    def test_shows_its_traceback_when_asked(self, arguments: tuple[str, str]) -> None:
        code, _, err = run(*arguments)
        assert code == 70
        assert "Traceback (most recent call last)" in err


def test_the_options_of_one_command_line_are_not_those_of_the_next() -> None:
    assert run("-q", "version") == (0, "", "")
    assert run("version", "-q") == (0, "", "")
    assert json.loads(run("version", "-q", "-o", "json")[1])
    assert run("version")[1]


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("", PARTS.values()),
        ("--help", PARTS.values()),
        ("help route", PARTS.values()),
        ("completion zsh", PARTS.values()),
        ("rout a", PARTS.values()),  # to say which is meant
        ("route a", ["route"]),
        ("-v -q route --help", ["route"]),
        ("config show", ["config"]),
        ("import serve", ["transfer"]),
    ],
)
def test_a_command_loads_its_own_part_of_the_command_line(line: str, parts: Iterable[str]) -> None:
    assert list(needed(line.split())) == list(dict.fromkeys(parts))


def test_every_command_is_in_the_part_that_is_named() -> None:
    assert list(PARTS) == list(GROUP.commands)  # type: ignore[attr-defined]
    for name, part in PARTS.items():
        assert name in typer.main.get_command(app_of([part])).commands  # type: ignore[attr-defined]


def test_a_key_that_the_terminal_cannot_show_is_escaped(tmp_path: Path) -> None:
    (tmp_path / "esp.yaml").write_text("shards: [{endpoints: [h:1], ranges: [{start: '', end: ''}]}]")
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "esp", "route", "é"], cwd=tmp_path, env=env, capture_output=True, check=True
    )
    assert b'"\\xe9"' in done.stdout
    assert done.stderr == b""
