"""RangeStream over several shards, compared with one real etcd that offers it and holds all keys."""

from __future__ import annotations

from collections.abc import Mapping

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from esp.core import errors
from esp.core.identity import Identity
from esp.core.keys import KeyRange
from esp.core.pb import kv_pb2, rpc_pb2
from esp.core.services.kv.stream_merge import StreamMerge, refuse_range_stream
from esp.core.services.kv.validate import validate_range_stream
from esp.core.shard_map import Segment
from esp.core.wire.status import Code
from tests.examples import tries
from tests.stubs import rpc_pb2_grpc

Range = rpc_pb2.RangeRequest
Chunk = rpc_pb2.RangeStreamResponse
Response = rpc_pb2.RangeResponse
Header = rpc_pb2.ResponseHeader
IDENTITY = Identity(5, 6)
KEY_COUNT = 60
TOKEN = 1 << 52


@pytest.fixture(scope="module")
def streaming(etcd37: object, newest_judge: rpc_pb2_grpc.KVStub) -> rpc_pb2_grpc.KVStub:
    """KV of an etcd with the keys k00 to k59: enough for several chunks."""
    newest_judge.DeleteRange(rpc_pb2.DeleteRangeRequest(key=b"\0", range_end=b"\0"))
    for number in range(KEY_COUNT):
        newest_judge.Put(rpc_pb2.PutRequest(key=b"k%02d" % number, value=b"v%d" % number))
    return newest_judge


def split(bounds: list[bytes], key: bytes, range_end: bytes) -> list[KeyRange]:
    whole = KeyRange.of_request(key, range_end)
    edges: list[bytes | None] = [b"", *bounds, None]
    parts = (whole.intersect(KeyRange(edges[i] or b"", edges[i + 1])) for i in range(len(edges) - 1))
    return [part for part in parts if part]


def stream_merge(request: Range, parts: list[KeyRange]) -> StreamMerge:
    segments = [Segment(f"s{number}", part) for number, part in enumerate(parts)]
    return StreamMerge(request, segments, {}, IDENTITY, lambda reached: min(reached.values()))


def across(kv: rpc_pb2_grpc.KVStub, request: Range, segments: list[KeyRange]) -> list[Chunk]:
    merge = stream_merge(request, segments)
    sent: list[Chunk] = []
    while (asked := merge.next_part()) is not None:
        for chunk in kv.RangeStream(asked):
            sent += merge.feed(chunk)
    return sent


def check_chunks(kv: rpc_pb2_grpc.KVStub, request: Range, bounds: list[bytes]) -> int:
    """Those of several shards are one by one those of one etcd, but for who answers; how many there are."""
    chunks = across(kv, request, split(bounds, request.key, request.range_end))
    direct = list(kv.RangeStream(request))
    header = direct[-1].range_response.header
    header.cluster_id, header.member_id = 5, 6
    assert [len(chunk.range_response.kvs) for chunk in chunks] == [len(chunk.range_response.kvs) for chunk in direct]
    assert chunks == direct
    return len(chunks)


NUMBERED = st.integers(0, KEY_COUNT).map(lambda number: b"k%02d" % number)


def test_the_chunks_are_those_of_one_etcd(streaming: rpc_pb2_grpc.KVStub) -> None:
    @settings(max_examples=tries(80), deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(
        bounds=st.sets(NUMBERED, min_size=1, max_size=4).map(sorted),
        key=NUMBERED,
        range_end=st.one_of(st.just(b"\0"), NUMBERED),
        limit=st.one_of(st.integers(0, 3), st.integers(4, KEY_COUNT + 2)),
        keys_only=st.booleans(),
        count_only=st.sampled_from([False, False, False, True]),
    )
    def check(bounds: list[bytes], key: bytes, range_end: bytes, limit: int, keys_only: bool, count_only: bool) -> None:
        request = Range(key=key, range_end=range_end, limit=limit, keys_only=keys_only, count_only=count_only)
        if split(bounds, key, range_end):
            check_chunks(streaming, request, bounds)

    check()


@pytest.mark.parametrize("limit", [9, 10, 11, 20, 29, 30, 31])
def test_more_is_right_when_the_limit_meets_a_boundary(streaming: rpc_pb2_grpc.KVStub, limit: int) -> None:
    for range_end, total in ((b"k20", 20), (b"k30", 30), (b"k31", 31), (b"\0", KEY_COUNT)):
        request = Range(key=b"k00", range_end=range_end, limit=limit)
        segments = split([b"k10", b"k20", b"k30", b"k60"], b"k00", range_end)
        last = across(streaming, request, segments)[-1].range_response
        assert (last.more, last.count) == (limit < total, total)
        check_chunks(streaming, request, [b"k10", b"k20", b"k30", b"k60"])


@pytest.mark.parametrize("size", [1_000, 60_000, 120_000, 400_000, 1_200_000])
def test_chunks_grow_and_shrink_as_those_of_one_etcd(streaming: rpc_pb2_grpc.KVStub, size: int) -> None:
    try:
        for number in range(KEY_COUNT):
            streaming.Put(rpc_pb2.PutRequest(key=b"l%02d" % number, value=bytes(size)))
        for limit in (0, 5, 10, 11, 25, 30, 59, 60, 61):
            request = Range(key=b"l", range_end=b"m", limit=limit)
            for bounds in ([b"l05"], [b"l10", b"l30"], [b"l01", b"l02", b"l03", b"l29", b"l60"]):
                assert check_chunks(streaming, request, bounds) > ((limit or 60) > 10)
    finally:
        streaming.DeleteRange(rpc_pb2.DeleteRangeRequest(key=b"l", range_end=b"m"))
        revision = streaming.Range(Range(key=b"l")).header.revision
        streaming.Compact(rpc_pb2.CompactionRequest(revision=revision, physical=True))


def test_a_negative_limit_is_none(streaming: rpc_pb2_grpc.KVStub) -> None:
    chunks = across(streaming, Range(key=b"k", range_end=b"l", limit=-1), split([b"k30"], b"k", b"l"))
    assert [len(chunk.range_response.kvs) for chunk in chunks] == [10, 20, 30]


def test_after_the_limit_shards_are_asked_for_their_count_only() -> None:
    merge = stream_merge(Range(key=b"a", range_end=b"z", limit=2), [KeyRange(b"a", b"m"), KeyRange(b"m", b"z")])
    first = merge.next_part()
    assert first == Range(key=b"a", range_end=b"m", limit=2)
    rows = [kv_pb2.KeyValue(key=b"a"), kv_pb2.KeyValue(key=b"b")]
    merge.feed(Chunk(range_response=Response(kvs=rows, header=Header(revision=9), count=2)))
    assert merge.next_part() == Range(key=b"m", range_end=b"z", count_only=True)


def test_rows_wait_only_until_there_are_more_than_a_chunk_and_the_last_for_the_totals() -> None:
    merge = stream_merge(Range(key=b"a", range_end=b"z"), [KeyRange(b"a", b"m"), KeyRange(b"m", b"z")])
    rows = [kv_pb2.KeyValue(key=b"%02d" % number) for number in range(14)]
    merge.next_part()
    assert merge.feed(Chunk(range_response=Response(kvs=rows[:10]))) == []
    assert merge.feed(Chunk(range_response=Response(kvs=rows[10:12]))) == [
        Chunk(range_response=Response(kvs=rows[:10]))
    ]
    ends = Chunk(range_response=Response(kvs=rows[12:13], header=Header(revision=9, raft_term=2), count=13))
    assert merge.feed(ends) == []
    merge.next_part()
    ends = Chunk(range_response=Response(kvs=rows[13:], header=Header(revision=4, raft_term=3), count=1))
    header = Header(cluster_id=5, member_id=6, revision=4, raft_term=3)
    assert merge.feed(ends) == [Chunk(range_response=Response(kvs=rows[10:], header=header, count=14))]
    assert merge.next_part() is None


def test_a_later_part_of_a_shard_is_read_where_its_first_was() -> None:
    reached: list[dict[str, int]] = []

    def token(revisions: Mapping[str, int]) -> int:
        reached.append(dict(revisions))
        return TOKEN

    segments = [
        Segment("s0", KeyRange(b"a", b"g")),
        Segment("s1", KeyRange(b"g", b"m")),
        Segment("s0", KeyRange(b"m", b"z")),
    ]
    merge = StreamMerge(Range(key=b"a", range_end=b"z"), segments, {}, IDENTITY, token)
    asked = []
    for revision in (5, 9, 7):
        part = merge.next_part()
        assert part is not None
        asked.append((part.key, part.revision))
        merge.feed(Chunk(range_response=Response(header=Header(revision=revision))))
    assert asked == [(b"a", 0), (b"g", 0), (b"m", 5)]
    assert reached == [{"s0": 5, "s1": 9}]


def test_a_stream_at_a_token_reads_each_shard_there_and_ends_with_the_token() -> None:
    segments = [Segment("s0", KeyRange(b"a", b"g")), Segment("s2", KeyRange(b"g", b"z"))]
    request = Range(key=b"a", range_end=b"z", revision=TOKEN, serializable=True)
    merge = StreamMerge(request, segments, {"s0": 3, "s2": 8}, IDENTITY, lambda reached: pytest.fail("minted another"))
    parts = []
    for _ in segments:
        part = merge.next_part()
        assert part is not None
        parts.append((part.revision, part.serializable))
        last = merge.feed(Chunk(range_response=Response(header=Header(revision=90))))
    assert parts == [(3, False), (8, False)]
    assert last[0].range_response.header.revision == TOKEN


def test_a_shard_that_breaks_the_form_is_told_from_one_that_ended_well() -> None:
    merge = stream_merge(Range(key=b"a", range_end=b"z"), [KeyRange(b"a", b"m"), KeyRange(b"m", b"z")])
    merge.next_part()
    merge.feed(Chunk(range_response=Response(kvs=[kv_pb2.KeyValue(key=b"a")])))
    with pytest.raises(ValueError, match="without its header"):
        merge.next_part()
    merge.feed(Chunk(range_response=Response(header=Header(revision=9))))
    with pytest.raises(ValueError, match="after its header"):
        merge.feed(Chunk(range_response=Response(kvs=[kv_pb2.KeyValue(key=b"b")])))


@pytest.mark.parametrize(
    "request_",
    [
        Range(),
        Range(key=b"a", sort_target=7),
        Range(key=b"a", sort_order=Range.DESCEND),
        Range(key=b"a", sort_order=Range.ASCEND, sort_target=Range.VERSION),
        Range(key=b"a", sort_order=Range.DESCEND, min_mod_revision=1),
        Range(key=b"a", min_mod_revision=1),
        Range(key=b"a", max_create_revision=1),
        Range(key=b"a", sort_order=Range.ASCEND),
        Range(key=b"a", sort_target=Range.MOD),
    ],
    ids=str,
)
def test_etcd_refuses_the_same_streams_with_the_same_words(streaming: rpc_pb2_grpc.KVStub, request_: Range) -> None:
    status = validate_range_stream(request_)
    if status is None:
        assert len(list(streaming.RangeStream(request_))) == 1
        return
    with pytest.raises(grpc.RpcError) as caught:
        list(streaming.RangeStream(request_))
    assert (caught.value.code().value[0], caught.value.details()) == (status.code, status.message)


def test_what_no_stream_of_several_shards_can_be_is_refused() -> None:
    status = refuse_range_stream(Range(revision=7), ["low", "high"], b"m")
    assert status is not None
    assert status.code == Code.FAILED_PRECONDITION
    assert refuse_range_stream(Range(sort_target=Range.VALUE), ["low", "high"], b"m") == errors.STREAM_SORT
    assert refuse_range_stream(Range(sort_target=Range.VALUE, count_only=True), ["low", "high"], b"m") is None
    assert refuse_range_stream(Range(limit=3), ["low", "high"], b"m") is None
