"""Traced calls: what a tracer learns of them, and the ids that go on to the servers (W3C Trace Context).

A client's call that is traced has a `Trace` in place of the `traceparent` that came. Its metadata for the next hop then
are a `TracedBlock`. So a connection to a server knows each call that it sends for a traced one, and tells its end.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Protocol

from esp.core.wire.divided import DividedBlock

TRACE_FIELD: Final = b"\0\x0btraceparent"


class Trace(bytes):
    """The `traceparent` that esp sends on for a call: its trace, and the id of esp's own span.

    Attributes:
        parent: the id of the client's span, as 16 hexadecimal digits; b"" if the trace begins here.
        shared: the servers that the call asks by streams or calls that serve several clients, each with the `monotonic`
            time since when. These streams and calls have no trace of their own.
    """

    parent: bytes = b""
    shared: Mapping[str, float] = MappingProxyType({})


class TracedBlock(DividedBlock):
    """The metadata of a traced call, encoded for the next hop.

    Attributes:
        trace: the trace.
    """

    trace: Trace


class Tracer(Protocol):
    """Learns of traced calls. At most one in a process: `WireContext.tracer`."""

    def begun(self, trace: bytes) -> bytes:
        """A call has come with this `traceparent`, b"" for none: what goes on instead; a `Trace` if it is traced."""

    def asked(self, trace: Trace, server: str, path: bytes, began: float, ended: float) -> None:
        """A call that was sent to a server for a traced call has ended; the times are `monotonic`."""


def shares(trace: bytes, server: str, since: float) -> None:
    """Notes that a call asks a server by a stream or a call that serves others as well, if the call is traced."""
    if isinstance(trace, Trace) and server not in trace.shared:
        trace.shared = {**trace.shared, server: since}


def traced(metadata: bytes, trace: bytes) -> bytes:
    """The metadata of a call with its `traceparent`, which is at most 126 bytes long."""
    with_trace = metadata + TRACE_FIELD + bytes((len(trace),)) + trace
    if isinstance(trace, Trace):
        block = TracedBlock(with_trace)
        block.trace = trace
        return block
    return DividedBlock(with_trace) if isinstance(metadata, DividedBlock) else with_trace


class Asked:
    """The calls on one connection that were sent for traced calls, and have not ended."""

    __slots__ = ("_calls",)

    def __init__(self) -> None:
        self._calls: dict[int, tuple[Trace, bytes, float]] = {}

    def __len__(self) -> int:
        return len(self._calls)

    def add(self, stream_id: int, trace: Trace, path: bytes, now: float) -> None:
        """A call was sent."""
        self._calls[stream_id] = trace, path, now

    def end(self, streams: Mapping[int, object], tracer: Tracer, server: str, now: float) -> None:
        """Tells of the calls whose streams are not open any more."""
        if self._calls.keys() <= streams.keys():
            return
        ended = [stream_id for stream_id in self._calls if stream_id not in streams]
        for stream_id in ended:
            trace, path, began = self._calls.pop(stream_id)
            tracer.asked(trace, server, path, began, now)
