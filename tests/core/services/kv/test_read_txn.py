"""Reads joined to a transaction, and its answer cut into theirs, compared with protobuf."""

from __future__ import annotations

from contextlib import suppress

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from esp.core.pb import kv_pb2, rpc_pb2
from esp.core.services.kv import read_txn
from esp.core.wire.message import prefix

Range = rpc_pb2.RangeRequest
Answer = rpc_pb2.RangeResponse

# 127 is the longest key of a bare read; around these sizes the lengths around it take a second byte.
KEYS = st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([121, 122, 123, 124, 125, 126, 127]).map(bytes))
UINT64 = st.integers(0, 2**64 - 1)
HEADERS = st.builds(
    rpc_pb2.ResponseHeader,
    cluster_id=UINT64,
    member_id=UINT64,
    revision=st.integers(1, 2**63 - 1),
    raft_term=UINT64,
)
VALUES = st.one_of(st.binary(max_size=8), st.sampled_from([90, 120, 127, 128, 16383, 16384, 100_000]).map(bytes))
PAIRS = st.builds(
    kv_pb2.KeyValue,
    key=KEYS,
    value=VALUES,
    create_revision=st.integers(1, 2**63 - 1),
    mod_revision=st.integers(1, 2**63 - 1),
    version=st.integers(1, 100),
    lease=st.integers(0, 2**63 - 1),
)
FOUND = st.one_of(st.just(Answer()), PAIRS.map(lambda kv: Answer(kvs=[kv], count=1)))


def transaction(header: rpc_pb2.ResponseHeader, found: list[Answer]) -> rpc_pb2.TxnResponse:
    """The answer as etcd writes it: each answer inside says the revision and nothing else in its header."""
    response = rpc_pb2.TxnResponse(header=header, succeeded=True)
    for answer in found:
        inner = response.responses.add().response_range
        inner.CopyFrom(answer)
        inner.header.revision = header.revision
    return response


def whole(header: rpc_pb2.ResponseHeader, answer: Answer) -> bytes:
    """What etcd answers to the one read."""
    alone = Answer()
    alone.CopyFrom(answer)
    alone.header.CopyFrom(header)
    return prefix(alone.SerializeToString())


@given(st.lists(KEYS, min_size=1, max_size=70))
def test_the_transaction_reads_each_key_in_order(keys: list[bytes]) -> None:
    joined = read_txn.join([prefix(Range(key=key).SerializeToString()) for key in keys])
    expected = rpc_pb2.TxnRequest(success=[rpc_pb2.RequestOp(request_range=Range(key=key)) for key in keys])
    assert joined == prefix(expected.SerializeToString())


@given(HEADERS, st.lists(FOUND, min_size=1, max_size=20))
def test_each_read_gets_the_bytes_it_would_have_got_alone(header: rpc_pb2.ResponseHeader, found: list[Answer]) -> None:
    answer = prefix(transaction(header, found).SerializeToString())
    assert read_txn.split(answer, len(found)) == [whole(header, one) for one in found]


@given(HEADERS, st.lists(FOUND, min_size=2, max_size=4), st.data())
def test_what_is_not_that_is_left_alone(
    header: rpc_pb2.ResponseHeader, found: list[Answer], data: st.DataObject
) -> None:
    """Whatever the bytes are: None, or as many answers, each with a header."""
    answer = prefix(transaction(header, found).SerializeToString())
    start = data.draw(st.integers(0, len(answer)))
    stop = data.draw(st.integers(start, min(len(answer), start + 3)))
    damaged = answer[:start] + data.draw(st.binary(max_size=3)) + answer[stop:]
    split = read_txn.split(damaged, len(found))
    assert split is None or len(split) == len(found)
    for one in split or ():
        with suppress(DecodeError):  # damage behind the headers is protobuf's to find, as ever
            assert Answer.FromString(one[5:]).HasField("header")
    assert damaged == answer or len(damaged) == len(answer) or split is None


@given(st.binary(max_size=64), st.integers(1, 3))
def test_noise_raises_nothing(noise: bytes, count: int) -> None:
    read_txn.split(noise, count)
    read_txn.split(prefix(noise), count)


HEADER = rpc_pb2.ResponseHeader(cluster_id=7, member_id=8, revision=300, raft_term=2)
TWO = [Answer(), Answer(kvs=[kv_pb2.KeyValue(key=b"k", mod_revision=3)], count=1)]


def _of_another_revision() -> bytes:
    response = transaction(HEADER, TWO)
    response.responses[1].response_range.header.revision = 301
    return prefix(response.SerializeToString())


def _with_a_fuller_header_inside() -> bytes:
    response = transaction(HEADER, TWO)
    response.responses[1].response_range.header.CopyFrom(HEADER)
    return prefix(response.SerializeToString())


def _without_a_header_inside() -> bytes:
    response = transaction(HEADER, TWO)
    response.responses[1].response_range.ClearField("header")
    return prefix(response.SerializeToString())


def _of_the_other_branch() -> bytes:
    response = transaction(HEADER, TWO)
    response.succeeded = False
    return prefix(response.SerializeToString())


def _of_something_else() -> bytes:
    response = transaction(HEADER, TWO[:1])
    response.responses.add().response_put.header.revision = 300
    return prefix(response.SerializeToString())


@pytest.mark.parametrize(
    "answer",
    [
        _of_another_revision(),
        _with_a_fuller_header_inside(),
        _without_a_header_inside(),
        _of_the_other_branch(),
        _of_something_else(),
        prefix(transaction(HEADER, TWO[:1]).SerializeToString()),
        prefix(transaction(HEADER, [*TWO, Answer()]).SerializeToString()),
        prefix(transaction(HEADER, TWO).SerializeToString()) + b"\0",
        prefix(transaction(HEADER, TWO).SerializeToString())[:-1],
        b"\1" + prefix(transaction(HEADER, TWO).SerializeToString())[1:],
        prefix(b""),
        b"",
    ],
    ids=[
        "of another revision",
        "with a fuller header inside",
        "without a header inside",
        "of the other branch",
        "of something else",
        "one too few",
        "one too many",
        "with something behind it",
        "cut off",
        "compressed",
        "empty",
        "nothing",
    ],
)
def test_an_answer_of_unusual_form_is_not_taken_apart(answer: bytes) -> None:
    assert read_txn.split(prefix(transaction(HEADER, TWO).SerializeToString()), 2) is not None
    assert read_txn.split(answer, 2) is None
