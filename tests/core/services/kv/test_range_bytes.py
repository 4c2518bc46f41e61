"""The bytes of a RangeResponse taken apart: against protobuf, cut into pieces anywhere."""

from __future__ import annotations

from collections import deque
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esp.core.keys import KeyRange
from esp.core.pb import kv_pb2, rpc_pb2
from esp.core.services.kv.peek import bare_range
from esp.core.services.kv.range_bytes import end, end_of_rows, first_rows, keep_rows, part_messages
from esp.core.shard_map import ShardMap
from esp.core.wire.message import prefix

VALUES = st.sampled_from([b"", b"v", b"\x18\x01", b"\x20\x05", b"\x18\x01\x20\x05", b"\xff" * 130, b"v" * 17_000])
ROWS = st.lists(st.builds(kv_pb2.KeyValue, key=st.binary(min_size=1, max_size=3), value=VALUES), max_size=8)


@given(ROWS, st.integers(0, 9), st.sampled_from([0, 1, 130, 2**40]))
def test_the_end_of_the_rows_is_where_protobuf_has_it(rows: list[kv_pb2.KeyValue], limit: int, further: int) -> None:
    count = len(rows) + further if rows else 0
    kept = rows[:limit] if limit else rows
    is_cut = 0 < limit < count
    header = rpc_pb2.RangeResponse(header=rpc_pb2.ResponseHeader(revision=2**52)).SerializeToString()
    body = rpc_pb2.RangeResponse(kvs=kept).SerializeToString()
    whole = rpc_pb2.RangeResponse(kvs=kept, more=is_cut, count=count).SerializeToString()
    assert end_of_rows(header + whole, len(header), limit) == (len(header) + len(body), count)
    assert body + end(count, more=is_cut) == whole


@pytest.mark.parametrize(
    ("strange", "limit"),
    [(b"\x12\x00", 0), (b"\x20", 0), (b"\x20\x80", 0), (b"\x05", 0), (b"\x12\x00\x20\x05", 1), (b"\x20\x05", 1)],
)
def test_what_has_another_end_is_not_taken_for_an_answer(strange: bytes, limit: int) -> None:
    assert end_of_rows(b"\x0a\x00" + strange, 2, limit) is None


@given(ROWS, st.integers(0, 9), st.lists(st.integers(0, 60_000), max_size=6))
def test_the_first_rows_are_kept_wherever_they_were_cut_into_pieces(
    rows: list[kv_pb2.KeyValue], wanted: int, cuts: list[int]
) -> None:
    data = rpc_pb2.RangeResponse(kvs=rows).SerializeToString()
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    pieces = deque(data[at:to] for at, to in pairwise(edges))
    steps = keep_rows(pieces, wanted)
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            has_so_many = stop.value
            break
    assert has_so_many == (wanted <= len(rows))
    if has_so_many:
        expected = rpc_pb2.RangeResponse(kvs=rows[:wanted]).SerializeToString()
        assert b"".join(pieces) == expected == first_rows(data, wanted)


def test_many_rows_are_passed_over_in_steps() -> None:
    data = rpc_pb2.RangeResponse(kvs=[kv_pb2.KeyValue(key=b"k")] * 2000).SerializeToString()
    assert len(list(keep_rows(deque([data]), 1999))) >= 3


def test_what_is_no_row_ends_the_cut() -> None:
    pieces = deque([b"\x12\x01a\x0a\x01b\x12\x01c"])
    with pytest.raises(StopIteration, match="False"):
        next(keep_rows(pieces, 2))


KEYS = st.binary(min_size=1, max_size=4).filter(lambda key: key != b"\0") | st.just(b"k" * 127)


@given(KEYS, KEYS | st.just(b"\0"), st.sets(KEYS | st.just(b"m" * 200), min_size=1, max_size=5))
def test_the_parts_of_a_bare_range_are_as_protobuf_writes_them(key: bytes, range_end: bytes, cuts: set[bytes]) -> None:
    bounds = [b"", *sorted(cuts), None]
    names = [str(number) for number in range(len(bounds) - 1)]
    shard_map = ShardMap.build(
        [(name, KeyRange(low or b"", high)) for name, (low, high) in zip(names, pairwise(bounds), strict=True)], names
    )
    message = prefix(rpc_pb2.RangeRequest(key=key, range_end=range_end).SerializeToString())
    assert bare_range(message) == (key, range_end)
    first, last = shard_map.span(key, range_end)
    asked = KeyRange.of_request(key, range_end)
    split = shard_map.split(asked)
    if shard_map.sole_owner(asked) is not None:
        assert last - first <= 1
        return
    assert shard_map.owners[first:last] == [segment.shard for segment in split]
    written = part_messages(message, shard_map.starts[first + 1 : last])
    for segment, part in zip(split, written, strict=True):
        parsed = rpc_pb2.RangeRequest.FromString(part[5:])
        assert part == prefix(parsed.SerializeToString())
        assert parsed == rpc_pb2.RangeRequest(key=parsed.key, range_end=parsed.range_end)
        assert KeyRange.of_request(parsed.key, parsed.range_end) == segment.range


@pytest.mark.parametrize(
    "request_",
    [
        rpc_pb2.RangeRequest(key=b"a"),
        rpc_pb2.RangeRequest(range_end=b"b"),
        rpc_pb2.RangeRequest(key=b"a", range_end=b"b", limit=1),
        rpc_pb2.RangeRequest(key=b"a", range_end=b"b", revision=1),
        rpc_pb2.RangeRequest(key=b"a" * 128, range_end=b"b"),
        rpc_pb2.RangeRequest(key=b"a", range_end=b"b" * 128),
        rpc_pb2.RangeRequest(),
    ],
    ids=str,
)
def test_any_other_range_is_not_bare(request_: rpc_pb2.RangeRequest) -> None:
    message = prefix(request_.SerializeToString())
    assert bare_range(message) is None


def test_a_bare_range_that_is_cut_off_is_none() -> None:
    message = prefix(rpc_pb2.RangeRequest(key=b"a", range_end=b"b").SerializeToString())
    assert all(bare_range(message[:size]) is None for size in range(len(message)))
    assert bare_range(message + b"\0") is None
