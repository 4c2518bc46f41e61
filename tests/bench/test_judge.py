"""The report of etcd's own benchmark tool, as the bench reads it."""

from __future__ import annotations

import pytest

from bench.judge import Seen, read
from bench.processes import BenchError

REPORT = """
Summary:
  Total:	0.2136 secs.
  Slowest:	0.0140 secs.
  Requests/sec:	46820.8157

Latency distribution:
  95% in 0.0048 secs.
  99% in 0.0071 secs.
  99.9% in 0.0120 secs.
"""


def test_rate_and_p99_are_found() -> None:
    assert read(REPORT) == pytest.approx(Seen(46820.8157, 7.1))


@pytest.mark.parametrize("told", ["", REPORT + "\nError distribution:\n  [3]\trpc error\n"], ids=["nothing", "errors"])
def test_a_report_of_failures_is_none(told: str) -> None:
    with pytest.raises(BenchError):
        read(told)
