"""The `log` of the config file."""

from __future__ import annotations

from pathlib import Path

import pytest

from esp.core.config import ConfigError, LogConfig, parse

ONE = "shards: [{endpoints: [127.0.0.1:1], ranges: [{prefix: ''}]}]\n"
ACCESS = "write off, all or {one_of: 100}"
SLOW = "write a number of seconds above 0, at most 86400, or off"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", LogConfig("text", "info", 0, 1.0)),
        ("log: {}", LogConfig()),
        ("log: {format: json, level: debug}", LogConfig("json", "debug")),
        ("log: {level: warning, access: all}", LogConfig(level="warning", access=1)),
        ("log: {access: {one_of: 100}}", LogConfig(access=100)),
        ("log: {access: off, slow_seconds: off}", LogConfig(access=0, slow_seconds=None)),
        ('log: {access: "off", slow_seconds: "off"}', LogConfig(access=0, slow_seconds=None)),
        ("log: {access: on, slow_seconds: 0.25}", LogConfig(access=1, slow_seconds=0.25)),
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
        ("log:\n  level: info\n  access: 100", f'4: log: "access" is 100; {ACCESS}'),
        ("log: {access: {sample: 5}}", f'2: log: "access" is a mapping; {ACCESS}'),
        ("log: {access: }", f'2: log: "access" is empty; {ACCESS}'),
        (
            "log: {access: {one_of: 0.01}}",
            '2: log: "one_of" is 0.01; write a whole number from 1 to 1000000000: of so many calls one has a line',
        ),
        ("log: {slow_seconds: 0}", f'2: log: "slow_seconds" is 0; {SLOW}'),
        ("log: {slow_seconds: .nan}", f'2: log: "slow_seconds" is nan; {SLOW}'),
        ("log: {slow_seconds: 1s}", f'2: log: "slow_seconds" is "1s"; {SLOW}'),
        ("log: {slow_seconds: on}", f'2: log: "slow_seconds" is true or false; {SLOW}'),
    ],
)
def test_what_is_wrong_is_told_with_its_line_and_cure(text: str, error: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(ONE + text, Path("esp.yaml"))
    assert str(caught.value) == f"esp.yaml:{error}"
