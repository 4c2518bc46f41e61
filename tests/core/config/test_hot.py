"""The `hot_prefixes` of the file."""

from __future__ import annotations

import pytest

from esp.core import config as configs
from esp.core.config import ConfigError, HotConfig

ONE = "shards: [{endpoints: [127.0.0.1:1], ranges: [{start: '', end: ''}]}]\nhot_prefixes: "


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("off", None),
        ("'off'", None),
        ("on", HotConfig()),
        ("'on'", HotConfig()),
        ("{}", HotConfig()),
        ("{separator: '::', depth: 1, keep: 8, one_of: 100}", HotConfig(b"::", 1, 8, 100)),
    ],
)
def test_values(text: str, found: HotConfig | None) -> None:
    assert configs.parse(ONE + text, None).hot_prefixes == found


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("3", '"hot_prefixes" is 3; write off, on or {separator: /, depth: 3}'),
        ("", '"hot_prefixes" is empty; write off, on or'),
        ("{depth: 0}", '"depth" is 0; write a whole number from 1 to 16'),
        ("{keep: 257}", '"keep" is 257; write a whole number from 1 to 256'),
        ("{one_of: true}", '"one_of" is true or false; write a whole number from 1'),
        ("{separator: ''}", '"separator" is empty; write a text such as "/"'),
        ("{seperator: /}", "separator"),
    ],
)
def test_faults(text: str, fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configs.parse(ONE + text, None)
    assert fault in str(caught.value)
