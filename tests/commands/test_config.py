from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from esp.cli.whole import app
from esp.core.config import EXAMPLE
from esp.core.config.file import FileShape
from esp.core.wire.limits import Limits

CONFIG = """\
shards:
- name: events
  endpoints: [http://127.0.0.1:12379]
  ranges: [{kubernetes: events}]
- endpoints: [http://127.0.0.1:22379, 127.0.0.1:22389]
  ranges: [{start: "", end: ""}]
limits:
  max_tokens: 5
log: {level: debug}
whole: [hex:00ff, "* x"]
"""


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("ESP_CONFIG", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "esp.yaml"
    path.write_text(CONFIG)
    return path


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["config", *arguments])
    return result.exit_code, result.stdout, result.stderr


class TestCheck:
    def test_a_good_file_is_exit_0(self) -> None:
        expected = "esp.yaml is good: 2 shards with 3 endpoints, map "
        code, out, err = run("check")
        assert (code, err) == (0, "")
        assert out.startswith(expected)
        assert run("check", "esp.yaml") == run("check", "-c", "esp.yaml") == (0, out, "")

    def test_all_faults_are_told_by_line_and_exit_1(self, config: Path) -> None:
        config.write_text(CONFIG.replace("max_tokens: 5", "max_tokens: many").replace("level: debug", "level: loud"))
        assert run("check") == (
            1,
            'esp.yaml:8: limits: "max_tokens" must be a whole number, not "many"\n'
            'esp.yaml:9: log: "level" is "loud"; write debug, info, warning or error\n',
            "esp: esp.yaml has 2 faults\n",
        )

    def test_as_json(self, config: Path) -> None:
        told = json.loads(run("check", "-o", "json")[1])
        assert (told["config"], told["good"], told["faults"], told["notes"]) == ("esp.yaml", True, [], [])
        config.write_text("nonsense: 1\n")
        code, out, _ = run("check", "-o", "json")
        told = json.loads(out)
        assert (code, told["good"], told["map"]) == (1, False, None)
        assert [fault["line"] for fault in told["faults"]] == [1, 1]

    def test_a_file_that_is_not_there_is_exit_2(self) -> None:
        assert run("check", "x.yaml") == (2, "", "esp: x.yaml: cannot be read: no such file or directory\n")
        assert run("check", "x", "-c", "y") == (
            2,
            "",
            "esp: the file is given twice, as FILE and with -c; leave one out\n",
        )

    def test_faults_beside_a_file_that_can_be_read_are_told(self, config: Path) -> None:
        config.write_text(CONFIG.replace("12379", "2379"))
        code, out, _ = run("check")
        assert code == 1
        assert "endpoint http://127.0.0.1:2379 is where esp itself listens" in out

    def test_what_serve_warns_of_is_a_note(self, config: Path) -> None:
        config.write_text(CONFIG.replace("{kubernetes: events}", "{prefix: /registry/events/}"))
        code, out, _ = run("check")
        assert code == 0
        assert out.startswith("esp.yaml: note: for Kubernetes: ")


def fields(*arguments: str) -> dict[str, tuple[str, dict[str, object]]]:
    told = json.loads(run("show", "-o", "json", *arguments)[1])
    return {field["name"]: (field["value"], field["from"]) for field in told["fields"]}


class TestShow:
    def test_has_every_field_of_a_config(self) -> None:
        names = {name.partition(".")[0] for name in fields()}
        assert names == set(FileShape.names)
        assert {f"limits.{name}" for name in Limits.__dataclass_fields__} <= fields().keys()

    def test_says_where_each_value_comes_from(self) -> None:
        told = fields("--listen", "http://[::1]:0", "--workers", "3", "--log-format", "json")
        assert told["shards.events.ranges"] == (
            '["/registry/events", "/registry/events0")',
            {"kind": "file", "line": 4},
        )
        assert told["shards.shard-1.endpoints"] == (
            "[http://127.0.0.1:22379, http://127.0.0.1:22389]",
            {"kind": "file", "line": 5},
        )
        assert told["limits.max_tokens"] == ("5", {"kind": "file", "line": 8})
        assert told["limits.sample_seconds"] == ("30", {"kind": "default"})
        assert told["log.level"] == ("debug", {"kind": "file", "line": 9})
        assert told["log.format"] == ("json", {"kind": "flag", "flag": "--log-format"})
        assert told["listen"] == ("[http://[::1]:0]", {"kind": "flag", "flag": "--listen"})
        assert told["workers"] == ("3", {"kind": "flag", "flag": "--workers"})
        assert told["whole"] == ('[hex:00ff, "* x"]', {"kind": "file", "line": 10})

    def test_names_the_environment_that_decides(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
        value, source = fields()["control"]
        assert value.startswith("auto: ")
        assert f"{tmp_path}/esp/" in value
        assert source == {"kind": "default", "environment": "XDG_RUNTIME_DIR"}

    def test_of_a_table_ends_with_the_file_and_how_it_was_found(self, monkeypatch: pytest.MonkeyPatch) -> None:
        code, out, _ = run("show")
        assert code == 0
        assert out.splitlines()[0].split() == ["FIELD", "FROM", "VALUE"]
        assert "\nConfig esp.yaml, found here; map " in out
        monkeypatch.setenv("ESP_CONFIG", "esp.yaml")
        assert "\nConfig esp.yaml, named by ESP_CONFIG; map " in run("show")[1]
        assert "\nConfig ./esp.yaml, given on the command line; map " in run("show", "./esp.yaml")[1].replace(
            "Config esp.yaml", "Config ./esp.yaml"
        )

    def test_a_wrong_config_or_flag_is_exit_2(self, config: Path) -> None:
        assert run("show", "--listen", "x")[0] == 2
        assert run("show", "--workers", "0") == (2, "", 'esp: "workers" is "0"; write a number from 1 to 64, or auto\n')
        config.write_text("x: 1\n")
        code, out, err = run("show")
        assert (code, out, err.count("\n")) == (2, "", 1)


def test_the_example_is_one_that_passes(config: Path) -> None:
    code, out, _ = run("example")
    assert (code, out) == (0, EXAMPLE.read_text())
    config.write_text(out)
    code, out, _ = run("check", "-o", "json")
    assert (code, json.loads(out)["notes"]) == (0, [])


def test_the_schema_is_json() -> None:
    code, out, _ = run("schema")
    assert code == 0
    assert json.loads(out)["properties"].keys() == set(FileShape.names)


def test_the_group_alone_prints_its_help() -> None:
    assert run() == run("--help")
    assert os.linesep in run()[1]
