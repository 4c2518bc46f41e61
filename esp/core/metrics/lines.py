"""The lines of the log of this process, in numbers."""

from __future__ import annotations

from typing import Final

from esp.core.log.setup import LEVELS, Counts, Log
from esp.core.metrics.families import Family, counter

_NONE: Final = Counts({}, 0, 0, 0)


def families() -> list[Family]:
    """Lines by level, lines that were only counted, lines of the access log, lost lines."""
    log = Log.process
    counts = _NONE if log is None else log.counts
    levels = [((level,), counts.lines.get(level, 0)) for level in LEVELS]
    return [
        Family("esp_log_lines_total", "counter", "Lines of the log by level, summed up or not.", ("level",), levels),
        counter("esp_log_lines_summed_total", "Lines that were counted in place of being written.", counts.summed),
        counter("esp_log_access_lines_total", "Lines of the access log.", counts.calls),
        counter("esp_log_lines_lost_total", "Lines that were lost because nobody read the log.", counts.lost),
    ]
