"""What a Range over three shards costs in esp's own code, without sockets: microseconds, best of several runs.

Requests of 16 streams on 8 connections come in, each goes out to three shards, the answers come back. Prints one line
for each kind of Range, and with `--bytecodes` nothing else.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import Any, cast

from bench.wire_cost import HEAD, TRAILERS
from esp.core.background import Background
from esp.core.keys import KeyRange
from esp.core.layout import Layout
from esp.core.metrics.calls import Calls
from esp.core.pb import kv_pb2, rpc_pb2
from esp.core.routing import Routing
from esp.core.services.gate import Gate
from esp.core.services.kv.batched_call import BatchedCall
from esp.core.services.kv.service import Range
from esp.core.shard_map import ShardMap
from esp.core.tokens import Tokens
from esp.core.wire import frames
from esp.core.wire.client import ClientConnection
from esp.core.wire.context import WireContext
from esp.core.wire.hpack import encode
from esp.core.wire.limits import Limits
from esp.core.wire.message import prefix
from esp.core.wire.request import RequestHead
from esp.core.wire.server import ServerConnection
from esp.core.wire.server_stream import Handler

CONNECTIONS = 8
STREAMS = 16
ROUNDS = 200
PATH = b"/etcdserverpb.KV/Range"
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


@dataclass(eq=False)
class Upstream:
    """A shard without sockets."""

    name: str
    context: WireContext
    calls: Calls
    version_in_use: str = ""
    joined_transactions: int = 0
    joined_reads: int = 0
    max_txn_ops: int = 128
    guard: None = None
    connection: ClientConnection = field(init=False)

    def __post_init__(self) -> None:
        connection = self.connection = ClientConnection(self.context, self.name)
        self.passed = self.calls.passed_to(self.name)
        connection.observe(self.passed)
        connection.receive(frames.settings({4: 1 << 20, 3: 2**31 - 1}) + frames.SETTINGS_ACK)
        connection.receive(frames.window_update(0, 1 << 30))

    def free_connection(self) -> ClientConnection | None:
        return self.connection if self.connection.has_room else None

    def saw(self, revision: int) -> None:
        """As a shard."""


def cost(
    request: rpc_pb2.RangeRequest, rows: int = 1, profile: Any = None, rounds: int = ROUNDS, *, joined: bool = False
) -> float:
    context = WireContext(Limits())
    calls = Calls(context, {PATH})
    shards = [Upstream(name, context, calls) for name in ("a", "b", "c")]
    shard_map = ShardMap.build(
        [("a", KeyRange(b"", b"i")), ("b", KeyRange(b"i", b"r")), ("c", KeyRange(b"r", None))], ("a", "b", "c")
    )
    if joined:
        for shard in shards:
            shard.version_in_use = "3.7.1"
    routing = Routing(Layout.of(shard_map, cast("Any", shards)), Tokens(context, instance=1))
    gate = Gate(context, Background())
    handler = Range(routing, gate, snapshots=False, snapshot_tries=0)

    def find(head: RequestHead) -> Handler:
        head.forward = head.path, head.encode_metadata()
        return handler

    clients = [ServerConnection(context, f"client-{i}", find) for i in range(CONNECTIONS)]
    body = prefix(request.SerializeToString())
    parts: dict[tuple[str, int], bytes] = {}

    def answer_of(shard: Upstream, stream: Any) -> bytes:
        count = stream._count if isinstance(stream, BatchedCall) else 0
        key = shard.name, count
        if count and key not in parts:
            one = rpc_pb2.RangeResponse.FromString(parts[shard.name, 0][5:])
            whole = rpc_pb2.TxnResponse(header=one.header, succeeded=True)
            one.header.CopyFrom(rpc_pb2.ResponseHeader(revision=one.header.revision))
            for _ in range(count):
                whole.responses.add(response_range=one)
            parts[key] = prefix(whole.SerializeToString())
        return parts[key]

    for place, shard in enumerate(shards):
        header = rpc_pb2.ResponseHeader(cluster_id=1 << 63, member_id=1 << 62, revision=100000 + place, raft_term=3)
        kvs = [
            kv_pb2.KeyValue(key=b"%s/%06d" % (b"aip"[place : place + 1], i), value=b"v" * 64, mod_revision=5, version=1)
            for i in range(rows)
        ]
        parts[shard.name, 0] = prefix(rpc_pb2.RangeResponse(header=header, kvs=kvs, count=rows).SerializeToString())

    def ask(client: ServerConnection, ids: range, block: bytes = REQUEST) -> None:
        client.receive(
            b"".join(frames.frame(frames.HEADERS, 4, i, block) + frames.frame(frames.DATA, 1, i, body) for i in ids)
        )
        client.paused()

    def answer(head: bytes = HEAD, portion: int = STREAMS) -> None:
        context.flush()
        while any(shard.connection.streams for shard in shards):
            for shard in shards:
                shard.connection.receive(
                    b"".join(
                        frames.frame(frames.HEADERS, 4, i, head)
                        + frames.frame(frames.DATA, 0, i, answer_of(shard, stream))
                        + frames.frame(frames.HEADERS, 5, i, TRAILERS)
                        for i, stream in list(shard.connection.streams.items())[:portion]
                    )
                )
                context.flush()
            head = HEAD

    for client in clients:
        client.receive(frames.PREFACE + frames.settings({}) + frames.SETTINGS_ACK + frames.window_update(0, 1 << 30))
        ask(client, range(1, 2), b"\x20" + REQUEST)
        client.receive(frames.SETTINGS_ACK)
        answer(b"\x20" + HEAD if client is clients[0] else HEAD)
    best = 1e9
    stream_id = 3
    if profile is not None:
        profile.enable()
    for _ in range(rounds):
        ids = range(stream_id, stream_id + 2 * STREAMS, 2)
        stream_id += 2 * STREAMS
        asked = b"".join(
            frames.frame(frames.HEADERS, 4, i, REQUEST) + frames.frame(frames.DATA, 1, i, body) for i in ids
        )
        for shard in shards:
            shard.connection.send_window = 1 << 30
        start = time.perf_counter()
        for client in clients:
            client.receive(asked)
            client.paused()
        context.flush()
        took = time.perf_counter() - start
        while any(shard.connection.streams for shard in shards):
            for shard in shards:
                come = b"".join(
                    frames.frame(frames.HEADERS, 4, i, HEAD)
                    + frames.frame(frames.DATA, 0, i, answer_of(shard, stream))
                    + frames.frame(frames.HEADERS, 5, i, TRAILERS)
                    for i, stream in shard.connection.streams.items()
                )
                start = time.perf_counter()
                shard.connection.receive(come)
                context.flush()
                took += time.perf_counter() - start
        start = time.perf_counter()
        calls.tick()
        took += time.perf_counter() - start
        best = min(best, took)
        for client in clients:
            client.send_window = 1 << 30
            assert not client.ended
            assert not client.streams, "every call is answered"
    if profile is not None:
        profile.disable()
    return best / CONNECTIONS / STREAMS * 1e6


def main() -> None:
    spans = rpc_pb2.RangeRequest(key=b"a", range_end=b"z")
    if "--profile" in sys.argv:
        import cProfile
        import pstats

        profile = cProfile.Profile()
        cost(spans, profile=profile, rounds=30, joined="--joined" in sys.argv)
        pstats.Stats(profile).strip_dirs().sort_stats("tottime").print_stats(60)
        return
    sys.stdout.write(f"one row of each of three shards: {cost(spans):.2f} us\n")
    sys.stdout.write(f"the same, joined with others: {cost(spans, joined=True):.2f} us\n")


if __name__ == "__main__":
    main()
