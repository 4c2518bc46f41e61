"""Samples of all messages that esp writes, wholly or in part, without protobuf; they bear no gRPC prefix."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator

from google.protobuf.message import Message

from esp.core.gateway.reading import read, read_small
from esp.core.gateway.shapes import shape_of
from esp.core.identity import Identity
from esp.core.keys import KeyRange
from esp.core.namespace import Namespace
from esp.core.pb import kv_pb2, rpc_pb2
from esp.core.services.kv import range_bytes, read_txn, rows
from esp.core.services.kv.translate import translate_txn
from esp.core.services.kv.txn_look import look
from esp.core.services.namespace.forms import Forms
from esp.core.services.namespace.rewrite import Rewriter, rewritten
from esp.core.services.watch import messages
from esp.core.shard.compared import Guard, Kind
from esp.core.shard_map import ShardMap
from esp.core.tokens import Tokens, Vector
from esp.core.wire.context import WireContext
from esp.core.wire.limits import Limits
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
    for found in ([ROW], [], [ROW]):
        inner = response.responses.add().response_range
        inner.CopyFrom(rpc_pb2.RangeResponse(header={"revision": HEADER.revision}, kvs=found, count=len(found)))
    answers = read_txn.split(prefix(response.SerializeToString()), 3)
    assert answers is not None
    return [answer[PREFIX_SIZE:] for answer in answers]


def keepalive_answers() -> Iterator[bytes]:
    """As `keepalive` makes them: a header in front of what has none."""
    front = rpc_pb2.LeaseKeepAliveResponse(header=HEADER).SerializeToString()
    for lease, ttl in ((1, 0), (2**63 - 1, 9_000_000_000), (-1, -1)):
        yield front + rpc_pb2.LeaseKeepAliveResponse(ID=lease, TTL=ttl).SerializeToString()


def result(steps: Generator[None, None, bytes]) -> bytes:
    """What work in steps returns."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            return bytes(done.value)


def watch_requests() -> Iterator[bytes]:
    """The creates that esp sends to shards: short ones, and those with every option."""
    for key in KEYS:
        for range_end in (b"", b"\0", bytes(200)):
            for plain in (True, False):
                spec = messages.Spec(key, range_end, () if plain else (0, 1), not plain, not plain)
                for watch_id in (1, 127, 128, 2**31):
                    yield spec.create_request(watch_id, 0 if plain else 2**53)[PREFIX_SIZE:]


def compared_requests() -> Iterator[bytes]:
    """Requests that are sent with the comparison of a guard."""
    guard = Guard(b"\0esp/guard", b"7-0123456789abcdef0123456789abcdef")
    for size in (1, 60, 120, 127, 128, 20_000):
        key = bytes(size)
        read = rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=key))
        for kind, request in (
            (Kind.RANGE, rpc_pb2.RangeRequest(key=key)),
            (Kind.PUT, rpc_pb2.PutRequest(key=key, lease=-1)),
            (Kind.DELETE_RANGE, rpc_pb2.DeleteRangeRequest(key=key)),
            (Kind.TXN, rpc_pb2.TxnRequest(success=[read])),
            (Kind.TXN, rpc_pb2.TxnRequest(failure=[read])),
            (Kind.READS, rpc_pb2.TxnRequest(success=[read])),
        ):
            yield guard.compared(kind, prefix(request.SerializeToString()))[PREFIX_SIZE:]


def rewritten_messages() -> Iterator[tuple[type[Message], bytes]]:
    """Messages whose keys have got the prefix of a namespace, or have lost it; whole and in pieces."""
    namespace = Namespace.of(b"team/")
    put = rpc_pb2.PutRequest(key=bytes(123), value=b"v")
    op = rpc_pb2.RequestOp(request_put=put)
    nested = rpc_pb2.RequestOp(request_txn=rpc_pb2.TxnRequest(success=[op] * 2))
    requests: list[Message] = [
        put,
        rpc_pb2.RangeRequest(key=b"a", range_end=b"\0"),
        rpc_pb2.TxnRequest(compare=[rpc_pb2.Compare(key=b"a", version=1)], success=[nested], failure=[op]),
        rpc_pb2.WatchRequest(create_request=rpc_pb2.WatchCreateRequest(key=b"a", start_revision=2**53)),
    ]
    row = kv_pb2.KeyValue(key=b"team/" + bytes(125), value=bytes(130), mod_revision=2**40)
    answered = rpc_pb2.ResponseOp(response_range=rpc_pb2.RangeResponse(header=HEADER, kvs=[row] * 2, count=2))
    answers: list[Message] = [
        rpc_pb2.RangeResponse(header=HEADER, kvs=[row], count=2**40),
        rpc_pb2.TxnResponse(header=HEADER, responses=[answered]),
        rpc_pb2.WatchResponse(header=HEADER, events=[kv_pb2.Event(kv=row, prev_kv=row)]),
    ]
    for forms, some in ((Forms.of_requests(namespace), requests), (Forms.of_answers(namespace), answers)):
        for message in some:
            form, content = forms.form(message.DESCRIPTOR), message.SerializeToString()
            yield type(message), rewritten(form, content)[PREFIX_SIZE:]
            if content:
                rewriter = Rewriter(form, len(content))
                for at in range(0, len(content), 50):
                    rewriter.take(content[at : at + 50])
                yield type(message), b"".join(rewriter.pieces)


def translated_txn() -> bytes:
    """A transaction with revisions where the client had tokens, in as many bytes."""
    tokens = Tokens(WireContext(Limits()), instance=1)
    token = tokens.mint(Vector(("a", "b"), (4, 6)))
    compare = rpc_pb2.Compare(key=b"k", target=rpc_pb2.Compare.MOD, mod_revision=token)
    read_at = rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=b"k", revision=token))
    message = rpc_pb2.TxnRequest(compare=[compare], success=[read_at]).SerializeToString()
    looking = look(message, 0, ShardMap.build([("b", KeyRange(b"", None))], ["b"]))
    while True:
        try:
            next(looking)
        except StopIteration as done:
            return result(translate_txn(tokens, message, done.value, "b"))


def parts_of_ranges() -> Iterator[bytes]:
    for size in (1, 127):
        message = prefix(rpc_pb2.RangeRequest(key=b"a", range_end=b"z" * size).SerializeToString())
        boundaries = [b"b", b"c" * 127, b"d" * 128]
        yield from (part[PREFIX_SIZE:] for part in range_bytes.part_messages(message, boundaries))


def answers_in_rows() -> Iterator[tuple[type[Message], bytes]]:
    """Answers over several shards whose rows were sorted or cut; and what stands around them in a transaction's."""
    header = rows.field(0x0A, HEADER.SerializeToString())
    for count in COUNTS:
        kvs = [rows.field(0x12, ROW.SerializeToString())] * 2
        whole = b"".join(rows.Rows.of(kvs, count, more=True).pieces(header, lambda _: None))
        yield rpc_pb2.RangeResponse, whole
        yield rpc_pb2.RangeResponse, header + range_bytes.end(count, more=bool(count))
        yield rpc_pb2.TxnResponse, header + rows.nested_head(rows.TXN_FORM, len(whole)) + whole


def requests_of_json() -> Iterator[tuple[type[Message], bytes]]:
    """What the JSON gateway makes of requests, by its way for small ones and by that for all."""
    texts: list[tuple[type[Message], object]] = [
        (rpc_pb2.RangeRequest, {"key": "YQ==", "limit": str(2**40), "revision": "-1", "keys_only": True}),
        (rpc_pb2.PutRequest, {"key": "YQ==", "value": "YWFh" * 50, "lease": str(2**63 - 1)}),
        (rpc_pb2.TxnRequest, {"success": [{"request_put": {"key": "YQ==", "value": "YWFh" * 50}}] * 2}),
        (rpc_pb2.WatchRequest, {"create_request": {"key": "YQ==", "filters": ["NOPUT", "NODELETE"]}}),
    ]
    for kind, value in texts:
        shape, text = shape_of(kind.DESCRIPTOR), json.dumps(value).encode()
        small = read_small(shape, text)
        assert small is not None
        yield kind, small
        yield kind, result(read(shape, text))


def written() -> list[tuple[type[Message], bytes]]:
    reads = [prefix(rpc_pb2.RangeRequest(key=key).SerializeToString()) for key in KEYS]
    return [
        *((rpc_pb2.RangeResponse, merged(count)) for count in COUNTS),
        *((rpc_pb2.WatchResponse, message) for message in watch_responses()),
        (rpc_pb2.TxnRequest, read_txn.join(reads)[PREFIX_SIZE:]),
        *((rpc_pb2.RangeResponse, answer) for answer in batched_answers()),
        *((rpc_pb2.LeaseKeepAliveResponse, answer) for answer in keepalive_answers()),
        *((rpc_pb2.WatchRequest, request) for request in watch_requests()),
        *((rpc_pb2.TxnRequest, request) for request in compared_requests()),
        *rewritten_messages(),
        (rpc_pb2.TxnRequest, translated_txn()),
        *((rpc_pb2.RangeRequest, part) for part in parts_of_ranges()),
        *answers_in_rows(),
        *requests_of_json(),
    ]
