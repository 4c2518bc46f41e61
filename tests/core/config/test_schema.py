"""The JSON schema of a config, beside the reader of the file; and the example, with every field in it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from esp.core.config import EXAMPLE, ConfigError, json_schema, parse
from esp.core.config.file import FileShape

ROOT = Path(__file__).parents[3]
SHARDS = 'shards: [{name: a, endpoints: [http://h:1], ranges: [{start: "", end: ""}]}]\n'


class _Reader(yaml.SafeLoader):
    """YAML as editors read it: on, off, yes and no are words."""


_Reader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in ("tag:yaml.org,2002:bool",)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Reader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("true|false"), list("tf"))


@pytest.fixture(scope="module")
def validator() -> Any:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def _configs() -> list[tuple[str, str]]:
    """Every whole config of the documents and of deploy/."""
    found = [("example", EXAMPLE.read_text())]
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "deploy/kubernetes/configmap.yaml"]:
        blocks = re.findall(r"```yaml\n(.*?)```", path.read_text(), re.DOTALL)
        if path.suffix == ".yaml":
            blocks = [yaml.safe_load(path.read_text())["data"]["esp.yaml"]]
        found += [
            (f"{path.name}-{number}", block) for number, block in enumerate(blocks) if "\nshards:" in f"\n{block}"
        ]
    return found


@pytest.mark.parametrize(("name", "text"), _configs(), ids=[name for name, _ in _configs()])
def test_it_accepts_every_config_of_the_documents(name: str, text: str, validator: Any) -> None:
    assert [error.message for error in validator.iter_errors(yaml.load(text, _Reader))] == []


@pytest.mark.parametrize(
    "line",
    [
        "listen: []",
        "listn: []",
        "across_shards: maybe",
        "across_shards: {refuse: []}",
        "compaction: {revision_of: a}",
        "leases: tolerent",
        "drain_seconds: 86401",
        "drain_seconds: soon",
        "workers: 0",
        "workers: 65",
        "workers: many",
        "limits: {max_tokens: 0}",
        "limits: {max_tokens: 1.5}",
        "limits: {max_tokenz: 1}",
        "limits: {keepalive_time: 9}",
        "log: {level: loud}",
        "log: {access: {one_of: 0}}",
        "log: {slow_seconds: 0}",
        "traces: {sample: 2, endpoint: http://h:1/}",
        "traces: {}",
        "tls: {certt: x}",
        "auth: {user: x}",
        "watch_config: 1",
        "shards: []",
        "shards: [{endpoints: [h:1]}]",
        "shards: [{endpoints: [], ranges: [{prefix: ''}]}]",
        "shards: [{endpoints: [h:1], ranges: [{prefix: 1}]}]",
        "shards: [{endpoints: [h:1], ranges: [{start: ''}]}]",
        "shards: [{endpoints: [h:1], ranges: [{start: '', ende: ''}]}]",
        "shards: [{name: 'a b', endpoints: [h:1], ranges: [{prefix: ''}]}]",
    ],
)
def test_it_refuses_what_esp_refuses(line: str, validator: Any) -> None:
    text = line if line.startswith("shards") else f"{line}\n{SHARDS}"
    with pytest.raises(ConfigError):
        parse(text, None)
    assert not validator.is_valid(yaml.load(text, _Reader))


@pytest.mark.parametrize(
    "line",
    [
        "listen: [unix:/run/x, 'http://[::1]:0']",
        "across_shards: {refuse: [/a/, {start: a, end: b}, {kubernetes: pods}]}",
        "compaction: {revisions_of: hex:00ff}",
        "workers: auto",
        "workers: '4'",
        "workers: 64",
        "control: off",
        "log: {access: off, slow_seconds: off}",
        "log: {access: all}",
        "log: {access: {one_of: 5}, slow_seconds: 0.5}",
        "namespace: team/",
        "auth:",
        "traces:",
        "whole: [/a/, {prefix: b}]",
        "shards: [{start: ignored, end: i, address: h:1}, {startBytes: [105], address: h:2}]",
    ],
)
def test_it_accepts_what_esp_accepts(line: str, validator: Any) -> None:
    text = line if line.startswith("shards") else f"{line}\n{SHARDS}"
    parse(text, None)
    assert [error.message for error in validator.iter_errors(yaml.load(text, _Reader))] == []


def test_the_example_passes_and_has_every_field() -> None:
    text = EXAMPLE.read_text()
    parse(text, None)
    named = set(re.findall(r"^(?:# )?(\w+):", text, re.MULTILINE))
    assert set(FileShape.names) <= named


def test_what_is_commented_out_in_the_example_has_the_right_form(validator: Any) -> None:
    """Every field, one after the other, taken for a part of the config."""
    text = EXAMPLE.read_text()
    for field in re.findall(r"^# (\w+: .*)$", text, re.MULTILINE):
        if field.partition(":")[0] in FileShape.names and not field.endswith("."):
            assert validator.is_valid(yaml.load(f"{field}\n{text}", _Reader)), field
