"""Metric families as text: the text format of Prometheus, and OpenMetrics.

The text comes in pieces, each of a few hundred lines at most, so that whoever sends it can do other work in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import isinf
from typing import Final

from esp.core.metrics.families import Family, Value

PLAIN: Final = "text/plain; version=0.0.4; charset=utf-8"
OPEN: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"
ROWS_AT_ONCE: Final = 64
"""Samples in a piece of the text; a histogram counts as one sample and has some 17 lines."""

_ESCAPES: Final = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})
_HELP_ESCAPES: Final = str.maketrans({"\\": "\\\\", "\n": "\\n"})


def is_open(accept: str) -> bool:
    """Whether a client with this `Accept` wants OpenMetrics: it names that, with no lower q than the plain text."""
    wanted = {OPEN.split(";")[0]: 0.0, "text/plain": 0.0}
    for part in accept.split(","):
        kind, *parameters = (word.strip() for word in part.split(";"))
        if kind in wanted:
            quality = next((word[2:] for word in parameters if word.startswith("q=")), "1")
            try:
                wanted[kind] = max(wanted[kind], float(quality))
            except ValueError:
                continue
    for_open, for_plain = wanted.values()
    return for_open > 0 and for_open >= for_plain


def text(families: Iterable[Family | None], *, open_metrics: bool = False) -> Iterator[str]:
    """The text of the families, in pieces; an empty piece for None, and for a family that is not public."""
    for family in families:
        if family is None or not family.is_public:
            yield ""
            continue
        name = family.name
        # OpenMetrics names a family of counters without the ending of its samples.
        named = name.removesuffix("_total") if open_metrics and family.kind == "counter" else name
        text = family.help.translate(_ESCAPES if open_metrics else _HELP_ESCAPES)
        piece = [f"# HELP {named} {text}\n# TYPE {named} {family.kind}\n"]
        for number, (labels, value) in enumerate(family.rows, 1):
            told = ",".join(
                [f'{label}="{value.translate(_ESCAPES)}"' for label, value in zip(family.labels, labels, strict=True)]
            )
            piece.append(
                _histogram(name, told, family.bounds, value)
                if isinstance(value, list)
                else f"{name}{{{told}}} {_number(value)}\n"
                if told
                else f"{name} {_number(value)}\n"
            )
            if number % ROWS_AT_ONCE == 0:
                yield "".join(piece)
                piece.clear()
        yield "".join(piece)
    if open_metrics:
        yield "# EOF\n"


def _histogram(name: str, labels: str, bounds: tuple[float, ...], value: list[int | float]) -> str:
    comma = "," if labels else ""
    lines = []
    below: int | float = 0
    for bound, calls in zip((*bounds, float("inf")), value, strict=False):
        below += calls
        lines.append(f'{name}_bucket{{{labels}{comma}le="{_number(float(bound))}"}} {below}\n')
    told = f"{{{labels}}}" if labels else ""
    lines.append(f"{name}_sum{told} {_number(value[-1])}\n{name}_count{told} {below}\n")
    return "".join(lines)


def _number(value: Value) -> str:
    if isinstance(value, float) and isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return repr(value)
