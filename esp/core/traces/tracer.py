"""Decides which calls are traced, and keeps their spans until they are sent."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from contextlib import suppress
from time import monotonic
from typing import Final

from esp import __version__
from esp.core.background import in_a_thread
from esp.core.config import TracesConfig
from esp.core.traces.export import Exporter, Span, exporter_to
from esp.core.wire.context import WireContext
from esp.core.wire.ended import EndedCall
from esp.core.wire.traces import Trace

log = logging.getLogger("esp.traces")

SEND_SECONDS: Final = 2.0
"""How often spans are sent."""
REQUEST_SECONDS: Final = 10.0
"""Seconds that a request to the collector may take."""
LAST_SECONDS: Final = 2.0
"""Seconds that the last requests may take when esp stops."""
MOST_AT_ONCE: Final = 512
"""The most spans that are sent in one request."""
TOLD_SECONDS: Final = 60.0
"""How often a collector that fails is told in the log."""
_SAMPLED: Final = 0x01
"""The bit of the trace flags by which a client says that it records the trace (W3C Trace Context, section 3.2.2.5)."""


class Traces:
    """The tracer of a process (`Tracer`).

    Args:
        context: of the wire. Making this object puts it there as the tracer: make it before any connection.
        sample: the part of the calls without `traceparent` that are traced, 0 to 1. Of calls with one, those are traced
            that the client records.
        most: the most spans that wait to be sent; further ones are dropped.
        export: sends spans.

    Attributes:
        sent, dropped, failed: spans that a collector took; that found no place; that no collector took.
    """

    def __init__(self, context: WireContext, sample: float, most: int, export: Exporter) -> None:
        self.sent = self.dropped = self.failed = 0
        self._sample = sample
        self._most = most
        self._export = export
        self._spans: list[Span] = []
        self._chance = random.Random()  # noqa: S311 - ids are no secrets
        self._told = -TOLD_SECONDS
        context.tracer = self

    @classmethod
    def of(cls, config: TracesConfig, context: WireContext) -> Traces:
        """The tracer that a config describes.

        Raises:
            ExportError: the library that sends spans is not installed.
        """
        export = exporter_to(config.endpoint, config.service, __version__, REQUEST_SECONDS)
        return cls(context, config.sample, config.max_spans, export)

    @property
    def waiting(self) -> int:
        """The spans that wait to be sent."""
        return len(self._spans)

    # As the wire sees it.

    def begun(self, trace: bytes) -> bytes:
        """What goes on instead of a call's `traceparent`; a `Trace` if the call is traced."""
        if trace:
            if not int(trace[53:55], 16) & _SAMPLED:
                return trace
            own = Trace(trace[:36] + self._new_id(64) + trace[52:])
            own.parent = trace[36:52]
            return own
        if not self._sample or self._chance.random() >= self._sample:
            return b""
        return Trace(b"00-" + self._new_id(128) + b"-" + self._new_id(64) + b"-01")

    def _new_id(self, bits: int) -> bytes:
        return b"%0*x" % (bits // 4, self._chance.getrandbits(bits) or 1)  # all zeros are no id

    def asked(self, trace: Trace, server: str, path: bytes, began: float, ended: float) -> None:
        """A call to a shard has ended, which was made for a traced call."""
        self._add(trace[3:35], self._new_id(64), trace[36:52], path, server, "", -1, began, ended)

    def ended(self, call: EndedCall) -> None:
        """A client's call has ended."""
        trace = call.trace
        if isinstance(trace, Trace):
            for server, since in trace.shared.items():
                self.asked(trace, server, call.path, since, call.at)
            self._add(
                trace[3:35], trace[36:52], trace.parent, call.path, "", call.peer, call.code, call.opened, call.at
            )

    def _add(
        self,
        trace_id: bytes,
        span_id: bytes,
        parent_id: bytes,
        path: bytes,
        shard: str,
        peer: str,
        code: int,
        began: float,
        ended: float,
    ) -> None:
        if len(self._spans) >= self._most:
            self.dropped += 1
            return
        offset = time.time() - monotonic()
        times = int((began + offset) * 1e9), int((ended + offset) * 1e9)
        self._spans.append(Span(trace_id, span_id, parent_id, path, shard, peer, code, *times))

    # Sending.

    async def run(self) -> None:
        """Sends spans until it is cancelled."""
        while True:
            await asyncio.sleep(SEND_SECONDS)
            await self.send()

    async def close(self) -> None:
        """Sends what waits, LAST_SECONDS at most; `run` must have no part in it any more, or end as well."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_SECONDS):
                await self.send()

    async def send(self) -> None:
        """Sends the spans that wait."""
        for _ in range(-(-self.waiting // MOST_AT_ONCE)):
            part, self._spans = self._spans[:MOST_AT_ONCE], self._spans[MOST_AT_ONCE:]
            why = await in_a_thread("traces", lambda part=part: self._export(part))  # type: ignore[misc]
            if not why:
                self.sent += len(part)
                continue
            self.failed += len(part)
            if monotonic() - self._told >= TOLD_SECONDS:
                self._told = monotonic()
                log.warning("traces: %d spans so far were not taken: %s", self.failed, why)
