"""Rows cut out of shards' answers, which come in any pieces; sorted; and written again."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from esp.core.pb import kv_pb2, rpc_pb2
from esp.core.services.kv.rows import (
    DELETE_FORM,
    HEADER_TAG,
    PIECE_BYTES,
    RANGE_FORM,
    ROW_BYTES,
    TXN_FORM,
    Answer,
    Form,
    RowReader,
    Rows,
    field,
    nested_head,
)
from esp.core.services.row_order import FIRST_COMPARED, HEAD_BYTES, RUN_BYTES, RUN_ROWS, by_value, by_version, sort
from esp.core.wire.message import prefix
from esp.core.wire.status import RpcError
from tests.examples import tries

HEADERS = st.builds(
    rpc_pb2.ResponseHeader,
    cluster_id=st.integers(0, 2**64 - 1),
    revision=st.integers(-(2**63), 2**63 - 1),
    raft_term=st.integers(0, 300),
)
ROWS = st.builds(
    kv_pb2.KeyValue,
    key=st.binary(max_size=4),
    value=st.binary(max_size=3) | st.binary(min_size=100, max_size=400),
    version=st.integers(0, 2**63 - 1),
)
RANGES = st.builds(
    rpc_pb2.RangeResponse,
    header=st.none() | HEADERS,
    kvs=st.lists(ROWS, max_size=4),
    more=st.booleans(),
    count=st.integers(0, 2**63 - 1),
)
TXNS = st.builds(
    rpc_pb2.TxnResponse,
    header=HEADERS,
    succeeded=st.booleans(),
    responses=st.lists(st.builds(rpc_pb2.ResponseOp, response_range=RANGES), max_size=4),
)
DELETES = st.builds(
    rpc_pb2.DeleteRangeResponse,
    header=HEADERS,
    deleted=st.integers(0, 2**63 - 1),
    prev_kvs=st.lists(ROWS, max_size=4),
)
CUTS = st.lists(st.integers(0, 2000), max_size=8)


def read(form: Form, sent: bytes, cuts: Sequence[int]) -> Answer:
    """The answer that comes in these pieces; it is there with the last byte and not before."""
    reader = RowReader(form)
    places = sorted({0, len(sent), *(cut for cut in cuts if cut < len(sent))})
    answers = []
    for at, to in itertools.pairwise(places):
        assert not answers
        answers += reader.feed(sent[at:to])
        assert answers or reader.wanted
    assert not reader.wanted
    assert reader.held == 0
    [answer] = answers
    return answer


def write(rows: Rows, header: rpc_pb2.ResponseHeader) -> bytes:
    head = field(HEADER_TAG, header.SerializeToString())
    released: list[int] = []
    size, held = rows.size(head), sum(len(row) + ROW_BYTES for row in rows.kvs)
    most = PIECE_BYTES + max(map(len, rows.kvs), default=0) + len(head) + len(rows.tail())
    pieces = list(rows.pieces(head, released.append))
    assert all(len(piece) <= most for piece in pieces)
    message = b"".join(pieces)
    assert len(message) == size
    assert sum(released) == held
    assert not any(rows.kvs)
    return message


def same(form: Form, message: Message, cuts: Sequence[int]) -> Answer:
    answer = read(form, prefix(message.SerializeToString()), cuts)
    assert answer.held >= message.ByteSize() + 5
    return answer


@given(RANGES, HEADERS, CUTS)
def test_a_range(response: rpc_pb2.RangeResponse, header: rpc_pb2.ResponseHeader, cuts: list[int]) -> None:
    answer = same(RANGE_FORM, response, cuts)
    [rows] = answer.responses
    assert answer.header == response.header
    assert (len(rows.kvs), rows.count, rows.more) == (len(response.kvs), response.count, response.more)
    response.header.CopyFrom(header)
    assert rpc_pb2.RangeResponse.FromString(write(rows, header)) == response


@given(DELETES, CUTS)
def test_a_delete(response: rpc_pb2.DeleteRangeResponse, cuts: list[int]) -> None:
    answer = same(DELETE_FORM, response, cuts)
    [rows] = answer.responses
    assert rows.deleted == response.deleted
    assert rpc_pb2.DeleteRangeResponse.FromString(write(rows, answer.header)) == response


@given(TXNS, HEADERS, CUTS)
def test_a_transaction(response: rpc_pb2.TxnResponse, inner: rpc_pb2.ResponseHeader, cuts: list[int]) -> None:
    answer = same(TXN_FORM, response, cuts)
    assert answer.header == response.header
    assert len(answer.responses) == len(response.responses)
    written = rpc_pb2.TxnResponse(header=response.header, succeeded=response.succeeded).SerializeToString()
    for rows, operation in zip(answer.responses, response.responses, strict=True):
        operation.response_range.header.CopyFrom(inner)
        body = write(rows, inner)
        written += nested_head(TXN_FORM, len(body)) + body
    assert rpc_pb2.TxnResponse.FromString(written) == response


@given(RANGES, CUTS)
def test_fields_of_a_later_etcd_are_passed_on(response: rpc_pb2.RangeResponse, cuts: list[int]) -> None:
    later = b"\x28\x96\x01" + b"\x32\x03abc"
    answer = read(RANGE_FORM, prefix(response.SerializeToString() + later), cuts)
    assert answer.responses[0].other == later
    assert later in write(answer.responses[0], answer.header)


@settings(max_examples=tries(300))
@given(st.sampled_from([RANGE_FORM, TXN_FORM, DELETE_FORM]), st.binary(max_size=60), CUTS)
def test_what_is_garbled_is_refused_or_read_as_protobuf_reads_it(form: Form, sent: bytes, cuts: list[int]) -> None:
    """Never with rows that are not whole, and never for ever."""
    with contextlib.suppress(RpcError):
        answer = read(form, prefix(sent), cuts)
        assert sum(len(row) for rows in answer.responses for row in rows.kvs) <= len(sent)


def test_a_compressed_answer_is_refused() -> None:
    with pytest.raises(RpcError):
        RowReader(RANGE_FORM).feed(b"\x01\0\0\0\0")


def test_a_row_that_is_longer_than_what_is_around_it_is_refused() -> None:
    with pytest.raises(RpcError):
        RowReader(RANGE_FORM).feed(prefix(b"\x12\x7fabc"))


def test_large_rows_are_counted_as_they_come() -> None:
    whole = prefix(rpc_pb2.RangeResponse(kvs=[kv_pb2.KeyValue(key=b"k", value=bytes(100_000))] * 3).SerializeToString())
    reader = RowReader(RANGE_FORM)
    for at in range(0, len(whole) - 1, 16_384):
        assert reader.feed(whole[at : min(at + 16_384, len(whole) - 1)]) == []
        assert min(at + 16_384, len(whole) - 1) <= reader.held <= at + 16_384 + 3 * ROW_BYTES
    assert reader.wanted == 1
    [answer] = reader.feed(whole[-1:])
    assert len(answer) == len(whole) + 3 * ROW_BYTES


def row(kv: kv_pb2.KeyValue) -> bytes:
    return rpc_pb2.RangeResponse(kvs=[kv]).SerializeToString()


VALUES = st.binary(max_size=3) | st.tuples(
    st.sampled_from([HEAD_BYTES, HEAD_BYTES + FIRST_COMPARED, HEAD_BYTES + FIRST_COMPARED + 100]), st.binary(max_size=2)
).map(lambda value: bytes(value[0]) + value[1])


@given(st.lists(VALUES, max_size=40), st.booleans(), st.integers(1, 50))
def test_rows_are_sorted_by_their_values(values: list[bytes], descend: bool, limit: int) -> None:
    rows = [row(kv_pb2.KeyValue(key=b"k", value=value, lease=len(value))) for value in values]
    ordered = asyncio.run(sort(rows, by_value, descend=descend, limit=limit))
    expected = sorted(values, reverse=descend)[:limit]
    assert [rpc_pb2.RangeResponse.FromString(one).kvs[0].value for one in ordered] == expected


def turns_beside(work: Callable[[], Coroutine[Any, Any, list[bytes]]]) -> tuple[int, list[bytes]]:
    """How often somebody else had a turn while this was done, and what came of it."""
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def run() -> list[bytes]:
        beside = asyncio.create_task(others())
        try:
            return await work()
        finally:
            beside.cancel()

    done = asyncio.run(run())
    return turns, done


@pytest.mark.parametrize("descend", [False, True])
def test_many_rows_are_sorted_in_turns(descend: bool) -> None:
    versions = [number * 7919 % 5003 for number in range(5000)]
    rows = [row(kv_pb2.KeyValue(key=b"k", version=version)) for version in versions]
    turns, ordered = turns_beside(lambda: sort(rows, by_version, descend=descend, limit=10**9))
    got = [rpc_pb2.RangeResponse.FromString(one).kvs[0].version for one in ordered]
    assert got == sorted(versions, reverse=descend)
    assert turns >= 2 * (len(rows) // RUN_ROWS)


def test_long_values_that_differ_at_the_end_are_sorted_in_turns() -> None:
    values = [bytes(40_000) + b"%03d" % (number * 79 % 200) for number in range(200)]
    rows = [row(kv_pb2.KeyValue(key=b"k", value=value)) for value in values]
    turns, ordered = turns_beside(lambda: sort(rows, by_value, descend=False, limit=10**9))
    assert [rpc_pb2.RangeResponse.FromString(one).kvs[0].value for one in ordered] == sorted(values)
    assert turns >= 200 * 40_000 // RUN_BYTES


def test_a_number_without_an_end_is_refused_with_its_first_piece() -> None:
    reader = RowReader(RANGE_FORM)
    reader.feed(b"\0" + (1 << 24).to_bytes(4, "big") + b"\x12")
    with pytest.raises(RpcError):
        reader.feed(b"\xff" * 16)


def test_a_number_of_ten_bytes_may_come_in_any_pieces() -> None:
    sent = prefix(rpc_pb2.RangeResponse(header=rpc_pb2.ResponseHeader(revision=1), count=-1).SerializeToString())
    for cut in range(len(sent)):
        assert read(RANGE_FORM, sent, [cut]).responses[0].numbers
