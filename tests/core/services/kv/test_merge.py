"""Range and DeleteRange over several shards, compared with one real etcd that holds all keys.

The parts are clipped to the shards' ranges, so that one etcd can answer each of them as its shard would.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable

import grpc
import pytest
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from esp.core.keys import KeyRange
from esp.core.pb import rpc_pb2
from esp.core.services.kv.merge import delete_part, merge_deletes, merge_ranges, part, refuse_range
from esp.core.services.kv.rows import DELETE_FORM, HEADER_TAG, RANGE_FORM, Form, RowReader, Rows, field
from esp.core.shard_map import ShardMap
from esp.core.wire.message import prefix
from esp.core.wire.status import Code
from tests.examples import tries
from tests.stubs import rpc_pb2_grpc

Range = rpc_pb2.RangeRequest
Range_ = rpc_pb2.RangeResponse
HEADER = rpc_pb2.ResponseHeader(cluster_id=1, member_id=2, revision=3, raft_term=4)
NAMES = ["a", "b", "c"]

KEYS = st.binary(min_size=1, max_size=3).map(lambda key: bytes(b"\0ab\xff"[byte % 4] for byte in key))
RANGE_ENDS = st.one_of(st.just(b"\0"), KEYS)
# Few values and versions, so that rows tie.
STORED = st.dictionaries(KEYS, st.lists(st.sampled_from([b"", b"x", b"y"]), min_size=1, max_size=3), max_size=12)


@st.composite
def shard_maps(draw: st.DrawFn) -> ShardMap:
    boundaries = sorted(draw(st.sets(KEYS.filter(lambda key: key != b"\0"), min_size=1, max_size=4)))
    owners = [draw(st.integers(0, 2)) for _ in range(len(boundaries) + 1)]
    bounds = [b"", *boundaries, None]
    ranges = [(NAMES[owner], KeyRange(bounds[i] or b"", bounds[i + 1])) for i, owner in enumerate(owners)]
    return ShardMap.build(ranges, NAMES)


RANGES = st.builds(
    Range,
    key=KEYS,
    range_end=RANGE_ENDS,
    limit=st.one_of(st.integers(-1, 8), st.just(2**63 - 1)),
    revision=st.sampled_from([0, 0, -1]),
    sort_order=st.sampled_from([Range.NONE, Range.ASCEND, Range.DESCEND]),
    sort_target=st.sampled_from([Range.KEY, Range.KEY, Range.VERSION, Range.VALUE, Range.CREATE]),
    serializable=st.booleans(),
    keys_only=st.booleans(),
    count_only=st.sampled_from([False, False, False, True]),
    min_mod_revision=st.sampled_from([0, 0, 0, 0, 5]),
)


def store(kv: rpc_pb2_grpc.KVStub, pairs: dict[bytes, list[bytes]]) -> None:
    """Make these the only keys, each put once for each of its values."""
    kv.DeleteRange(rpc_pb2.DeleteRangeRequest(key=b"\0", range_end=b"\0"))
    for turn in range(max(map(len, pairs.values()), default=0)):
        puts = [
            rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=key, value=values[turn]))
            for key, values in pairs.items()
            if turn < len(values)
        ]
        kv.Txn(rpc_pb2.TxnRequest(success=puts))


def across(
    request: rpc_pb2.RangeRequest, shards: ShardMap, ask: Callable[[rpc_pb2.RangeRequest], rpc_pb2.RangeResponse]
) -> rpc_pb2.RangeResponse:
    segments = shards.split(KeyRange.of_request(request.key, request.range_end))
    parts = [rows_of(ask(part(request, segment.range)), RANGE_FORM) for segment in segments]
    return Range_.FromString(written(asyncio.run(merge_ranges(request, parts))))


def rows_of(message: Message, form: Form) -> Rows:
    """What a reader makes of it, whatever the pieces in which it comes."""
    sent = prefix(message.SerializeToString())
    reader = RowReader(form)
    cuts = sorted({0, len(sent), *(random.randrange(len(sent)) for _ in range(random.randrange(4)))})
    answers = [answer for at, to in itertools.pairwise(cuts) for answer in reader.feed(sent[at:to])]
    assert len(answers) == 1
    assert not reader.wanted
    return answers[0].responses[0]


def written(rows: Rows) -> bytes:
    head = field(HEADER_TAG, HEADER.SerializeToString())
    size = rows.size(head)
    message = b"".join(rows.pieces(head, lambda size: None))
    assert len(message) == size
    return message


def check_same(
    request: rpc_pb2.RangeRequest, merged: rpc_pb2.RangeResponse, direct: rpc_pb2.RangeResponse, full: list
) -> None:
    """The two answers are equal, save for the order of rows that tie. `full` is every row in range, by key."""
    assert (merged.count, merged.more, len(merged.kvs)) == (direct.count, direct.more, len(direct.kvs))
    if request.sort_target == Range.KEY:
        assert merged.kvs == direct.kvs
        return
    field = "version" if request.sort_target == Range.VERSION else "value"
    sorted_by = {kv.key: getattr(kv, field) for kv in full}
    assert [sorted_by[kv.key] for kv in merged.kvs] == [sorted_by[kv.key] for kv in direct.kvs]
    keys = [kv.key for kv in merged.kvs]
    assert len(set(keys)) == len(keys)
    if request.sort_order == Range.NONE and request.limit > 0:
        assert set(keys) <= {kv.key for kv in full[: request.limit + 1]}
    # Rows that both have are equal to the last field.
    rows = {kv.key: kv for kv in direct.kvs}
    assert all(kv == rows[kv.key] for kv in merged.kvs if kv.key in rows)


def test_a_range_over_shards_is_what_one_etcd_answers(judge: rpc_pb2_grpc.KVStub) -> None:
    @settings(max_examples=tries(100), deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(stored=STORED, shards=shard_maps(), requests=st.lists(RANGES, min_size=1, max_size=8))
    def check(stored: dict[bytes, list[bytes]], shards: ShardMap, requests: list[rpc_pb2.RangeRequest]) -> None:
        store(judge, stored)
        for request in requests:
            key_range = KeyRange.of_request(request.key, request.range_end)
            if key_range.is_empty() or refuse_range(request, NAMES, b"b"):
                continue
            full = list(judge.Range(Range(key=request.key, range_end=request.range_end)).kvs)
            merged = across(request, shards, judge.Range)
            assert merged.header == HEADER
            check_same(request, merged, judge.Range(request), full)

    check()


BOUNDARY_AT_M = ShardMap.build([("low", KeyRange(b"", b"m")), ("high", KeyRange(b"m", None))], ["low", "high"])


def test_a_lease_shows_where_one_etcd_shows_it(judge_channel: grpc.Channel, judge: rpc_pb2_grpc.KVStub) -> None:
    store(judge, {})
    lease = rpc_pb2_grpc.LeaseStub(judge_channel).LeaseGrant(rpc_pb2.LeaseGrantRequest(TTL=600)).ID
    judge.Put(rpc_pb2.PutRequest(key=b"a", value=b"2", lease=lease))
    judge.Put(rpc_pb2.PutRequest(key=b"z", value=b"1", lease=lease))
    judge.Put(rpc_pb2.PutRequest(key=b"z", value=b"0", lease=lease))
    for target in (Range.KEY, Range.VERSION, Range.VALUE):
        for order in (Range.NONE, Range.ASCEND, Range.DESCEND):
            for keys_only in (False, True):
                request = Range(
                    key=b"a", range_end=b"\0", sort_target=target, sort_order=order, keys_only=keys_only, limit=2
                )
                direct = judge.Range(request).kvs
                assert across(request, BOUNDARY_AT_M, judge.Range).kvs == direct
                assert keys_only or [kv.lease for kv in direct] == [lease, lease]


@pytest.mark.parametrize("stored", [[], [b"a"], [b"m"], [b"z"], [b"a", b"m"], [b"l\xff", b"m", b"m\0"]])
def test_at_the_boundary_no_key_is_lost_or_doubled(judge: rpc_pb2_grpc.KVStub, stored: list[bytes]) -> None:
    store(judge, {key: [b"v"] for key in stored})
    ranges = ((b"a", b"z"), (b"\0", b"\0"), (b"l\xff", b"m\0"), (b"a", b"m\0"), (b"a", b"\0"), (b"\0", b"m\0"))
    for (key, range_end), limit, order in itertools.product(
        ranges, (0, 1, 2), (Range.NONE, Range.ASCEND, Range.DESCEND)
    ):
        request = Range(key=key, range_end=range_end, limit=limit, sort_order=order)
        merged, direct = across(request, BOUNDARY_AT_M, judge.Range), judge.Range(request)
        direct.header.CopyFrom(HEADER)
        assert merged == direct, request


def test_a_delete_over_shards_is_what_one_etcd_answers(judge: rpc_pb2_grpc.KVStub) -> None:
    @settings(max_examples=tries(60), deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(stored=STORED, shards=shard_maps(), key=KEYS, range_end=RANGE_ENDS, prev_kv=st.booleans())
    def check(stored: dict[bytes, list[bytes]], shards: ShardMap, key: bytes, range_end: bytes, prev_kv: bool) -> None:
        request = rpc_pb2.DeleteRangeRequest(key=key, range_end=range_end, prev_kv=prev_kv)
        answers = []
        for segments in (shards.split(KeyRange.of_request(key, range_end)), None):
            store(judge, stored)
            if segments is None:
                answers.append(judge.DeleteRange(request))
            else:
                responses = [judge.DeleteRange(delete_part(request, segment.range)) for segment in segments]
                merged = merge_deletes([rows_of(response, DELETE_FORM) for response in responses])
                answers.append(rpc_pb2.DeleteRangeResponse.FromString(written(merged)))
            answers[-1].header.CopyFrom(HEADER)
            for kv in answers[-1].prev_kvs:  # the keys were stored anew in between
                kv.create_revision = kv.mod_revision = 0
            left = judge.Range(Range(key=b"\0", range_end=b"\0", keys_only=True)).kvs
            answers.append([kv.key for kv in left])
        assert answers[:2] == answers[2:]

    check()


@pytest.mark.parametrize(
    ("refused", "says"),
    [
        (Range(revision=7), "at a revision"),
        (Range(revision=7, count_only=True), "at a revision"),
        (Range(min_mod_revision=7), "filtered by revision"),
        (Range(max_mod_revision=7), "filtered by revision"),
        (Range(min_create_revision=7), "filtered by revision"),
        (Range(max_create_revision=-7), "filtered by revision"),
        (Range(sort_target=Range.CREATE, sort_order=Range.ASCEND), "sorted by revision"),
        (Range(sort_target=Range.MOD, sort_order=Range.DESCEND), "sorted by revision"),
        (Range(sort_target=Range.MOD), "sorted by revision"),
    ],
    ids=str,
)
def test_what_compares_revisions_of_shards_is_refused(refused: rpc_pb2.RangeRequest, says: str) -> None:
    status = refuse_range(refused, ["low", "high"], b"m")
    assert status is not None
    assert status.code == Code.FAILED_PRECONDITION
    assert status.message.startswith("esp: ")
    for text in (says, "low, high", '"m"', "inside one shard"):
        assert text in status.message


@pytest.mark.parametrize(
    "served",
    [
        Range(),
        Range(revision=-1),
        Range(limit=3, serializable=True),
        Range(sort_target=Range.VALUE, keys_only=True),
        Range(sort_target=Range.VERSION, sort_order=Range.DESCEND),
        Range(count_only=True, min_mod_revision=7, sort_target=Range.MOD),
    ],
    ids=str,
)
def test_what_can_be_exact_is_not_refused(served: rpc_pb2.RangeRequest) -> None:
    assert refuse_range(served, ["low", "high"], b"m") is None


def test_a_part_keeps_what_is_not_about_keys() -> None:
    request = Range(key=b"a", range_end=b"\0", limit=3, revision=-1, serializable=True, keys_only=True)
    expected = Range(key=b"m", range_end=b"q", limit=3, revision=-1, serializable=True, keys_only=True)
    assert part(request, KeyRange(b"m", b"q")) == expected
    assert (request.key, request.range_end) == (b"a", b"\0")
