"""Samples of all messages that esp writes, wholly or in part, without protobuf; they bear no gRPC prefix."""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.message import Message

from esp.core.identity import Identity
from esp.core.pb import kv_pb2, rpc_pb2
from esp.core.services.kv import read_txn
from esp.core.services.watch import messages
from esp.core.wire.message import PREFIX_SIZE, prefix
from tests.core.services.kv.test_concat import EVERYTHING, Scene, data, head, part, trailers

COUNTS = (0, 1, 6, 127, 128, 2**31, 2**53 + 1, 2**63 - 1)
WATCH_IDS = (1, 127, 128, 2**31 - 1, 2**31, 2**53 + 1, 2**62, 2**63 - 1, -1, -(2**63))
KEYS = [bytes(size) for size in (1, 121, 122, 123, 124, 125, 126, 127)]
HEADER = rpc_pb2.ResponseHeader(cluster_id=2**64 - 1, member_id=2**63, revision=2**52 + 5, raft_term=3)
ROW = kv_pb2.KeyValue(key=b"a", value=b"\x20\xff" * 100, create_revision=2**40, mod_revision=2**40, version=1, lease=-1)


def merged(count: int) -> bytes:
    """A Range over three shards that have so many keys together."""
    scene = Scene()
    scene.asks(EVERYTHING)
    counts = (count // 2, count - count // 2, 0)
    for shard, number in zip(scene.shards, counts, strict=True):
        shard.says(head(), data(part(1, *[(b"a", b"v")] * min(number, 2), count=number)), trailers())
    return scene.answer()[0][PREFIX_SIZE:]


def watch_responses() -> Iterator[bytes]:
    """Of several ids; and those that esp says by itself."""
    event = kv_pb2.Event(kv=ROW, prev_kv=ROW)
    told = messages.Response.parse(rpc_pb2.WatchResponse(header=HEADER, events=[event] * 2).SerializeToString())
    for watch_id in (0, *WATCH_IDS):
        yield told.encode(watch_id)[PREFIX_SIZE:]
        yield told.under(Identity(2**64 - 1, 1), 2**52 + watch_id % 1000 + 1).encode(watch_id)[PREFIX_SIZE:]
    front = messages.header_field(HEADER)
    for own in (messages.created(front), messages.refused(front, "no"), messages.canceled(front, 2**52 + 7)):
        yield own.encode(130)[PREFIX_SIZE:]
    yield messages.encoded(messages.raised(front, 2**53), -1, b"")[PREFIX_SIZE:]


def batched_answers() -> list[bytes]:
    """The answers to reads that were joined."""
    response = rpc_pb2.TxnResponse(header=HEADER, succeeded=True)
    for rows in ([ROW], [], [ROW]):
        inner = response.responses.add().response_range
        inner.CopyFrom(rpc_pb2.RangeResponse(header={"revision": HEADER.revision}, kvs=rows, count=len(rows)))
    answers = read_txn.split(prefix(response.SerializeToString()), 3)
    assert answers is not None
    return [answer[PREFIX_SIZE:] for answer in answers]


def keepalive_answers() -> Iterator[bytes]:
    """As `keepalive` makes them: a header in front of what has none."""
    front = rpc_pb2.LeaseKeepAliveResponse(header=HEADER).SerializeToString()
    for lease, ttl in ((1, 0), (2**63 - 1, 9_000_000_000), (-1, -1)):
        yield front + rpc_pb2.LeaseKeepAliveResponse(ID=lease, TTL=ttl).SerializeToString()


def written() -> list[tuple[type[Message], bytes]]:
    reads = [prefix(rpc_pb2.RangeRequest(key=key).SerializeToString()) for key in KEYS]
    return [
        *((rpc_pb2.RangeResponse, merged(count)) for count in COUNTS),
        *((rpc_pb2.WatchResponse, message) for message in watch_responses()),
        (rpc_pb2.TxnRequest, read_txn.join(reads)[PREFIX_SIZE:]),
        *((rpc_pb2.RangeResponse, answer) for answer in batched_answers()),
        *((rpc_pb2.LeaseKeepAliveResponse, answer) for answer in keepalive_answers()),
    ]
