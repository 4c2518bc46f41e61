from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from esp.cli import app

CONFIG = """\
shards:
- name: events
  endpoints: [http://127.0.0.1:12379]
  ranges: [{prefix: /registry/events/}]
- name: main
  endpoints: [http://127.0.0.1:22379, 127.0.0.1:22389]
  ranges: [{start: "", end: ""}]
"""
MAIN = "http://127.0.0.1:22379,http://127.0.0.1:22389"
EVENTS = "http://127.0.0.1:12379"


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ESP_CONFIG", raising=False)
    path = tmp_path / "esp.yaml"
    path.write_text(CONFIG)
    return path


def route(*arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    result = CliRunner().invoke(app, ["route", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_one_key() -> None:
    expected = f"""\
SHARD   KEY                    RANGE_END  ENDPOINTS
events  "/registry/events/x1"  (one key)  {EVENTS}

A Txn over this key is possible: shard "events" owns all of it.
"""
    assert route("/registry/events/x1") == (0, expected, "")


class TestNamespace:
    @pytest.fixture(autouse=True)
    def in_namespace(self, config: Path) -> None:
        config.write_text(CONFIG + "namespace: /registry/\n")

    def test_a_clients_key_is_shown_as_it_is_in_the_shards(self) -> None:
        expected = f"""\
SHARD   KEY                    RANGE_END  ENDPOINTS
events  "/registry/events/x1"  (one key)  {EVENTS}

These are the keys in the shards, with the prefix of the namespace: "/registry/".
A Txn over this key is possible: shard "events" owns all of it.
"""
        assert route("events/x1") == (0, expected, "")

    def test_all_keys_end_with_the_namespace(self) -> None:
        code, out, _ = route("", "--from-key", "-o", "json")
        told = json.loads(out)
        assert code == 0
        assert (told["key"]["text"], told["range_end"]["text"]) == ("\0", "\0")
        assert told["namespace"]["text"] == "/registry/"
        assert [(part["name"], part["key"]["text"], part["range_end"]["text"]) for part in told["shards"]] == [
            ("main", "/registry/\0", "/registry/events/"),
            ("events", "/registry/events/", "/registry/events0"),
            ("main", "/registry/events0", "/registry0"),
        ]


def test_a_prefix_inside_one_shard() -> None:
    expected = f"""\
SHARD  KEY                RANGE_END          ENDPOINTS
main   "/registry/pods/"  "/registry/pods0"  {MAIN}

A Txn over this range is possible: shard "main" owns all of it.
"""
    assert route("/registry/pods/", "--prefix") == (0, expected, "")


def test_a_prefix_over_boundaries_is_clipped_at_each() -> None:
    expected = f"""\
SHARD   KEY                  RANGE_END            ENDPOINTS
main    "/registry/"         "/registry/events/"  {MAIN}
events  "/registry/events/"  "/registry/events0"  {EVENTS}
main    "/registry/events0"  "/registry0"         {MAIN}

A Txn over this range can only read: another shard begins at "/registry/events/".
"""
    assert route("/registry/", "--prefix") == (0, expected, "")


@pytest.mark.parametrize("option", ["--prefix", "--from-key"])
def test_the_empty_key_with_prefix_or_from_key_is_all_keys(option: str) -> None:
    expected = f"""\
SHARD   KEY                  RANGE_END            ENDPOINTS
main    "\\x00"               "/registry/events/"  {MAIN}
events  "/registry/events/"  "/registry/events0"  {EVENTS}
main    "/registry/events0"  "\\x00" (open end)    {MAIN}

A Txn over this range can only read: another shard begins at "/registry/events/".
"""
    assert route("", option) == (0, expected, "")


def test_from_a_key_on() -> None:
    expected = f"""\
SHARD  KEY  RANGE_END          ENDPOINTS
main   "x"  "\\x00" (open end)  {MAIN}

A Txn over this range is possible: shard "main" owns all of it.
"""
    assert route("x", "--from-key") == (0, expected, "")


def test_an_inverted_range_is_empty_and_has_one_shard_to_answer_it() -> None:
    expected = f"""\
SHARD   KEY                   RANGE_END  ENDPOINTS
events  "/registry/events/b"  "/a"       {EVENTS}

The range holds no key: its end is not above its start. Shard "events" answers it.
A Txn over this range is possible: shard "events" owns all of it.
"""
    assert route("/registry/events/b", "--range-end", "/a") == (0, expected, "")


def test_columns_line_up_under_wide_characters() -> None:
    _, out, _ = route("鍵")
    assert out.startswith('SHARD  KEY   RANGE_END  ENDPOINTS\nmain   "鍵"  (one key)  http')


def test_keys_in_hex_and_base64() -> None:
    keys = (b"/registry/events/", b"/registry/events/\xff")
    as_hex = route(keys[0].hex(), "--range-end", keys[1].hex(), "--hex")
    first, second = (base64.b64encode(key).decode() for key in keys)
    assert route(first, "--range-end", second, "--base64") == as_hex
    expected = f"""\
SHARD   KEY                  RANGE_END                ENDPOINTS
events  "/registry/events/"  "/registry/events/\\xff"  {EVENTS}

A Txn over this range is possible: shard "events" owns all of it.
"""
    assert as_hex == (0, expected, "")


def test_a_range_end_of_the_zero_byte_is_open() -> None:
    assert route("78", "--range-end", "00", "--hex") == route("x", "--from-key")


def test_json_of_a_range_over_boundaries() -> None:
    def key(text: str) -> dict[str, str]:
        return {"text": text, "base64": base64.b64encode(text.encode()).decode()}

    code, out, err = route("/registry/", "--range-end", "/registry/events/m", "-o", "json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {
        "key": key("/registry/"),
        "range_end": key("/registry/events/m"),
        "namespace": None,
        "empty": False,
        "shards": [
            {
                "name": "main",
                "key": key("/registry/"),
                "range_end": key("/registry/events/"),
                "endpoints": ["http://127.0.0.1:22379", "http://127.0.0.1:22389"],
            },
            {
                "name": "events",
                "key": key("/registry/events/"),
                "range_end": key("/registry/events/m"),
                "endpoints": ["http://127.0.0.1:12379"],
            },
        ],
        "txn": {"possible": False, "boundary": key("/registry/events/")},
    }


def test_json_of_a_key_that_is_not_text() -> None:
    code, out, _ = route("fffe", "--hex", "--output", "json")
    assert code == 0
    assert out == (
        """\
{
  "key": {
    "base64": "//4="
  },
  "range_end": {
    "text": "",
    "base64": ""
  },
  "namespace": null,
  "empty": false,
  "shards": [
    {
      "name": "main",
      "key": {
        "base64": "//4="
      },
      "range_end": {
        "text": "",
        "base64": ""
      },
      "endpoints": [
        "http://127.0.0.1:22379",
        "http://127.0.0.1:22389"
      ]
    }
  ],
  "txn": {
    "possible": true,
    "boundary": null
  }
}
"""
    )


def test_json_of_an_inverted_range() -> None:
    document = json.loads(route("b", "--range-end", "a", "-o", "json")[1])
    assert document["empty"] is True
    assert [(shard["name"], shard["key"]["text"], shard["range_end"]["text"]) for shard in document["shards"]] == [
        ("main", "b", "a")
    ]
    assert document["txn"] == {"possible": True, "boundary": None}


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([""], "etcdserver: key is not provided; for all keys add --from-key"),
        (["", "--range-end", "z"], "etcdserver: key is not provided; for all keys add --from-key"),
        (["6g", "--hex"], 'KEY is "6g", which is not hex'),
        (["61", "--hex", "--range-end", "6"], '--range-end is "6", which is not hex'),
        (["é", "--hex"], 'KEY is "é", which is not hex'),
        (["YQ", "--base64"], 'KEY is "YQ", which is not base64'),
        (["a", "--hex", "--base64"], "--hex and --base64 exclude each other; give one"),
        (["a", "--prefix", "--from-key"], "--prefix, --from-key and --range-end exclude each other; give one"),
        (["a", "--range-end", "", "--prefix"], "--prefix, --from-key and --range-end exclude each other; give one"),
        (["a", "-c", "none.yaml"], "none.yaml: cannot be read: no such file or directory"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(arguments: list[str], error: str) -> None:
    assert route(*arguments) == (2, "", f"esp: {error}\n")


def test_a_wrong_config_is_one_line_and_exit_2(config: Path) -> None:
    config.write_text(CONFIG.replace(":12379", ""))
    assert route("a") == (
        2,
        "",
        'esp: esp.yaml:3: shard "events": endpoint "http://127.0.0.1" has no port; write http://127.0.0.1:2379\n',
    )


def test_the_config_named_in_the_environment_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other.yaml").write_text(CONFIG.replace("name: main", "name: rest"))
    monkeypatch.setenv("ESP_CONFIG", "other.yaml")
    assert '\nrest   "a"' in route("a")[1]
    assert '\nmain   "a"' in route("a", "-c", "esp.yaml")[1]
