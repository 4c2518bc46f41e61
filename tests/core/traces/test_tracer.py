"""Which calls are traced, with which ids, and what becomes of their spans."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Sequence

import pytest

from esp.core.traces import Span, Traces
from esp.core.traces import tracer as module
from esp.core.wire.context import WireContext
from esp.core.wire.ended import EndedCall
from esp.core.wire.limits import Limits
from esp.core.wire.traces import Trace

TRACE_ID = b"0af7651916cd43dd8448eb211c80319c"
PARENT = b"b7ad6b7169203331"
RECORDED = b"00-" + TRACE_ID + b"-" + PARENT + b"-01"
UNRECORDED = RECORDED[:-1] + b"0"


class Collector:
    """Takes spans, or refuses them for a reason."""

    def __init__(self) -> None:
        self.took: list[Span] = []
        self.why = ""

    def __call__(self, spans: Sequence[Span]) -> str:
        if not self.why:
            self.took += spans
        return self.why


def tracing(sample: float = 0.0, most: int = 100) -> tuple[Traces, Collector]:
    collector = Collector()
    return Traces(WireContext(Limits()), sample, most, collector), collector


def ended(trace: bytes, path: bytes = b"/a.B/C") -> EndedCall:
    return EndedCall(path, "127.0.0.1:5", 0, 10.0, 12.0, trace=trace)


def test_a_call_that_its_client_records_goes_on_with_esps_own_span() -> None:
    traces, _ = tracing()
    sent = traces.begun(RECORDED)
    assert isinstance(sent, Trace)
    assert sent.parent == PARENT
    assert sent[:36] == RECORDED[:36]
    assert sent[-3:] == b"-01"
    assert re.fullmatch(rb"[0-9a-f]{16}", sent[36:52])
    assert sent[36:52] != PARENT
    assert traces.begun(RECORDED) != sent


def test_a_call_that_its_client_does_not_record_goes_on_as_it_came() -> None:
    traces, _ = tracing(sample=1.0)
    assert traces.begun(UNRECORDED) is UNRECORDED


def test_traces_begin_here_for_the_part_of_the_calls_that_is_asked_for() -> None:
    assert tracing()[0].begun(b"") == b""
    begun = tracing(sample=1.0)[0].begun(b"")
    assert isinstance(begun, Trace)
    assert begun.parent == b""
    assert re.fullmatch(rb"00-[0-9a-f]{32}-[0-9a-f]{16}-01", begun)
    some, _ = tracing(sample=0.25)
    assert 100 < sum(bool(some.begun(b"")) for _ in range(1000)) < 400


def test_the_spans_of_a_call_and_of_its_shards_make_a_tree() -> None:
    async def test() -> None:
        traces, collector = tracing()
        trace = traces.begun(RECORDED)
        assert isinstance(trace, Trace)
        traces.asked(trace, "a", b"/a.B/C", 10.5, 11.0)
        traces.asked(trace, "b", b"/a.B/C", 10.5, 11.5)
        traces.ended(ended(trace))
        traces.ended(ended(UNRECORDED))
        traces.ended(ended(b""))
        await traces.send()
        first, second, own = collector.took
        assert (own.trace_id, own.parent_id, own.span_id) == (TRACE_ID, PARENT, trace[36:52])
        assert (own.shard, own.peer, own.code, own.ended - own.began) == ("", "127.0.0.1:5", 0, 2_000_000_000)
        assert [one.shard for one in (first, second)] == ["a", "b"]
        assert {one.parent_id for one in (first, second)} == {own.span_id}
        assert len({one.span_id for one in collector.took}) == 3
        assert first.began - own.began == pytest.approx(500_000_000, abs=1_000_000)
        assert (traces.sent, traces.waiting) == (3, 0)

    asyncio.run(test())


def test_spans_for_which_there_is_no_place_are_dropped_and_counted() -> None:
    traces, _ = tracing(most=3)
    for _ in range(5):
        traces.ended(ended(traces.begun(RECORDED)))
    assert (traces.waiting, traces.dropped) == (3, 2)


def test_many_spans_go_in_several_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_AT_ONCE", 2)

    async def test() -> None:
        traces, collector = tracing()
        for _ in range(5):
            traces.ended(ended(traces.begun(RECORDED)))
        await traces.close()
        assert len(collector.took) == traces.sent == 5

    asyncio.run(test())


def test_a_collector_that_fails_is_told_once_and_costs_no_memory(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        traces, collector = tracing()
        collector.why = "it is away"
        for _ in range(3):
            traces.ended(ended(traces.begun(RECORDED)))
            await traces.send()
        assert (traces.failed, traces.sent, traces.waiting) == (3, 0, 0)
        [record] = caplog.records
        assert record.levelno == logging.WARNING
        assert record.getMessage() == "traces: 1 spans so far were not taken: it is away"

    asyncio.run(test())
