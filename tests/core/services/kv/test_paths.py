"""Any path, over HTTP/1.1 or HTTP/2, gets an answer with a status, and never shows a bug."""

from __future__ import annotations

import struct

import pytest
from hpack import Decoder
from hypothesis import example, given
from hypothesis import strategies as st

from esp.core.background import Background
from esp.core.config import Endpoint
from esp.core.gateway import Site
from esp.core.keys import KeyRange
from esp.core.layout import Layout
from esp.core.routing import Routing
from esp.core.services.gate import Gate
from esp.core.services.pages import MAX_QUERY, Pages
from esp.core.services.router import Router
from esp.core.shard import Shard
from esp.core.shard_map import ShardMap
from esp.core.tokens import Tokens
from esp.core.wire import frames
from esp.core.wire.context import WireContext
from esp.core.wire.exchange import Page
from esp.core.wire.http1 import Http1Connection
from esp.core.wire.limits import Limits
from esp.core.wire.message import decode_status_text
from tests.core.wire.conversation import data, headers, meet, message

ODD = [
    b"//[",
    b"//]",
    b"//[::1",
    b"/?",
    b"//",
    b"/",
    b"/a//",
    b"/%",
    b"/%zz?%zz",
    b"/health?a&b=c#d",
    b"http://[",
    b"*",
]
parts = st.sampled_from(
    [b"/", b"//", b"[", b"]", b"?", b"#", b"%", b"%00", b":", b"@", b"http://", b"health", b"readyz", b"verbose"]
)  # fmt: skip
visible = st.binary(max_size=6).map(lambda value: bytes(b for b in value if 0x20 < b != 0x7F))
paths = st.lists(parts | visible, max_size=8).map(b"".join)
methods = st.sampled_from([b"GET", b"HEAD", b"POST", b"PUT", b"OPTIONS", b"BREW"])
types = st.sampled_from([None, b"application/grpc", b"application/grpc+proto", b"text/plain", b'"\xff'])


def routing() -> Routing:
    """Two shards that nobody has connected."""
    context = WireContext(Limits())
    shards = [Shard(name, [Endpoint("127.0.0.1", 1)], context, Background()) for name in ("a", "b")]
    ranges = [("a", KeyRange(b"", b"m")), ("b", KeyRange(b"m", None))]
    return Routing(Layout.of(ShardMap.build(ranges, ["a", "b"]), shards), Tokens(context, instance=1))


def gate_of(world: Routing) -> Gate:
    """The places at those."""
    shard = world.shards["a"]
    return Gate(shard.context, shard.background)


def over_http_2(method: bytes, path: bytes, content_type: bytes | None) -> dict[bytes, bytes]:
    """The head of the answer."""
    world = routing()
    pages = Pages(world, Background())
    client, server = meet(find=Router(world, gate_of(world), {}, pages).find)
    fields = [(b":method", method), (b":scheme", b"http"), (b":path", path), (b":authority", b"esp")]
    if content_type is not None:
        fields.append((b"content-type", content_type))
    client.sends(headers(1, fields), data(1, message(b"\x0a\x01a"), end=True))
    said = [frame for frame in server.frames() if frame.stream == 1 or frame.kind == frames.GOAWAY]
    assert not server.closed
    if said[0].kind == frames.RST_STREAM:
        assert struct.unpack(">I", said[0].payload) == (frames.ErrorCode.PROTOCOL_ERROR,)
        assert path[:1] != b"/"
        return {}
    return {bytes(name): bytes(value) for name, value in Decoder().decode(said[0].payload, raw=True)}


@given(methods, paths.map(lambda path: b"/" + path) | paths, types)
def test_any_path_is_answered_over_http_2(method: bytes, path: bytes, content_type: bytes | None) -> None:
    answer = over_http_2(method, path, content_type)
    if method == b"POST" and content_type in (b"application/grpc", b"application/grpc+proto"):
        assert (answer[b":status"], answer[b"grpc-status"]) == (b"200", b"12")
    elif answer:
        assert answer[b":status"] in (b"200", b"404", b"405", b"415", b"503")
        assert (b"grpc-status" in answer) == (answer[b":status"] == b"405" and b"allow" not in answer)


@pytest.mark.parametrize("path", ODD)
def test_odd_paths_are_answered_over_http_2(path: bytes) -> None:
    for method in (b"GET", b"POST"):
        for content_type in (None, b"application/grpc"):
            over_http_2(method, path, content_type)


@given(methods, paths.map(lambda path: b"/" + path) | paths)
@example(b"GET", b"//[")
@example(b"GET", b"http://[")
@example(b"GET", b"http://")
def test_any_target_is_answered_over_http_1(method: bytes, target: bytes) -> None:
    server = Http1Connection(Site(Pages(routing(), Background()).find, most_bytes=1000))
    said = server.receive(method + b" " + target + b" HTTP/1.1\r\nHost: esp\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 ")
    assert int(said[9:12]) in (200, 307, 400, 404, 405, 417, 501, 503)


def page(target: str) -> Page:
    """The page for a GET; at once, since no shard is connected."""
    found: list[Page] = []
    Pages(routing(), Background()).find("GET", target, found.append)
    [only] = found
    return only


@pytest.mark.parametrize("target", ["/livez", "/livez?", "/livez?x", "http://esp/livez", "HTTP://esp:80/livez?verbose"])
def test_a_page_by_all_its_names(target: str) -> None:
    assert page(target).status == 200


def test_a_query_that_takes_long_to_take_apart_is_refused() -> None:
    assert page("/livez?" + "&" * MAX_QUERY).status == 200
    assert page("/livez?" + "&" * (MAX_QUERY + 1)).status == 414


@pytest.mark.parametrize(
    "target", ["/livez/", "//livez", "/livez#x", "livez", "http://livez", "/LIVEZ", "/%6civez", ""]
)
def test_what_is_no_name_of_a_page(target: str) -> None:
    assert page(target).status == 404


REFUSALS = {
    "a call that is no POST": (
        (b"GET", b"/etcdserverpb.KV/Range", b"application/grpc"),
        (405, 13, 'Received a HEADERS frame with :method "GET" which should be POST'),
    ),
    "a call of another type": (
        (b"POST", b"/etcdserverpb.KV/Range", b'text/"plain"'),
        (415, 3, r'invalid gRPC request content-type "text/\"plain\""'),
    ),
    "a call without a type": (
        (b"POST", b"/etcdserverpb.KV/Range", None),
        (415, 3, 'invalid gRPC request content-type ""'),
    ),
    "a request for the JSON gateway": (
        (b"POST", b"/v3/kv/range", b"application/json"),
        (415, 3, 'invalid gRPC request content-type "application/json"'),
    ),
    "a request for the JSON gateway under its older path": (
        (b"POST", b"/v3beta/kv/range", None),
        (415, 3, 'invalid gRPC request content-type ""'),
    ),
}


@pytest.mark.parametrize(("asked", "told"), REFUSALS.values(), ids=REFUSALS)
def test_what_is_nearly_a_call_gets_a_grpc_status(
    asked: tuple[bytes, bytes, bytes | None], told: tuple[int, int, str]
) -> None:
    answer = over_http_2(*asked)
    assert answer[b"content-type"] == b"application/grpc"
    text = decode_status_text(answer[b"grpc-message"])
    assert (int(answer[b":status"]), int(answer[b"grpc-status"]), text) == told
