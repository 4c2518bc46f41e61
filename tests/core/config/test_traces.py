"""The `traces` of a config."""

from __future__ import annotations

import pytest

from esp.core.config import ConfigError, TracesConfig, parse

SHARDS = "shards: [{endpoints: [127.0.0.1:1], ranges: [{start: '', end: ''}]}]\n"
URL = "http://127.0.0.1:4318/v1/traces"
CURE = f"write the URL of a collector, such as {URL}"


@pytest.mark.parametrize(
    ("text", "traces"),
    [
        ("", None),
        (f"traces: {{endpoint: '{URL}'}}", TracesConfig(URL)),
        ("traces: {endpoint: 'https://otel:4318/x', sample: 1}", TracesConfig("https://otel:4318/x", 1.0)),
        (f"traces: {{endpoint: '{URL}', service: e, max_spans: 9}}", TracesConfig(URL, 0.0, "e", 9)),
    ],
)
def test_values(text: str, traces: TracesConfig | None) -> None:
    assert parse(SHARDS + text, None).traces == traces


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("traces: {}", f'traces: "endpoint" is missing; {CURE}'),
        ("traces: {endpoint: 127.0.0.1:4318}", f'traces: "endpoint" is "127.0.0.1:4318", which is no URL; {CURE}'),
        ("traces: {endpoint: 5}", f'traces: "endpoint" is 5, which is no URL; {CURE}'),
        (
            f"traces: {{endpoint: '{URL}', sample: 2}}",
            'traces: "sample" is 2; write a number from 0 to 1, such as 0.01',
        ),
        (
            f"traces: {{endpoint: '{URL}', max_spans: 0}}",
            'traces: "max_spans" is 0; write a whole number from 1 to 1000000',
        ),
        (f"traces: {{endpoint: '{URL}', service: ''}}", 'traces: "service" is ""; write a name, such as esp'),
        (f"traces: {{endpoint: '{URL}', rate: 1}}", '"traces": unknown field "rate"'),
    ],
)
def test_faults(text: str, fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(SHARDS + text, None)
    assert caught.value.line == 2
    assert fault in caught.value.text
