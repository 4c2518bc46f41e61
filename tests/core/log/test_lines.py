"""Log records as lines of text and of JSON."""

from __future__ import annotations

import json
import logging
import re
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esp.core.log.lines import MAX_TEXT, AsJson, ForFiles, ForPeople, fields

HOSTILE = "GET /\n2026-11-30T00:00:00.000Z INFO stopped\r\x1b[2J\u2028\x85"


def record(text: str, *args: object, level: int = logging.INFO, error: bool = False, **extra: Any) -> logging.LogRecord:
    info = None
    if error:
        try:
            raise ZeroDivisionError(HOSTILE) from KeyError("k")
        except ZeroDivisionError:
            info = sys.exc_info()
    made = logging.LogRecord("esp.wire", level, __file__, 1, text, args, info)
    made.created = 1764493801.2345
    made.__dict__.update(extra)
    return made


def as_json(*args: Any, **kinds: Any) -> dict[str, Any]:
    line = AsJson().format(record(*args, **kinds))
    assert line.isprintable()
    return dict(json.loads(line))


def test_a_line_for_files() -> None:
    made = ForFiles().format(record("shard %s: lost %s", "a", "127.0.0.1:2379", level=logging.WARNING))
    assert made == "2025-11-30T09:10:01.234Z WARNING shard a: lost 127.0.0.1:2379"


def test_a_line_for_people() -> None:
    line = ForPeople().format(record("ready"))
    assert re.fullmatch(r"\d\d:\d\d:01 ready", line)
    assert ForPeople().format(record("ready", level=logging.WARNING)).endswith(":01 warning: ready")
    assert ForPeople(coloured=True).format(record("ready", level=logging.ERROR)).endswith("\x1b[31merror:\x1b[0m ready")
    assert ForPeople(coloured=True).format(record("ready")) == line


def test_a_line_of_json_has_the_fields_that_its_text_begins_with() -> None:
    assert as_json("shard %s: lost %s", "a", "127.0.0.1:2379", level=logging.WARNING) == {
        "time": "2025-11-30T09:10:01.234Z",
        "level": "warning",
        "logger": "esp.wire",
        "msg": "shard a: lost 127.0.0.1:2379",
        "shard": "a",
    }
    assert as_json("%s: closing: %s", "[::1]:5", "idle")["peer"] == "[::1]:5"
    assert "peer" not in as_json("%s: a bug in esp%s", "the tick", "")


def test_a_line_of_json_has_its_own_fields_which_replace_no_other() -> None:
    made = as_json("ready", **fields(version="1", shards=3, listen=["a"], config=None, msg="no", time="no"))
    assert (made["version"], made["shards"], made["listen"], made["config"]) == ("1", 3, ["a"], None)
    assert (made["msg"], made["time"]) == ("ready", "2025-11-30T09:10:01.234Z")


@pytest.mark.parametrize("form", [ForFiles(), AsJson(), ForPeople()], ids=lambda form: type(form).__name__)
@given(text=st.text() | st.just(HOSTILE) | st.just("\udc80"))
def test_no_text_makes_a_second_line_or_moves_a_cursor(form: logging.Formatter, text: str) -> None:
    line = form.format(record("%s: closing: %s", text, text, **fields(path=text)))
    assert line.isprintable()
    if isinstance(form, AsJson):
        told = json.loads(line)
        assert told["msg"].isprintable()
        assert told["path"].isprintable()


def test_a_long_text_is_cut() -> None:
    for line in (ForFiles().format(record("%s", "x" * 1_000_000)), as_json("%s", "x" * 1_000_000)["msg"]):
        assert line.endswith(f"xxx... ({1_000_000 - MAX_TEXT:,} more characters)")
        assert len(line) < MAX_TEXT + 100
    assert len(as_json("", **fields(path="x" * 1_000_000))["path"]) < MAX_TEXT + 100


def test_a_traceback_in_a_file_is_in_the_line() -> None:
    line = ForFiles().format(record("%s: a bug in esp", "the tick", error=True, level=logging.ERROR))
    assert line.startswith(r"2025-11-30T09:10:01.234Z ERROR the tick: a bug in esp; ZeroDivisionError: GET /\n2026")
    assert re.search(r"; at tests/core/log/test_lines\.py:\d+ record$", line)


def test_a_traceback_in_json_is_a_field() -> None:
    made = as_json("%s: a bug in esp", "the tick", error=True)
    assert made["error"].startswith(r"ZeroDivisionError: GET /\n")
    assert made["traceback"].splitlines()[:3] == ["Traceback (most recent call last):", "KeyError", "which led to:"]
    assert "raise ZeroDivisionError" in made["traceback"]
    assert "\x1b" not in made["traceback"]


def test_a_traceback_for_people_has_lines_of_its_own_without_control_characters() -> None:
    lines = ForPeople().format(record("%s: a bug in esp", "the tick", error=True)).splitlines()
    assert len(lines) > 5
    assert all(line.isprintable() for line in lines)


def test_a_deep_traceback_is_cut() -> None:
    def deeper(left: int) -> None:
        if left:
            deeper(left - 1)
        raise ZeroDivisionError

    try:
        deeper(300)
    except ZeroDivisionError:
        info = sys.exc_info()
    made = record("a bug in esp")
    made.exc_info = info
    assert ForFiles().format(made).count(" < ") == 11
    assert len(AsJson().format(made)) < 10_000


@pytest.mark.parametrize("form", [ForFiles(), AsJson(), ForPeople()], ids=lambda form: type(form).__name__)
@pytest.mark.parametrize(
    "error", [KeyError("SECRET"), ValueError("SECRET"), UnicodeError("SECRET"), Exception("SECRET")]
)
def test_an_error_whose_text_may_quote_a_client_has_no_text(form: logging.Formatter, error: Exception) -> None:
    made = record("%s: a bug in esp", "the tick")
    try:
        try:
            raise error
        except Exception as cause:
            raise type(error)(*error.args) from cause
    except Exception:
        made.exc_info = sys.exc_info()
    line = form.format(made)
    assert type(error).__name__ in line
    assert "SECRET" not in line
