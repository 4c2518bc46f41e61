"""Any bytes to the gateway: no exception, no second answer to a request, nothing kept at the end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from esp.core.pb import kv_pb2, rpc_pb2
from esp.core.wire.status import Code
from tests.core.gateway.browser import Browser, Streaming, gives, refuses

REQUESTS = [
    b'POST /v3/kv/range HTTP/1.1\r\nHost: a\r\nContent-Length: 15\r\n\r\n{"key": "AA=="}',
    b"POST /v3/kv/put HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    b'8\r\n{"key": \r\n7\r\n"AA=="}\r\n0\r\n\r\n',
    b'POST /v3/watch HTTP/1.1\r\nHost: a\r\nContent-Length: 22\r\n\r\n{"create_request": {}}',
    b"POST /v3/lease/keepalive HTTP/1.1\r\nHost: a\r\nGrpc-Timeout: 5S\r\nContent-Length: 20\r\n\r\n"
    b'{"ID": 1} {"ID": "2"',
    b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n",
    b"OPTIONS /v3//x HTTP/1.1\r\nHost: a\r\nOrigin: b\r\nExpect: 100-continue\r\n\r\n",
    b"HEAD /v3beta/kv/txn HTTP/1.0\r\nHost: a\r\nAuthorization: t\r\nGrpc-Metadata-X-Bin: AA\r\n\r\n",
]
TOKENS = [
    b"\r\n",
    b":",
    b",",
    b"{",
    b"}",
    b"[",
    b'"',
    b"\\",
    b" ",
    b"\0",
    b"\xff",
    b"0",
    b"9",
    b"e",
    b"%",
    b"/",
    b"null",
]


@st.composite
def mutated(draw: st.DrawFn) -> list[bytes]:
    """Some requests with some bytes changed, in pieces."""
    data = bytearray(b"".join(draw(st.lists(st.sampled_from(REQUESTS), min_size=1, max_size=3))))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 3))] = draw(st.sampled_from(TOKENS))
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=4)))
    return [bytes(data[start:end]) for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def client() -> tuple[Browser, Streaming, Streaming]:
    browser, watch, keepalive = Browser(), Streaming(), Streaming()
    kv = kv_pb2.KeyValue(value=bytes(6000))
    browser.handlers |= {
        b"/etcdserverpb.KV/Range": gives(rpc_pb2.RangeResponse(kvs=[kv, kv])),
        b"/etcdserverpb.KV/Put": gives(rpc_pb2.PutResponse()),
        b"/etcdserverpb.KV/Txn": refuses(Code.UNAVAILABLE, "no"),
        b"/etcdserverpb.Watch/Watch": watch,
        b"/etcdserverpb.Lease/LeaseKeepAlive": keepalive,
    }
    return browser, watch, keepalive


@given(mutated(), st.booleans())
def test_any_bytes(pieces: list[bytes], leaves: bool) -> None:
    browser, watch, keepalive = client()
    for piece in pieces:
        if browser.http.ended:
            break
        browser.says(piece)
        for handler in (watch, keepalive):
            if handler.streams and not handler.streams[-1].is_over:
                handler.send(rpc_pb2.WatchResponse(created=True))
        browser.works()
    assert browser.said.count(b"HTTP/1.1 ") <= browser.http.requests * 2 + 1  # 100 Continue, and the answer
    if leaves:
        browser.http.end_of_client()
        browser.works()
    browser.http.lost()
    browser.works()
    assert all(stream.is_over for stream in watch.streams + keepalive.streams)
    assert browser.context.buffers.used == 0
