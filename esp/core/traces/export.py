"""Sends spans to a collector, in the protocol of OpenTelemetry over HTTP (OTLP)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from esp.core.wire.status import Code

MOST_NAME: Final = 100
"""The most characters of a span's name: a client may call any path."""
_CURE: Final = "pip install 'etcd-sharding-proxy[otel]', or leave \"traces\" out"


class Span(NamedTuple):
    """A span as it is sent.

    Attributes:
        trace_id, span_id, parent_id: hexadecimal; the parent's is b"" where the trace begins.
        path: the path of the RPC, as the client wrote it.
        shard: the name of the shard that was asked; "" for the client's call itself.
        peer: the client's address; "" for a call to a shard.
        code: the status code of gRPC; -1 for a call to a shard.
        began, ended: nanoseconds since 1970.
    """

    trace_id: bytes
    span_id: bytes
    parent_id: bytes
    path: bytes
    shard: str
    peer: str
    code: int
    began: int
    ended: int


Exporter = Callable[[Sequence[Span]], str]
"""Sends spans, and may take seconds for that; returns the reason if they were not taken, else ""."""


class ExportError(Exception):
    """Spans cannot be sent at all; the text is a sentence with the cure."""


def exporter_to(endpoint: str, service: str, version: str, seconds: float) -> Exporter:
    """Sends spans to the collector at `endpoint`, a URL such as http://127.0.0.1:4318/v1/traces.

    Args:
        endpoint: the URL.
        service: the name under which the spans appear.
        version: esp's version.
        seconds: how long a request may take.

    Raises:
        ExportError: the library is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace.export import SpanExportResult
    except ImportError as error:
        raise ExportError(f"traces need OpenTelemetry's library ({error}); {_CURE}") from None
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # esp itself tells of failures
    exporter = OTLPSpanExporter(endpoint=endpoint, timeout=seconds)
    resource = Resource({"service.name": service, "service.version": version})

    def export(spans: Sequence[Span]) -> str:
        result = exporter.export([_made(span, resource) for span in spans])
        return "" if result is SpanExportResult.SUCCESS else f"{endpoint} does not take them"

    return export


def _made(span: Span, resource: Any) -> Any:
    """The span as the library has it."""
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

    def context(span_id: bytes, *, is_remote: bool) -> SpanContext:
        return SpanContext(int(span.trace_id, 16), int(span_id, 16), is_remote, TraceFlags(TraceFlags.SAMPLED))

    service, _, method = span.path.decode(errors="replace").removeprefix("/").rpartition("/")
    attributes: dict[str, str | int] = {
        "rpc.system": "grpc",
        "rpc.service": service[:MOST_NAME],
        "rpc.method": method[:MOST_NAME],
    }
    if span.shard:
        attributes["esp.shard"] = span.shard
    else:
        attributes["rpc.grpc.status_code"] = span.code
        attributes["client.address"] = span.peer
    return ReadableSpan(
        name=f"{service}/{method}"[:MOST_NAME],
        context=context(span.span_id, is_remote=False),
        parent=context(span.parent_id, is_remote=not span.shard) if span.parent_id else None,
        resource=resource,
        attributes=attributes,
        kind=SpanKind.CLIENT if span.shard else SpanKind.SERVER,
        # As OpenTelemetry has it for servers: only what the server itself has failed at is an error of the span.
        status=Status(StatusCode.ERROR if span.code in _SERVER_ERRORS else StatusCode.UNSET),
        start_time=span.began,
        end_time=span.ended,
    )


_SERVER_ERRORS: Final = frozenset(
    (Code.UNKNOWN, Code.DEADLINE_EXCEEDED, Code.UNIMPLEMENTED, Code.INTERNAL, Code.UNAVAILABLE, Code.DATA_LOSS)
)
