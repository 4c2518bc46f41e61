"""Real calls, traced: what goes on to the shards, and what a collector gets, in OpenTelemetry's own form."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc.aio
import pytest
from google.protobuf.message import Message

from esp.core import config
from esp.core.pb import kv_pb2, rpc_pb2
from esp.core.proxy import Proxy
from esp.core.wire.status import Code
from tests.core.scripted_etcd import HeardCall, ScriptedConnection, ScriptedEtcd
from tests.core.wire.conversation import refusal
from tests.stubs import rpc_pb2_grpc

pytest.importorskip("opentelemetry.exporter.otlp.proto.http")

HEADER = rpc_pb2.ResponseHeader(cluster_id=7, member_id=8, revision=9, raft_term=2)
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
CLIENTS_SPAN = "b7ad6b7169203331"
TRACED = [("traceparent", f"00-{TRACE_ID}-{CLIENTS_SPAN}-01"), ("token", "secret-token")]
ALL = {"key": b"\0", "range_end": b"\0"}


class Collector:
    """A collector for OTLP over HTTP.

    Attributes:
        spans: those that came.
        bodies: the requests, as bytes.
    """

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.bodies: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        head = await reader.readuntil(b"\r\n\r\n")
        fields = dict(line.lower().split(": ", 1) for line in head.decode().split("\r\n")[1:] if line)
        body = await reader.readexactly(int(fields["content-length"]))
        assert "content-encoding" not in fields
        self.bodies.append(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            named = {one.key: one.value.string_value for one in resource.resource.attributes}
            assert named["service.name"] == "esp-test"
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()


@asynccontextmanager
async def tracing(
    shards: int, traces: str = "", stub: type[Any] = rpc_pb2_grpc.KVStub
) -> AsyncIterator[tuple[list[ScriptedConnection], Any, Collector]]:
    """An esp that traces; the connections of its shards, a client's stub, and what collects the spans in the end."""
    collector = Collector()
    server = await asyncio.start_server(collector.serve, "127.0.0.1", 0)
    etcds = [ScriptedEtcd() for _ in range(shards)]
    async with AsyncExitStack() as stack:
        for etcd in etcds:
            await stack.enter_async_context(etcd)
        b = ["", *"imp"[: shards - 1], ""]
        lines = [
            f"- {{name: s{n}, endpoints: [{etcd.endpoint}], ranges: [{{start: '{b[n]}', end: '{b[n + 1]}'}}]}}"
            for n, etcd in enumerate(etcds)
        ]
        endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/traces"
        text = "\n".join(["listen: [http://127.0.0.1:0]", "shards:", *lines])
        text += f"\ntraces: {{endpoint: '{endpoint}', service: esp-test{traces}}}\n"
        proxy = await stack.enter_async_context(Proxy(config.parse(text, None)))
        assert not await proxy.connected(20)
        connections = [await etcd.accepts() for etcd in etcds]
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{proxy.bound[0][1]}", options) as channel:
            yield connections, stub(channel), collector
        assert proxy.traces is not None
        await proxy.traces.send()
        assert (proxy.traces.failed, proxy.traces.dropped) == (0, 0)
    server.close()
    await server.wait_closed()


async def heard_by(connection: ScriptedConnection, answer: Message) -> HeardCall:
    """The next call to a shard, which is answered."""
    heard = await connection.hears()
    connection.answers(heard, answer.SerializeToString())
    return heard


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110 - what tells of no event
            await asyncio.sleep(0.01)


def rows(key: bytes) -> rpc_pb2.RangeResponse:
    pair = kv_pb2.KeyValue(key=key, value=b"secret-value", create_revision=1, mod_revision=1, version=1)
    return rpc_pb2.RangeResponse(header=HEADER, kvs=[pair], count=1)


def named(span: Any) -> dict[str, Any]:
    return {one.key: one.value.string_value or one.value.int_value for one in span.attributes}


def test_a_call_over_shards_has_a_span_and_one_for_each_shard_below_it() -> None:
    async def test() -> Collector:
        async with tracing(3) as (connections, kv, collector):
            call = asyncio.ensure_future(kv.Range(rpc_pb2.RangeRequest(**ALL), metadata=TRACED, timeout=20))
            heard = [await heard_by(one, rows(key)) for one, key in zip(connections, (b"a", b"k", b"z"), strict=True)]
            assert (await call).count == 3
        [own] = [span for span in collector.spans if span.kind == span.SPAN_KIND_SERVER]
        asked = [span for span in collector.spans if span.kind == span.SPAN_KIND_CLIENT]
        assert own.trace_id.hex() == TRACE_ID
        assert own.parent_span_id.hex() == CLIENTS_SPAN
        assert sorted(named(span)["esp.shard"] for span in asked) == ["s0", "s1", "s2"]
        assert {(span.trace_id.hex(), span.parent_span_id) for span in asked} == {(TRACE_ID, own.span_id)}
        assert {one.fields[b"traceparent"] for one in heard} == {f"00-{TRACE_ID}-{own.span_id.hex()}-01".encode()}
        assert own.name == "etcdserverpb.KV/Range"
        assert (named(own)["rpc.method"], named(own)["rpc.grpc.status_code"]) == ("Range", 0)
        for span in asked:
            assert own.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
            assert span.end_time_unix_nano <= own.end_time_unix_nano + 1_000_000  # clocks are read one after the other
        return collector

    collector = asyncio.run(test())
    assert not [body for body in collector.bodies if b"secret" in body], "no token, no key, no value"


def test_a_call_that_is_passed_on_and_one_that_fails_have_their_spans_too() -> None:
    async def test() -> None:
        async with tracing(2) as (connections, kv, collector):
            put = rpc_pb2.PutRequest(key=b"a", value=b"v")
            call = asyncio.ensure_future(kv.Put(put, metadata=TRACED, timeout=20))
            await heard_by(connections[0], rpc_pb2.PutResponse(header=HEADER))
            await call
            call = asyncio.ensure_future(kv.Put(put, metadata=TRACED, timeout=20))
            heard = await connections[0].hears()
            connections[0].says(refusal(heard.stream, Code.UNAVAILABLE, "etcdserver: request timed out"))
            with pytest.raises(grpc.aio.AioRpcError):
                await call
            call = asyncio.ensure_future(kv.Put(put, metadata=TRACED, timeout=20))
            await connections[0].hears()
            connections[0].hangs_up()
            with pytest.raises(grpc.aio.AioRpcError):
                await call
        own = [span for span in collector.spans if span.kind == span.SPAN_KIND_SERVER]
        asked = [span for span in collector.spans if span.kind == span.SPAN_KIND_CLIENT]
        assert [named(span)["rpc.grpc.status_code"] for span in own] == [0, 14, 14]
        assert [span.status.code for span in own] == [0, 2, 2]
        assert [named(span)["esp.shard"] for span in asked] == ["s0"] * 3
        assert {span.parent_span_id for span in asked} == {span.span_id for span in own}

    asyncio.run(test())


def test_what_is_not_traced_has_no_span_and_a_part_of_it_begins_a_trace_here() -> None:
    async def test() -> None:
        async with tracing(1) as (connections, kv, collector):
            for metadata in ([], [("traceparent", f"00-{TRACE_ID}-{CLIENTS_SPAN}-00")]):
                call = asyncio.ensure_future(kv.Put(rpc_pb2.PutRequest(key=b"a"), metadata=metadata, timeout=20))
                heard = await heard_by(connections[0], rpc_pb2.PutResponse(header=HEADER))
                assert heard.fields.get(b"traceparent", b"").decode() == dict(metadata).get("traceparent", "")
                await call
        assert not collector.spans
        async with tracing(1, ", sample: 1.0") as (connections, kv, collector):
            call = asyncio.ensure_future(kv.Put(rpc_pb2.PutRequest(key=b"a"), timeout=20))
            heard = await heard_by(connections[0], rpc_pb2.PutResponse(header=HEADER))
            await call
        own, asked = sorted(collector.spans, key=lambda span: span.kind)
        assert not own.parent_span_id
        assert asked.parent_span_id == own.span_id
        assert heard.fields[b"traceparent"] == f"00-{own.trace_id.hex()}-{own.span_id.hex()}-01".encode()

    asyncio.run(test())


@pytest.mark.parametrize(
    ("stub", "method", "request_of"),
    [
        (
            rpc_pb2_grpc.WatchStub,
            "Watch",
            lambda n: rpc_pb2.WatchRequest(create_request=rpc_pb2.WatchCreateRequest(key=b"%d" % n, range_end=b"\0")),
        ),
        (rpc_pb2_grpc.LeaseStub, "LeaseKeepAlive", lambda n: rpc_pb2.LeaseKeepAliveRequest(ID=n)),
    ],
)
def test_a_call_whose_requests_go_in_streams_that_others_share_has_a_span_for_each_shard_once(
    stub: type[Any], method: str, request_of: Callable[[int], Message]
) -> None:
    async def test() -> None:
        async with tracing(2, stub=stub) as (connections, service, collector):
            etcds = [one.etcd for one in connections]

            def heard(etcd: ScriptedEtcd) -> list[HeardCall]:
                return [call for call in etcd.calls if call.path.endswith(method.encode())]

            def asked() -> list[int]:
                return [sum(len(one.body) for one in heard(etcd)) for etcd in etcds]

            call = getattr(service, method)(metadata=TRACED)
            for number in (1, 2):
                before = asked()
                await call.write(request_of(number))
                enough = (
                    all if number == 1 else any
                )  # the second watcher joins the first one where their keys are equal
                await until(lambda before=before, enough=enough: enough(map(int.__gt__, asked(), before)))
            assert not any(b"traceparent" in one.fields for etcd in etcds for one in heard(etcd)), "they are of several"
            call.cancel()
            await until(lambda: collector.spans)
        [own] = [span for span in collector.spans if span.kind == span.SPAN_KIND_SERVER]
        spans = [span for span in collector.spans if span.kind == span.SPAN_KIND_CLIENT]
        assert own.parent_span_id.hex() == CLIENTS_SPAN
        assert sorted(named(span)["esp.shard"] for span in spans) == ["s0", "s1"]
        assert {(span.trace_id.hex(), span.parent_span_id) for span in spans} == {(TRACE_ID, own.span_id)}
        assert {named(span)["rpc.method"] for span in collector.spans} == {method}
        for span in spans:
            assert own.start_time_unix_nano <= span.start_time_unix_nano < span.end_time_unix_nano

    asyncio.run(test())


def test_reads_that_were_joined_have_a_span_for_their_shard_each() -> None:
    async def test() -> None:
        async with tracing(2, ", sample: 1.0") as (connections, kv, collector):
            keys = [b"a1", b"a2", b"a3"]
            calls = [asyncio.ensure_future(kv.Range(rpc_pb2.RangeRequest(key=key), timeout=20)) for key in keys]
            answers = 0
            while answers < len(keys):
                heard = await connections[0].hears()
                if heard.path.endswith(b"/Txn"):
                    joined = rpc_pb2.TxnRequest.FromString(heard.body[5:]).success
                    answer = rpc_pb2.TxnResponse(header=HEADER, succeeded=True)
                    for one in joined:
                        read = rows(one.request_range.key)
                        read.header.CopyFrom(rpc_pb2.ResponseHeader(revision=HEADER.revision))
                        answer.responses.add(response_range=read)
                    answers += len(joined)
                    connections[0].answers(heard, answer.SerializeToString())
                else:
                    key = rpc_pb2.RangeRequest.FromString(heard.body[5:]).key
                    answers += key in keys  # esp itself may ask for another one
                    connections[0].answers(heard, rows(key).SerializeToString())
            await asyncio.gather(*calls)
            await until(lambda: len(collector.spans) == 2 * len(keys))
        own = [span for span in collector.spans if span.kind == span.SPAN_KIND_SERVER]
        asked = [span for span in collector.spans if span.kind == span.SPAN_KIND_CLIENT]
        assert len(own) == len(asked) == len(keys)
        assert {span.parent_span_id for span in asked} == {span.span_id for span in own}

    asyncio.run(test())
