"""The `log` of the config file."""

from __future__ import annotations

from pathlib import Path

import pytest

from esp.core.config import ConfigError, LogConfig, parse

ONE = "shards: [{endpoints: [127.0.0.1:1], ranges: [{prefix: ''}]}]\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", LogConfig("text", "info")),
        ("log: {}", LogConfig()),
        ("log: {level: warning}", LogConfig(level="warning")),
        ("log: {format: json, level: debug}", LogConfig("json", "debug")),
    ],
)
def test_what_the_log_tells(text: str, expected: LogConfig) -> None:
    assert parse(ONE + text, None).log == expected


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("log: json", '2: "log" must be a mapping, not text'),
        ("log:\n  formt: json", '3: "log": unknown field "formt"; did you mean "format"?'),
        ("log: {format: xml}", '2: log: "format" is "xml"; write text or json'),
        ("log: {format: [json]}", '2: log: "format" is a list; write text or json'),
        ("log: {level: warn}", '2: log: "level" is "warn"; write debug, info, warning or error'),
        ("log: {level: off}", '2: log: "level" is true or false; write debug, info, warning or error'),
        ("log: {level: }", '2: log: "level" is empty; write debug, info, warning or error'),
    ],
)
def test_what_is_wrong_is_told_with_its_line_and_cure(text: str, error: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(ONE + text, Path("esp.yaml"))
    assert str(caught.value) == f"esp.yaml:{error}"
