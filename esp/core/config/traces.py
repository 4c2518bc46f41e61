"""The `traces` of the file: which calls are traced, and where their spans go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from esp.core.config.fields import Fields, shown
from esp.core.config.shape import Shape

DEFAULT_SERVICE: Final = "esp"
MOST_SPANS: Final = 1_000_000
_EXAMPLE: Final = "http://127.0.0.1:4318/v1/traces"


@dataclass(frozen=True, slots=True)
class TracesConfig:
    """Which calls are traced, and where their spans go.

    Attributes:
        endpoint: the collector's URL for OTLP over HTTP.
        sample: the part of the calls that bring no trace of their own, 0 to 1, in which a trace begins.
        service: the name under which the spans appear.
        max_spans: the most spans that wait to be sent.
    """

    endpoint: str
    sample: float = 0.0
    service: str = DEFAULT_SERVICE
    max_spans: int = 8192


class TracesShape(Shape):
    """The fields of `traces`."""

    endpoint: Any = None
    sample: Any = 0.0
    service: Any = DEFAULT_SERVICE
    max_spans: Any = 8192


def traces_of(value: dict[str, Any] | None, fields: Fields) -> TracesConfig | None:
    """The values of a file's `traces`; None without the field.

    Raises:
        LineError: a field is wrong.
    """
    if value is None:
        return None
    shape = fields.shaped(value, TracesShape, ("traces",), '"traces"')
    place = "traces"
    parts = urlsplit(shape.endpoint) if isinstance(shape.endpoint, str) else None
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
        told = "missing" if shape.endpoint is None else f"{shown(shape.endpoint)}, which is no URL"
        cure = f"write the URL of a collector, such as {_EXAMPLE}"
        fields.note_at((place, "endpoint"), f'traces: "endpoint" is {told}; {cure}')
    sample = shape.sample
    if isinstance(sample, bool) or not isinstance(sample, int | float) or not 0 <= sample <= 1:
        fields.note_at(
            (place, "sample"), f'traces: "sample" is {shown(sample)}; write a number from 0 to 1, such as 0.01'
        )
    if not isinstance(shape.service, str) or not shape.service:
        fields.note_at((place, "service"), f'traces: "service" is {shown(shape.service)}; write a name, such as esp')
    most = shape.max_spans
    if isinstance(most, bool) or not isinstance(most, int) or not 1 <= most <= MOST_SPANS:
        cure = f"write a whole number from 1 to {MOST_SPANS}"
        fields.note_at((place, "max_spans"), f'traces: "max_spans" is {shown(most)}; {cure}')
    if fields.is_spoiled((place,)):
        return None
    return TracesConfig(shape.endpoint, float(sample), shape.service, most)
