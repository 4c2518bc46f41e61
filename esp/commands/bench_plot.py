"""The drawing of `esp bench`: an SVG, or a page that contains it; nothing is loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import ceil, floor, log10
from typing import Final

from esp.core.load import Measured

SUFFIXES: Final = (".html", ".svg")
_WIDTH: Final = 860
_HEIGHT: Final = 300
_LEFT: Final = 70
_BOTTOM: Final = 40
_TOP: Final = 46
_RIGHT: Final = 250
_COLORS: Final = ("#2266bb", "#cc5511")
_PERCENTS: Final = (0.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95, 99.99)
_MARKED: Final = (0.0, 50.0, 90.0, 99.0, 99.9, 99.99)
_STYLE: Final = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em; }
svg { max-width: 100%; height: auto; }
"""
_SVG_STYLE: Final = """
text { font: 12px system-ui, sans-serif; fill: #333; } .title { font-size: 15px; font-weight: 600; }
.grid { stroke: #8886; stroke-width: 1; } .line { fill: none; stroke-width: 2; }
@media (prefers-color-scheme: dark) { text { fill: #ddd; } }
"""


def drawn(measured: Sequence[Measured], about: Sequence[str], suffix: str) -> str:
    """The figures as a page, or as an SVG alone, by the suffix of the file."""
    svg = _svg(measured)
    if suffix == ".svg":
        return svg
    notes = "".join(f"<p>{escape(line)}</p>" for line in about)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>esp bench</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>'
        f"<body><h1>esp bench</h1>{svg}{notes}</body></html>\n"
    )


def _svg(measured: Sequence[Measured]) -> str:
    loads = list(dict.fromkeys(one.workload for one in measured))
    height = _HEIGHT * len(loads)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        f'role="img"><title>Latencies by percentile</title><style>{_SVG_STYLE}</style>'
    ]
    for number, load in enumerate(loads):
        of_it = [one for one in measured if one.workload == load and one.requests]
        parts.append(f'<g transform="translate(0 {number * _HEIGHT})">{_chart(load, of_it)}</g>')
    return "".join(parts) + "</svg>\n"


def _chart(load: str, measured: Sequence[Measured]) -> str:
    """The latencies of one load by percentile, both axes logarithmic: 90, 99 and 99.9 % are as far apart."""
    title = f'<text class="title" x="{_LEFT}" y="20">{escape(load)}: latency by percentile</text>'
    if not measured:
        return f'{title}<text x="{_LEFT}" y="60">no request was answered</text>'
    values = [max(1e-6, one.percentile(percent)) for one in measured for percent in _PERCENTS]
    low, high = floor(log10(min(values))), ceil(log10(max(values)))
    high = max(high, low + 1)
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM

    def across(percent: float) -> float:
        return _LEFT + (right - _LEFT) * -log10(1 - percent / 100) / 4

    def up(seconds: float) -> float:
        return bottom - (bottom - _TOP) * (log10(max(1e-6, seconds)) - low) / (high - low)

    parts = [title]
    for power in range(low, high + 1):
        y = up(10.0**power)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_time(10.0**power)}</text>')
    for percent in _MARKED:
        x = across(percent)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{bottom}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{percent:g} %</text>')
    for number, one in enumerate(measured):
        color = _COLORS[number % len(_COLORS)]
        points = " ".join(f"{across(percent):.1f},{up(one.percentile(percent)):.1f}" for percent in _PERCENTS)
        dash = ' stroke-dasharray="6 3"' if number else ""
        parts.append(f'<polyline class="line" stroke="{color}"{dash} points="{points}"/>')
        y = _TOP + 14 + number * 44
        parts.append(
            f'<line class="line" stroke="{color}"{dash} x1="{right + 14}" x2="{right + 38}" y1="{y}" y2="{y}"/>'
        )
        parts.append(f'<text x="{right + 44}" y="{y + 4}">{escape(one.target)}</text>')
        parts.append(f'<text x="{right + 44}" y="{y + 20}">{one.rate:,.0f} requests/s</text>')
    return "".join(parts)


def _time(seconds: float) -> str:
    """A power of ten of a second: 10 µs, 1 ms, 1 s."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size * 0.99:
            return f"{seconds / size:g} {unit}"
    return f"{seconds * 1e6:g} µs"
