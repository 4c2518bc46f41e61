"""Families as text: what Prometheus' own parsers read in it."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse_plain

from esp.core.metrics.families import Family, counter, gauge
from esp.core.metrics.text import is_open, text

HISTOGRAM = Family("h_seconds", "histogram", "H.", ("a",), [(("x",), [1, 2, 4, 7.5])], bounds=(0.5, 1.0))
FAMILIES = [counter("c_total", "C.", 3), gauge("g_bytes", "G.", 1.5), HISTOGRAM, Family("empty", "gauge", "E.")]


def told(families: list[Family], *, open_metrics: bool) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    made = "".join(text(families, open_metrics=open_metrics))
    parsed = list((parse_open if open_metrics else parse_plain)(made))
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parsed
        for sample in family.samples
    }


@pytest.mark.parametrize("open_metrics", [False, True])
def test_each_sample_is_read_as_it_was(open_metrics: bool) -> None:
    assert told(FAMILIES, open_metrics=open_metrics) == {
        ("c_total", ()): 3,
        ("g_bytes", ()): 1.5,
        ("h_seconds_bucket", (("a", "x"), ("le", "0.5"))): 1,
        ("h_seconds_bucket", (("a", "x"), ("le", "1.0"))): 3,
        ("h_seconds_bucket", (("a", "x"), ("le", "+Inf"))): 7,
        ("h_seconds_count", (("a", "x"),)): 7,
        ("h_seconds_sum", (("a", "x"),)): 7.5,
    }


@pytest.mark.parametrize("open_metrics", [False, True])
@given(value=st.text(), number=st.floats(allow_nan=False))
def test_any_label_value_and_any_number_come_through(open_metrics: bool, value: str, number: float) -> None:
    family = Family("g", "gauge", value.replace("\r", ""), ("label",), [((value,), number)])
    if any(ord(c) in (0x0D, 0x85, 0x2028, 0x2029, 0x0B, 0x0C, 0x1C, 0x1D, 0x1E) for c in value):
        return  # the parser of the tests takes these for the end of a line; Prometheus' own does not
    assert told([family], open_metrics=open_metrics) == {("g", (("label", value),)): number}


def test_many_rows_come_in_pieces_and_a_pause_is_an_empty_piece() -> None:
    rows = [((str(n),), n) for n in range(1000)]
    pieces = list(text([None, Family("g", "gauge", "G.", ("n",), rows)]))
    assert pieces[0] == ""
    assert len(pieces) > 5
    assert max(map(len, pieces)) < 4096


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain", False),
        ("application/openmetrics-text", True),
        ("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2", True),
        ("application/openmetrics-text;q=0.2, text/plain;q=0.5", False),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;q=high", False),
    ],
)
def test_the_form_that_the_client_wants(accept: str, expected: bool) -> None:
    assert is_open(accept) is expected


def test_infinity_is_written_as_prometheus_does() -> None:
    assert "g +Inf\n" in "".join(text([gauge("g", "G.", inf)]))
