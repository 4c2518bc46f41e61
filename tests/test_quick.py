"""The command lines that are answered without typer: they are answered as typer would."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from esp.cli.whole import app
from esp.quick import answers, route_options

CONFIG = """\
shards:
- {name: a, endpoints: [h:1], ranges: [{start: "", end: m}]}
- {endpoints: [h:2], ranges: [{start: m, end: ""}]}
"""


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ESP_CONFIG", raising=False)
    (tmp_path / "esp.yaml").write_text(CONFIG)
    (tmp_path / "wrong.yaml").write_text("x: 1")


def quick(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = 0
    try:
        assert answers(arguments)
    except SystemExit as ended:
        code = int(str(ended.code))
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize(
    "line",
    [
        "version",
        "--version",
        "route a",
        "route a z",
        "route a --prefix",
        "route --from-key l -o json",
        "route --each a b m",
        "route a b c",
        "route -c none.yaml a",
        "route -c wrong.yaml a",
        "route a z --prefix",
    ],
)
def test_they_are_answered_as_by_typer(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = CliRunner().invoke(app, line.split())
    assert quick(line.split(), capsys) == (result.exit_code, result.stdout, result.stderr)


WORDS = ["a", "", "-", "--prefix", "--from-key", "--each", "-o", "json", "table", "xml", "-c", "esp.yaml", "--config"]
OTHERS = ["--nope", "-ojson", "--output=json", "--hex", "--", "-v", "-h", "--explain", "--output"]


@given(st.lists(st.sampled_from(WORDS + OTHERS), max_size=6))
def test_what_is_taken_means_the_same_to_typer(words: list[str]) -> None:
    """Every command line that is taken can be parsed, and has the same keys and options."""
    import typer.main

    options = route_options(words)
    if options is None:
        return
    route = typer.main.get_command(app).commands["route"]  # type: ignore[attr-defined]
    with route.make_context("route", list(words)) as context:
        given_ = context.params
    assert list(given_["keys"]) == options["keys"]
    for name in ("prefix", "from_key", "each"):
        assert bool(given_[name]) == bool(options.get(name))
    assert given_["output"] == options.get("output", "table")
    assert str(given_["config"] or "") == options.get("config", "")


@pytest.mark.parametrize("line", ["", "-h", "--help", "help"])
def test_the_help_is_that_of_typer(
    line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for columns in ("80", "200", ""):
        monkeypatch.setenv("COLUMNS", columns)
        with pytest.raises(SystemExit):
            app(line.split(), prog_name="esp")
        shown = capsys.readouterr().out
        assert quick(line.split(), capsys) == (0, shown, "")
    monkeypatch.setenv("COLUMNS", "60")
    assert not answers(line.split())


@pytest.mark.parametrize("line", ["route", "route --help", "route a -v", "check", "version -o json"])
def test_anything_else_is_left_to_typer(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert not answers(line.split())
    assert capsys.readouterr() == ("", "")


def test_live_values_are_few_words_or_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert quick(["complete", "shards", ""], capsys) == (0, "a\nshard-1\n", "")
    assert quick(["complete", "shards", "s"], capsys) == (0, "shard-1\n", "")
    assert quick(["complete", "keys", ""], capsys) == (0, "m\n", "")
    assert quick(["complete", "keys", "", "wrong.yaml"], capsys) == (0, "", "")
    assert quick(["complete", "keys", "", "none.yaml"], capsys) == (0, "", "")


NEITHER = {"typer", "esp.cli", "rich", "asyncio", "ssl", "logging", "google.protobuf", "uvloop", "msgspec", "hashlib"}
"""What takes longest to load of all that esp has."""


def test_what_serves_loads_nothing_of_the_other_commands() -> None:
    """Nor what only some configs need."""
    script = "import sys, esp.cli.serve, esp.commands.serve, esp.commands.logged, esp.core.proxy; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    nor = {"rich", "grpc", "opentelemetry", "cryptography", "prometheus_client", "google.protobuf.json_format"}
    nor |= {f"esp.core.{name}" for name in ("health", "export", "load", "lease_survey", "config.schema")}
    nor |= {f"esp.cli.{name}" for name in ("route", "check", "transfer", "bench", "whole")}
    assert set(out.split()) & nor == set()


@pytest.mark.parametrize(
    ("arguments", "loads", "nor"),
    [
        (["--help"], "esp.quick", {"yaml", "dataclasses", "esp.core.config"}),
        (["version"], "esp.quick", {"yaml", "dataclasses", "esp.core.config"}),
        (["route", "a"], "esp.commands.route", {"esp.core.health", "esp.commands.rendered", "esp.core.config.user"}),
        (["complete", "shards", ""], "esp.core.config", {"esp.commands.route"}),
    ],
)
def test_they_load_neither_typer_nor_what_makes_connections(arguments: list[str], loads: str, nor: set[str]) -> None:
    script = f"import sys; from esp.quick import answers; answers({arguments}); print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    loaded = set(out.splitlines()[-1].split())
    assert loads in loaded
    assert loaded & (NEITHER | nor) == set()


@pytest.mark.parametrize(
    ("line", "own", "others"),
    [("--help", 10, 45), ("version", 10, 45), ("route a", 45, 95), ("complete keys a", 45, 95)],
)
def test_they_load_few_modules(line: str, own: int, others: int) -> None:
    """Each costs 0.2 to 1 ms; bench/startup.py has what that comes to."""
    script = (
        "import sys; before = set(sys.modules); from esp.quick import answers; "
        f"answers({line.split()}); print(*set(sys.modules) - before)"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    loaded = out.splitlines()[-1].split()
    mine = [name for name in loaded if name.split(".")[0] == "esp"]
    assert len(mine) <= own, sorted(mine)
    assert len(loaded) - len(mine) <= others, sorted(set(loaded) - set(mine))
