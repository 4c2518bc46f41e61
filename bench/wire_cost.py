"""What one spliced unary call costs in esp's own code, without sockets: microseconds, best of several runs.

Requests of 16 streams on 8 connections come in, go out on one connection upstream, and the answers come back. All calls
are counted, as for the metrics.
"""

from __future__ import annotations

import sys
import time
from typing import cast

from esp.core.metrics.calls import Calls
from esp.core.pb import rpc_pb2
from esp.core.shard import Shard
from esp.core.shard.compared import GUARD_KEY, Guard
from esp.core.shard.guarded import ComparedSplice, GuardedConnection
from esp.core.wire import frames
from esp.core.wire.client import ClientConnection
from esp.core.wire.context import WireContext
from esp.core.wire.hpack import encode
from esp.core.wire.limits import Limits
from esp.core.wire.message import prefix
from esp.core.wire.request import RequestHead
from esp.core.wire.server import ServerConnection
from esp.core.wire.server_stream import Handler, ServerCall
from esp.core.wire.splice import SplicedCall

CONNECTIONS = 8
STREAMS = 16
ROUNDS = 300

PATH = b"/etcdserverpb.KV/Put"
REQUEST = encode(
    [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", PATH),
        (b":authority", b"127.0.0.1:2379"),
        (b"content-type", b"application/grpc"),
        (b"user-agent", b"grpc-go/1.60.0"),
        (b"te", b"trailers"),
    ]
)
HEAD = encode([(b":status", b"200"), (b"content-type", b"application/grpc")])
TRAILERS = encode([(b"grpc-status", b"0"), (b"grpc-message", b"")])
PUT = prefix(rpc_pb2.PutRequest(key=b"bench/key-000000001", value=b"x" * 256).SerializeToString())
HEADER = rpc_pb2.ResponseHeader(cluster_id=1 << 63, member_id=1 << 62, revision=100000, raft_term=3)
ANSWER = prefix(rpc_pb2.PutResponse(header=HEADER).SerializeToString())
GUARD = Guard(GUARD_KEY, b"1-" + b"5" * 32)
_INNER = rpc_pb2.PutResponse(header=rpc_pb2.ResponseHeader(revision=HEADER.revision))
COMPARED_ANSWER = prefix(
    rpc_pb2.TxnResponse(
        header=HEADER, succeeded=True, responses=[rpc_pb2.ResponseOp(response_put=_INNER)]
    ).SerializeToString()
)


class Pass(Handler):
    """Splices every call onto one connection."""

    quick = True  # as esp's own handlers of Put and Range

    def __init__(self, upstream: ClientConnection, owner: Shard, kind: type[SplicedCall]) -> None:
        self.upstream = upstream
        self.owner = owner
        self.kind = kind

    def on_message(self, stream: ServerCall, message: bytes) -> None:
        call = self.kind(self.upstream, stream, message, self.owner)
        self.upstream.call_whole(call, stream.head.forward, stream.timeout, message)  # as `Shard.splice`


def cost(*, heads_first: bool, compares: bool = False) -> float:
    context = WireContext(Limits())
    calls = Calls(context, {PATH})
    authority = "127.0.0.1:2379"
    upstream = GuardedConnection(context, authority, GUARD, "a") if compares else ClientConnection(context, authority)
    answer = COMPARED_ANSWER if compares else ANSWER
    upstream.observe(calls.passed_to("a"))
    upstream.receive(frames.settings({4: 1 << 20, 3: 2**31 - 1}) + frames.SETTINGS_ACK)
    upstream.receive(frames.window_update(0, 1 << 30))
    handler = Pass(upstream, cast("Shard", None), ComparedSplice if compares else SplicedCall)

    def find(head: RequestHead) -> Handler:
        head.forward = head.path, head.encode_metadata()
        return handler

    clients = [ServerConnection(context, f"client-{i}", find) for i in range(CONNECTIONS)]
    for client in clients:
        client.receive(frames.PREFACE + frames.settings({}) + frames.SETTINGS_ACK + frames.window_update(0, 1 << 30))
        first = frames.frame(frames.HEADERS, 4, 1, b"\x20" + REQUEST) + frames.frame(frames.DATA, 1, 1, PUT)
        client.receive(first)
        client.receive(frames.SETTINGS_ACK)
    stream_id = 3
    up_id = 1

    def answers(first: int, count: int, head: bytes = HEAD) -> bytes:
        return b"".join(
            frames.frame(frames.HEADERS, 4, i, head)
            + frames.frame(frames.DATA, 0, i, answer)
            + frames.frame(frames.HEADERS, 5, i, TRAILERS)
            for i in range(first, first + 2 * count, 2)
        )

    upstream.receive(answers(up_id, 1, b"\x20" + HEAD))
    upstream.receive(answers(up_id + 2, CONNECTIONS - 1))
    up_id += 2 * CONNECTIONS
    context.flush()
    best = 1e9
    for _ in range(ROUNDS):
        ids = range(stream_id, stream_id + 2 * STREAMS, 2)
        heads = [frames.frame(frames.HEADERS, 4, i, REQUEST) for i in ids]
        bodies = [frames.frame(frames.DATA, 1, i, PUT) for i in ids]
        if heads_first:
            requests = b"".join(heads + bodies)
        else:
            requests = b"".join(head + body for head, body in zip(heads, bodies, strict=True))
        stream_id += 2 * STREAMS
        response = answers(up_id, CONNECTIONS * STREAMS)
        up_id += 2 * CONNECTIONS * STREAMS
        start = time.perf_counter()
        for client in clients:
            client.receive(requests)
        context.flush()
        upstream.receive(response)
        context.flush()
        calls.tick()
        best = min(best, time.perf_counter() - start)
        assert not any(client.streams for client in clients), "every call is answered"
        assert not any(client.ended for client in clients)
        assert not upstream.streams
    return best / CONNECTIONS / STREAMS * 1e6


def main() -> None:
    sys.stdout.write(f"each request's DATA behind its HEADERS, as gRPC clients do: {cost(heads_first=False):.2f} us\n")
    sys.stdout.write(f"all HEADERS first, as h2load does: {cost(heads_first=True):.2f} us\n")
    sys.stdout.write(f"the same, with the map in the shards: {cost(heads_first=True, compares=True):.2f} us\n")


if __name__ == "__main__":
    main()
