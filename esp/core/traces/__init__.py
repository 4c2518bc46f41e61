"""Traces for OpenTelemetry: a span for each traced call, and one for each call to a shard that was made for it.

tracer    decides which calls are traced, and keeps their spans until they are sent
export    sends spans to a collector, by the library of OpenTelemetry (the extra `otel`)

The ids are in the wire (`esp.core.wire.traces`).
"""

from esp.core.traces.export import ExportError, Span
from esp.core.traces.tracer import Traces

__all__ = ["ExportError", "Span", "Traces"]
