"""Requests of the gateway as calls, and their answers as JSON, without a network."""

from __future__ import annotations

import json
from base64 import b64encode
from time import sleep
from typing import Any

import pytest

from esp.core.gateway import answer as gateway_answer
from esp.core.gateway.printing import SMALL
from esp.core.pb import kv_pb2, rpc_pb2, v3election_pb2
from esp.core.wire.frames import ErrorCode
from esp.core.wire.http1 import Http1Connection
from esp.core.wire.limits import Limits
from esp.core.wire.message import prefix
from esp.core.wire.server_stream import OVERLOADED
from esp.core.wire.status import OK, Code, Status
from tests.core.gateway.browser import Answer, Browser, Streaming, Unary, gives, refuses

RANGE = b"/etcdserverpb.KV/Range"
PUT = b"/etcdserverpb.KV/Put"
WATCH = b"/etcdserverpb.Watch/Watch"
KEEPALIVE = b"/etcdserverpb.Lease/LeaseKeepAlive"
OBSERVE = b"/v3electionpb.Election/Observe"
LOCK = b"/v3lockpb.Lock/Lock"
STOPPED = Status(Code.UNAVAILABLE, "etcdserver: server stopped")


def browser(path: bytes, handler: Any, limits: Limits | None = None) -> Browser:
    made = Browser(limits)
    made.handlers[path] = handler
    return made


def rows(count: int, value: bytes = b"value") -> rpc_pb2.RangeResponse:
    kvs = [kv_pb2.KeyValue(key=b"%06d" % row, value=value) for row in range(count)]
    return rpc_pb2.RangeResponse(kvs=kvs, count=count)


# Calls with one answer.


def test_a_call() -> None:
    handler = gives(rows(1))
    client = browser(RANGE, handler)
    answer = client.asks("/v3/kv/range", {"key": "Zm9v", "limit": "5"})
    assert handler.asked == [rpc_pb2.RangeRequest(key=b"foo", limit=5).SerializeToString()]
    assert (answer.status, answer.json["count"]) == (200, "1")
    assert answer.headers == {
        "Access-Control-Allow-Headers": "accept, content-type, authorization",
        "Access-Control-Allow-Methods": "POST, GET, OPTIONS, PUT, DELETE",
        "Access-Control-Allow-Origin": "*",
        "Content-Type": "application/json",
        "Grpc-Metadata-Content-Type": "application/grpc",
        "Content-Length": str(len(answer.body)),
    }
    assert client.asks("/v3/kv/range", {}).status == 200
    assert client.http.is_idle


def test_a_body_of_nothing_is_an_empty_request() -> None:
    handler = gives(rows(0))
    client = browser(RANGE, handler)
    assert client.asks("/v3/kv/range").body == b"{}"
    assert client.asks("/v3/kv/range", b" \n").body == b"{}"
    assert handler.asked == [b"", b""]


def test_what_stands_behind_the_first_value_is_ignored() -> None:
    handler = gives(rows(0))
    assert browser(RANGE, handler).asks("/v3/kv/range", b'{"key":"Zm9v"} garbage').status == 200
    assert handler.asked == [rpc_pb2.RangeRequest(key=b"foo").SerializeToString()]


@pytest.mark.parametrize("size", [SMALL - 100, 20_000, 300_000])
def test_a_large_request_and_answer(size: int) -> None:
    handler = gives(rpc_pb2.PutResponse(prev_kv=kv_pb2.KeyValue(key=b"\0", value=b"x" * size)))
    answer = browser(PUT, handler).asks("/v3/kv/put", {"key": "AA==", "value": "Zm9v" * (size // 3)})
    assert handler.asked == [rpc_pb2.PutRequest(key=b"\0", value=b"foo" * (size // 3)).SerializeToString()]
    value = b64encode(b"x" * size).decode()
    assert (answer.status, answer.json) == (200, {"prev_kv": {"key": "AA==", "value": value}})


@pytest.mark.parametrize("count", [0, 1, 100, 5000])
def test_an_answer_of_any_size_is_whole(count: int) -> None:
    answer = browser(RANGE, gives(rows(count))).asks("/v3/kv/range", {})
    assert len(answer.json.get("kvs", ())) == count
    assert ("Content-Length" in answer.headers) == (count < 200)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (Code.CANCELLED, 499),
        (Code.UNKNOWN, 500),
        (Code.INVALID_ARGUMENT, 400),
        (Code.DEADLINE_EXCEEDED, 504),
        (Code.NOT_FOUND, 404),
        (Code.ALREADY_EXISTS, 409),
        (Code.PERMISSION_DENIED, 403),
        (Code.RESOURCE_EXHAUSTED, 429),
        (Code.FAILED_PRECONDITION, 400),
        (Code.ABORTED, 409),
        (Code.OUT_OF_RANGE, 400),
        (Code.UNIMPLEMENTED, 501),
        (Code.INTERNAL, 500),
        (Code.UNAVAILABLE, 503),
        (Code.DATA_LOSS, 500),
        (Code.UNAUTHENTICATED, 401),
        (77, 500),
    ],
)
def test_errors(code: Code, status: int) -> None:
    answer = browser(RANGE, refuses(code, 'a "text"\n<ä>')).asks("/v3/kv/range", {})
    assert (answer.status, answer.json) == (status, {"code": code, "message": 'a "text"\n<ä>'})
    assert "<" in answer.body.decode()
    assert answer.headers.get("WWW-Authenticate") == ('a "text" <?>' if code == Code.UNAUTHENTICATED else None)
    assert "Grpc-Metadata-Content-Type" not in answer.headers


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"{", "unexpected EOF"),
        (b'{"key":x}', "invalid character 'x' looking for beginning of value"),
        (b'{"key":"!"}', 'proto: (line 1:8): invalid value for bytes field key: "!"'),
    ],
)
def test_json_that_is_no_request(body: bytes, text: str) -> None:
    handler = gives(rows(0))
    client = browser(RANGE, handler)
    answer = client.asks("/v3/kv/range", body)
    assert (answer.status, answer.json) == (400, {"code": 3, "message": text})
    assert not handler.asked
    assert client.asks("/v3/kv/range", {}).status == 200


def test_max_json_bytes() -> None:
    client = browser(PUT, gives(rows(0)), Limits(max_json_bytes=1000))
    assert client.asks("/v3/kv/put", {"value": "AAAA" * 240}).status == 200
    answer = client.asks("/v3/kv/put", {"value": "AAAA" * 250})
    text = "esp: the JSON of the request has more than 1000 bytes; raise max_json_bytes"
    assert (answer.status, answer.json) == (413, {"code": 8, "message": text})
    assert client.context.counters.limits["max_json_bytes"] == 1


def test_a_body_above_max_json_bytes_is_not_read_to_its_end() -> None:
    client = browser(PUT, gives(rows(0)), Limits(max_json_bytes=1000))
    client.says(b"POST /v3/kv/put HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    client.says(b"10000\r\n" + b" " * 1001)
    answer = client.hears()
    assert (answer.status, answer.headers["Connection"]) == (413, "close")
    assert client.http.ended


def test_a_stream_that_begins_above_max_json_bytes_begins_no_call() -> None:
    handler = Streaming()
    client = browser(WATCH, handler, Limits(max_json_bytes=1000))
    client.says(b"POST /v3/watch HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    client.says(b"7d0\r\n" + b'{"create_request":{"key":"'.ljust(2000, b"A"))
    assert client.hears().status == 413
    client.works()
    assert not handler.streams


def test_max_json_bytes_of_one_request_in_a_stream() -> None:
    handler = Streaming()
    client = browser(WATCH, handler, Limits(max_json_bytes=1000))
    client.says(b"POST /v3/watch HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    request = b'{"create_request":{"key":"%s"}}' % (b"AAAA" * 200)
    for _ in range(3):  # together they may have more
        client.says(b"%x\r\n%s\r\n" % (len(request), request))
    assert handler.said.count(b"\0" * 600) == 3
    client.says(b"3e9\r\n" + b'{"create_request":{"key":"' + b"A" * 975)
    answer = client.hears()
    text = "esp: the JSON of the request has more than 1000 bytes; raise max_json_bytes"
    assert (answer.status, answer.lines) == (413, [{"error": {"code": 8, "message": text}}])
    assert client.context.counters.limits["max_json_bytes"] == 1
    client.works()
    assert client.http.ended
    assert handler.cancelled == 1


@pytest.mark.parametrize("length", [b"1001", b"9" * 20])
def test_a_length_above_max_json_bytes_is_refused_at_once(length: bytes) -> None:
    client = browser(PUT, gives(rows(0)), Limits(max_json_bytes=1000))
    expect = b"Expect: 100-continue\r\n"
    client.says(b"POST /v3/kv/put HTTP/1.1\r\nHost: a\r\n" + expect + b"Content-Length: " + length + b"\r\n\r\n")
    answer = client.hears()
    assert (answer.status, answer.json["code"], answer.headers["Connection"]) == (413, 8, "close")
    assert client.http.ended
    assert client.context.counters.limits["max_json_bytes"] == 1


def test_a_message_above_max_message_bytes_gets_etcds_answer() -> None:
    client = browser(PUT, gives(rows(0)), Limits(max_message_bytes=20_000))
    answer = client.asks("/v3/kv/put", {"value": "AAAA" * 10_000})
    assert (answer.status, answer.json["code"]) == (429, 8)
    assert answer.json["message"] == "grpc: received message larger than max (30004 vs. 20000)"


# Headers.


def metadata(*lines: str) -> dict[str, str]:
    """The metadata with which a request arrives, and its `grpc-timeout`."""
    handler = gives(rows(0))
    client = browser(RANGE, handler)
    assert client.asks("/v3/kv/range", {}, *lines).status == 200
    fields = {name.decode(): value.decode() for name, value in client.heads[0].fields}
    fields = {name: value for name, value in fields.items() if name not in ("te", "content-type", "user-agent")}
    if handler.streams[0].timeout:
        fields["timeout"] = handler.streams[0].timeout.decode()
    return fields


def test_headers_become_metadata() -> None:
    assert metadata("Authorization: a.b", "Cookie: x", "X-Any: y") == {"authorization": "a.b"}
    assert metadata("Grpc-Metadata-Hasleader: true", "grpc-metadata-TOKEN: t") == {"hasleader": "true", "token": "t"}
    assert metadata("Grpc-Metadata-X-Bin: QQ") == {"x-bin": "QQ"}


@pytest.mark.parametrize(
    "name", ["Te", "Content-Type", "Grpc-Encoding", "Grpc-Timeout", "Connection", "Host", "Upgrade", "", "a!b"]
)
def test_metadata_that_would_have_another_meaning_are_left_out(name: str) -> None:
    assert metadata(f"Grpc-Metadata-{name}: gzip") == {}


@pytest.mark.parametrize(
    ("value", "timeout"),
    [("5S", "5000000u"), ("+5S", "5000000u"), ("500m", "500000u"), ("2M", "120000m"), ("0S", None), ("", None)],
)
def test_a_deadline(value: str, timeout: str | None) -> None:
    assert metadata(f"Grpc-Timeout: {value}").get("timeout") == timeout


@pytest.mark.parametrize("value", ["1n", "-1S"])
def test_a_deadline_that_is_over(value: str) -> None:
    answer = browser(RANGE, Unary()).asks("/v3/kv/range", {}, f"Grpc-Timeout: {value}")
    assert (answer.status, answer.json) == (504, {"code": 4, "message": "context deadline exceeded"})


@pytest.mark.parametrize("value", ["x", "5", "S", "5s", "1.5S", "--1S", "1" * 19 + "S"])
def test_a_deadline_that_is_none(value: str) -> None:
    answer = browser(RANGE, Unary()).asks("/v3/kv/range", {}, f"Grpc-Timeout: {value}")
    assert (answer.status, answer.json) == (400, {"code": 3, "message": f"invalid grpc-timeout: {value}"})


def test_a_binary_header_that_is_no_base64() -> None:
    answer = browser(RANGE, Unary()).asks("/v3/kv/range", {}, "Grpc-Metadata-X-Bin: QQ!!")
    text = "invalid binary header Grpc-Metadata-X-Bin: illegal base64 data at input byte 2"
    assert (answer.status, answer.json) == (400, {"code": 3, "message": text})


def test_a_token_that_go_would_not_send() -> None:
    client = browser(RANGE, Unary())
    client.says(b"POST /v3/kv/range HTTP/1.1\r\nHost: a\r\nAuthorization: t\xc3\xb6ken\r\nContent-Length: 2\r\n\r\n{}")
    answer = client.hears()
    text = 'header key "authorization" contains value with non-printable ASCII characters'
    assert (answer.status, answer.json) == (500, {"code": 13, "message": text})


def test_an_error_at_the_deadline_is_the_deadlines() -> None:
    """A shard's stream ends in another way at its deadline; Go's clients do not wait for that."""
    handler = Streaming()
    client = browser(OBSERVE, handler)
    client.posts("/v3/election/observe", {}, "Grpc-Timeout: 1m")
    sleep(0.002)
    handler.streams[0].finish(STOPPED)
    client.works()
    answer = client.hears()
    assert (answer.status, answer.json) == (504, {"error": {"code": 4, "message": "context deadline exceeded"}})
    client.posts("/v3/election/observe", {}, "Grpc-Timeout: 1M")
    handler.streams[1].finish(STOPPED)
    client.works()
    assert client.hears().status == 503


# Streams.


def created() -> rpc_pb2.WatchResponse:
    return rpc_pb2.WatchResponse(watch_id=1, created=True, cancel_reason="<a & b>")


def test_a_watch() -> None:
    handler = Streaming()
    client = browser(WATCH, handler)
    client.posts("/v3/watch", {"create_request": {"key": "AA=="}})
    request = rpc_pb2.WatchRequest(create_request=rpc_pb2.WatchCreateRequest(key=b"\0"))
    assert handler.said == prefix(request.SerializeToString())
    assert handler.is_whole
    assert not client.said
    handler.send(created())
    client.works()
    answer = client.hears()
    assert (answer.status, answer.headers["Transfer-Encoding"]) == (200, "chunked")
    assert answer.body == b'{"result":{"watch_id":"1","created":true,"cancel_reason":"\\u003ca \\u0026 b\\u003e"}}\n'
    handler.send(created(), created())
    client.works()
    assert client.hears_more()[0].count(b"\n") == 2
    handler.streams[0].finish(STOPPED)
    client.works()
    body, is_last = client.hears_more()
    assert (body, is_last) == (b'{"error":{"code":14,"message":"etcdserver: server stopped"}}\n', True)
    assert client.asks("/v3/nothing").status == 404


def test_a_stream_that_ends_well() -> None:
    handler = Streaming()
    client = browser(KEEPALIVE, handler)
    client.posts("/v3/lease/keepalive", b'{"ID":1} {"ID":"2"}\n')
    assert handler.said == prefix(b"\x08\1") + prefix(b"\x08\2")
    handler.send(rpc_pb2.LeaseKeepAliveResponse(ID=1), rpc_pb2.LeaseKeepAliveResponse(ID=2))
    handler.streams[0].finish(OK)
    client.works()
    assert client.hears().lines == [{"result": {"ID": "1"}}, {"result": {"ID": "2"}}]
    assert client.http.is_idle


def test_a_stream_that_fails_at_once() -> None:
    client = browser(OBSERVE, refuses(Code.FAILED_PRECONDITION, "no"))
    answer = client.asks("/v3/election/observe", {"name": "AA=="})
    assert (answer.status, answer.body) == (400, b'{"error":{"code":9,"message":"no"}}\n')


def test_a_stream_that_ends_without_an_answer() -> None:
    client = browser(OBSERVE, Unary(lambda stream, _: stream.finish(OK)))
    answer = client.asks("/v3/election/observe", {"name": "AA=="})
    assert (answer.status, answer.body) == (200, b"")
    assert "Content-Type" not in answer.headers


@pytest.mark.parametrize("size", [10, 100_000])
def test_each_message_of_a_stream_is_a_chunk(size: int) -> None:
    """etcd3gw takes a chunk for a message."""
    handler = Streaming()
    client = browser(WATCH, handler)
    client.posts("/v3/watch", {"create_request": {}})
    event = rpc_pb2.WatchResponse(events=[kv_pb2.Event(kv=kv_pb2.KeyValue(value=bytes(size)))])
    handler.send(event, event, event)
    client.works()
    _, _, chunks = bytes(client.said).partition(b"\r\n\r\n")
    sizes = []
    while chunks:
        head, _, rest = chunks.partition(b"\r\n")
        sizes.append(int(head, 16))
        assert rest[: sizes[-1]].endswith(b"}}\n")
        chunks = rest[sizes[-1] + 2 :]
    assert len(sizes) == 3
    assert min(sizes) > size


def test_requests_may_follow_while_answers_come() -> None:
    handler = Streaming()
    client = browser(WATCH, handler)
    client.says(b"POST /v3/watch HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    client.says(b'10\r\n{"create_request\r\n')
    assert not handler.said
    client.says(b'5\r\n":{}}\r\n')
    assert handler.said == prefix(b"\x0a\0")
    handler.send(created())
    client.works()
    assert len(client.hears().lines) == 1
    client.says(b'17\r\n{"progress_request":{}}\r\n')
    assert handler.said == prefix(b"\x0a\0") + prefix(b"\x1a\0")
    assert not handler.is_whole
    client.says(b"0\r\n\r\n")
    assert handler.is_whole
    handler.streams[0].finish(OK)
    client.works()
    assert client.hears_more() == (b"", True)


def test_a_watch_with_bad_json_is_told() -> None:
    handler = Streaming()
    client = browser(WATCH, handler)
    answer = client.asks("/v3/watch", b'{"create_request":x')
    text = "Failed to decode request: invalid character 'x' looking for beginning of value"
    assert (answer.status, answer.lines) == (400, [{"error": {"code": 3, "message": text}}])
    client.works()
    assert handler.cancelled == 1


def test_bad_json_behind_good_requests_is_told_after_their_answers() -> None:
    handler = Streaming()
    client = browser(KEEPALIVE, handler)
    client.posts("/v3/lease/keepalive", b'{"ID":1} {"ID":"x"}')
    assert handler.is_whole
    handler.send(rpc_pb2.LeaseKeepAliveResponse(ID=1))
    handler.streams[0].finish(OK)
    client.works()
    first, second = client.hears().lines
    assert first == {"result": {"ID": "1"}}
    assert second["error"]["code"] == 3


def test_a_client_that_sends_requests_faster_than_they_are_taken_is_not_read() -> None:
    handler = Streaming()
    handler.reads = False
    client = browser(WATCH, handler)
    client.says(b"POST /v3/watch HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    body = b'{"create_request":{"key":"%s"}}' % (b"AAAA" * 1000)
    for _ in range(100):
        client.says(b"%x\r\n%s\r\n" % (len(body), body))
        if not client.http.wants_bytes:
            break
    assert not client.http.wants_bytes
    assert client.http.owed() is None
    assert len(handler.said) < 100_000
    handler.reads = True
    handler.streams[0].consumed(len(handler.said))
    client.works()
    client.works()
    assert client.http.wants_bytes


def test_requests_that_came_together_are_all_taken_by_a_slow_handler() -> None:
    handler = Streaming()
    handler.reads = False
    client = browser(WATCH, handler)
    one = rpc_pb2.WatchRequest(create_request=rpc_pb2.WatchCreateRequest(key=bytes(3000)))
    client.posts("/v3/watch", b'{"create_request":{"key":"%s"}}' % (b"AAAA" * 1000) * 100)
    assert len(handler.said) < 100_000
    handler.reads = True
    handler.streams[0].consumed(len(handler.said))
    client.works()
    client.works()
    assert len(handler.said) == 100 * len(prefix(one.SerializeToString()))
    assert handler.is_whole


def test_requests_behind_the_end_of_their_call_begin_no_other() -> None:
    handler = Streaming()
    client = browser(WATCH, handler)
    client.says(b"POST /v3/watch HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    client.says(b'15\r\n{"create_request":{}}\r\n')
    client.http.is_full = True
    handler.send(created())
    handler.streams[0].finish(STOPPED)
    client.works()
    client.says(b'15\r\n{"create_request":{}}\r\n')
    client.http.resumed()
    client.works()
    assert len(handler.streams) == 1
    assert [list(line) for line in client.hears().lines] == [["result"], ["error"]]
    assert client.http.ended


def test_what_a_client_owes() -> None:
    handler = Streaming()
    client = browser(WATCH, handler)
    client.handlers[PUT] = gives(rpc_pb2.PutResponse())
    client.says(b"POST /v3/kv/put HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n")
    assert client.http.owed() == (1, 0)
    client.says(b"{}")
    client.hears()
    client.says(b"POST /v3/watch HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert client.http.owed() is None
    client.says(b"1\r\n{\r\n")
    assert client.http.owed() == (2, 0)
    client.says(b'14\r\n"create_request":{}}\r\n')
    assert client.http.owed() is None
    client.says(b"2\r\n{ \r\n")
    assert client.http.owed() == (2, 1)
    client.says(b"1\r\n}\r\n0\r\n\r\n")
    assert client.http.owed() is None


# Slow clients, and clients that leave.


def test_a_client_that_does_not_read_holds_back_the_shard() -> None:
    handler = Streaming()
    client = browser(WATCH, handler)
    client.posts("/v3/watch", {"create_request": {}})
    client.http.is_full = True
    event = rpc_pb2.WatchResponse(events=[kv_pb2.Event(kv=kv_pb2.KeyValue(value=bytes(10_000)))])
    for _ in range(100):
        handler.send(event)
        client.works()
    waiting = handler.streams[0].pending
    assert waiting is not None
    assert waiting.size > 500_000
    assert not client.said
    client.http.resumed()
    client.works()
    assert handler.streams[0].pending is None
    assert len(client.hears().lines) == 100


def test_an_answer_that_waits_for_its_client_is_counted() -> None:
    handler = Streaming()
    client = browser(WATCH, handler)
    client.posts("/v3/watch", {"create_request": {}})
    client.http.is_full = True
    handler.send(rpc_pb2.WatchResponse(events=[kv_pb2.Event(kv=kv_pb2.KeyValue(value=bytes(50_000)))]))
    client.works()
    assert client.context.buffers.used > 50_000
    client.http.resumed()
    client.works()
    assert client.context.buffers.used == 0


def test_without_memory_for_it_a_call_ends() -> None:
    client = browser(PUT, gives(rows(0)), Limits(max_buffered_bytes=50_000))
    client.says(b"POST /v3/kv/put HTTP/1.1\r\nHost: a\r\nContent-Length: 200000\r\n\r\n" + b" " * 100_000)
    answer = client.hears()
    assert (answer.status, answer.json) == (429, {"code": 8, "message": OVERLOADED.message})
    assert client.context.buffers.used == 0


@pytest.mark.parametrize("how", ["lost", "closed"])
@pytest.mark.parametrize("path", [b"/v3/watch", b"/v3/lock/lock"])
def test_a_client_that_leaves_ends_its_lasting_calls(how: str, path: bytes) -> None:
    watch, lock = Streaming(), Unary(waits=True)
    client = Browser()
    client.handlers |= {WATCH: watch, LOCK: lock}
    client.posts(path.decode(), {})
    if how == "lost":
        client.http.lost()
    else:
        client.http.end_of_client()
    client.works()
    assert watch.cancelled + len(lock.cancelled) == 1
    if how == "closed":
        assert client.hears().json.popitem()[1] in ("context canceled", {"code": 1, "message": "context canceled"})


def test_a_client_that_closes_its_side_still_gets_a_short_answer() -> None:
    handler = Unary()
    client = browser(RANGE, handler)
    client.posts("/v3/kv/range", {})
    client.http.end_of_client()
    handler.streams[0].respond(b"")
    client.works()
    assert client.hears().body == b"{}"


def test_a_client_that_leaves_within_its_body() -> None:
    handler = Streaming()
    client = browser(WATCH, handler)
    client.says(b'POST /v3/watch HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n{"create_request":{}}')
    assert handler.streams
    client.http.end_of_client()
    client.works()
    assert client.http.ended
    assert handler.cancelled == 1


def test_an_answer_that_breaks_in_the_middle_is_not_ended() -> None:
    handler = Unary()
    client = browser(RANGE, handler)
    client.posts("/v3/kv/range", {})
    stream = handler.streams[0]
    stream.start()
    data = prefix(rows(5000).SerializeToString())
    stream.send_data(data[: len(data) // 2], False)
    client.works()
    stream.finish(STOPPED)
    client.works()
    answer = client.hears()
    assert answer.status == 200
    assert answer.body.startswith(b'{"kvs":[{')
    assert not client.said
    assert client.http.ended


def test_a_whole_answer_of_a_call_that_fails_is_not_ended() -> None:
    handler = Unary()
    client = browser(RANGE, handler)
    client.posts("/v3/kv/range", {})
    stream = handler.streams[0]
    stream.start()
    stream.send_data(prefix(rows(5000).SerializeToString()), False)
    client.works()
    stream.finish(STOPPED)
    client.works()
    assert not client.said.endswith(b"\r\n0\r\n\r\n")
    assert client.hears().status == 200
    assert client.http.ended


def test_no_error_stands_in_the_middle_of_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_answer, "LARGEST_CHUNK", 10_000)
    handler = Streaming()
    client = browser(WATCH, handler)
    client.posts("/v3/watch", {"create_request": {}})
    event = kv_pb2.Event(kv=kv_pb2.KeyValue(value=bytes(1000)))
    data = prefix(rpc_pb2.WatchResponse(events=[event] * 100).SerializeToString())
    handler.streams[0].start()
    handler.streams[0].send_data(data[: len(data) // 2], False)
    client.works()
    handler.streams[0].finish(STOPPED)
    client.works()
    answer = client.hears()
    assert answer.body.startswith(b'{"result":{"events":[{')
    assert b"error" not in answer.body
    assert client.http.ended


@pytest.mark.parametrize("data", [b"\x0a\x05", b"\xff" * 20], ids=["cut", "garbage"])
def test_garbage_is_an_error(data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    answers = iter([data, b"", data])  # once the heads of a good one are known, a small answer comes whole
    client = browser(RANGE, Unary(lambda stream, _: stream.respond(next(answers))))
    for status in (500, 200, 500):
        caplog.clear()
        answer = client.asks("/v3/kv/range", {})
        assert answer.status == status
        if status == 500:
            assert answer.json["code"] == 13
            assert answer.json["message"].startswith("esp: the answer cannot be read: ")
            assert "/etcdserverpb.KV/Range: an answer that cannot be read: " in caplog.text


def test_a_call_that_breaks_off_is_an_error() -> None:
    handler = Unary()
    client = browser(RANGE, handler)
    client.posts("/v3/kv/range", {})
    handler.streams[0].reset(ErrorCode.CANCEL)
    client.works()
    answer = client.hears()
    text = "esp: the call broke off, and may have been served"
    assert (answer.status, answer.json) == (503, {"code": 14, "message": text})


def test_a_call_without_an_answer_is_an_error() -> None:
    answer = browser(RANGE, Unary(lambda stream, _: stream.finish(OK))).asks("/v3/kv/range", {})
    assert (answer.status, answer.json["code"]) == (500, 13)


def test_a_bug_in_a_handler_ends_its_call_only() -> None:
    def breaks(*_: object) -> None:
        raise ZeroDivisionError

    client = browser(RANGE, Unary(breaks))
    client.handlers[PUT] = gives(rpc_pb2.PutResponse())
    answer = client.asks("/v3/kv/range", {})
    text = "esp: the call broke off, and may have been served"
    assert (answer.status, answer.json) == (503, {"code": 14, "message": text})
    assert client.asks("/v3/kv/put", {}).status == 200


def test_a_drain_ends_streams() -> None:
    handler = Streaming()
    client = browser(OBSERVE, handler)
    client.posts("/v3/election/observe", {})
    handler.send(v3election_pb2.LeaderResponse())
    client.works()
    assert client.hears().lines == [{"result": {}}]
    assert client.calls is not None
    client.calls.server.drain(STOPPED)
    client.works()
    assert client.hears_more() == (b'{"error":{"code":14,"message":"etcdserver: server stopped"}}\n', True)


# Turns.


class Ticking:
    """A clock that advances with each look at it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def sliced(client: Browser, length: int) -> tuple[int, Answer]:
    """Works in turns of so many looks at the clock; how many turns it took, and the answer."""
    clock = Ticking()
    http: Http1Connection = client.http
    http.clock = clock
    turns = 0
    while http.behind:
        turns += 1
        http.stop = clock.now + length
        client.said += http.receive(b"")
        client.context.flush()
    return turns, client.hears()


def test_a_large_answer_is_printed_in_turns() -> None:
    client = browser(RANGE, gives(rows(5000)))
    http = client.http
    client.said += http.receive(b"POST /v3/kv/range HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}")
    assert client.calls is not None
    client.calls.run(float("inf"))
    client.context.flush()
    turns, answer = sliced(client, 50)
    assert turns > 90
    assert len(answer.json["kvs"]) == 5000


def test_a_large_request_is_read_in_turns() -> None:
    handler = gives(rpc_pb2.TxnResponse())
    client = browser(b"/etcdserverpb.KV/Txn", handler)
    body = json.dumps({"success": [{"request_put": {"key": "AA=="}}] * 3000}).encode()
    client.http.stop = 0.0
    client.said += client.http.receive(b"POST /v3/kv/txn HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body))
    client.said += client.http.receive(body)
    while not handler.asked and not client.http.behind:
        client.said += client.http.receive(b"")
    clock = Ticking()
    client.http.clock = clock
    turns = 0
    while client.http.behind:
        turns += 1
        client.http.stop = clock.now + 5
        client.said += client.http.receive(b"")
        assert client.calls is None or client.calls.run(float("inf")) is False
        client.context.flush()
    assert turns > 50
    assert len(rpc_pb2.TxnRequest.FromString(handler.asked[0]).success) == 3000
    assert client.hears().status == 200
